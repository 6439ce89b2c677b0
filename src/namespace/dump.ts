/** Metadata as JSON lines, for people and programs to look at. Integers beyond 2^53 keep all their digits. */
import { isUtf8 } from "node:buffer";
import { SHARED, UNWRITTEN } from "../media/group.ts";
import { formatUuid } from "../media/mkfs.ts";
import type { SuperblockValue } from "../media/superblock.ts";
import type { Inode } from "./inode.ts";
import { FLAGS_ATTRIBUTE } from "./inode-flags.ts";
import type { State } from "./state.ts";

/** Each with its newline. */
export function* dumpLines(state: State, superblock: SuperblockValue): IterableIterator<string> {
  yield superblockLine(state, superblock);
  for (const inode of state.inodes.values()) yield* inodeLines(inode, superblock.blockBytes);
}

export function superblockLine(state: State, superblock: SuperblockValue): string {
  const { uuid, label, version, regionBytes, blockBytes, segmentBytes, sequence } = superblock;
  const { featuresCompatible, featuresReadOnly, featuresIncompatible, createdSec, mountedSec } = superblock;
  return line({
    type: "superblock",
    ...{ uuid: formatUuid(uuid), label, version, regionBytes, blockBytes, segmentBytes, sequence },
    ...{ featuresCompatible, featuresReadOnly, featuresIncompatible },
    ...{ created: Number(createdSec), mounted: Number(mountedSec), inodes: state.inodes.size },
  });
}

/** The inode first, then what belongs to it. */
export function* inodeLines(inode: Inode, blockBytes: number): IterableIterator<string> {
  yield line(describe(inode));
  const { ino } = inode;
  if (inode.target !== null) yield line({ type: "target", ino, ...text("target", inode.target) });
  for (const [name, value] of inode.xattrs ?? []) {
    if (name === FLAGS_ATTRIBUTE) continue;
    const bytes = Buffer.from(value).toString("latin1");
    yield line({ type: "attribute", ino, ...text("name", name), ...text("value", bytes) });
  }
  for (const { block, count, physical, state: kind } of inode.extents ?? []) {
    const name = kind === UNWRITTEN ? "unwritten" : kind === SHARED ? "shared" : "written";
    yield line({
      ...{ type: "extent", ino, state: name, offset: BigInt(block) * BigInt(blockBytes) },
      ...{ physical: BigInt(physical) * BigInt(blockBytes), length: BigInt(count) * BigInt(blockBytes) },
    });
  }
  for (const entry of inode.directory?.names.values() ?? []) {
    yield line({
      type: "entry",
      parent: ino,
      ...text("name", entry.name),
      ino: entry.ino,
      cookie: entry.cookie,
    });
  }
}

function describe(inode: Inode): Record<string, unknown> {
  const { ino, size, parent, nlink, uid, gid, rdev, generation } = inode;
  // Seconds since 1970, in digits: what damaged media hold may be no date.
  const time = (sec: number, nsec: number): string => `${sec}.${`${nsec}`.padStart(9, "0")}`;
  return {
    ...{ type: "inode", ino, mode: inode.mode.toString(8), size, parent, nlink, uid, gid, rdev, generation },
    ...(inode.flags === 0 ? {} : { flags: inode.flags }),
    atime: time(inode.atimeSec, inode.atimeNsec),
    mtime: time(inode.mtimeSec, inode.mtimeNsec),
    ctime: time(inode.ctimeSec, inode.ctimeNsec),
    btime: time(inode.btimeSec, inode.btimeNsec),
  };
}

/** A byte string under its name if it is UTF-8, else as hexadecimal digits under another. */
function text(name: string, bytes: string): Record<string, string> {
  const buffer = Buffer.from(bytes, "latin1");
  return isUtf8(buffer) ? { [name]: buffer.toString("utf8") } : { [`${name}Hex`]: buffer.toString("hex") };
}

function line(value: Readonly<Record<string, unknown>>): string {
  const parts = Object.entries(value).map(
    ([key, item]) => `${JSON.stringify(key)}:${typeof item === "bigint" ? item : JSON.stringify(item)}`,
  );
  return `{${parts.join(",")}}\n`;
}
