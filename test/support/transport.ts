/**
 * Which transport the mounts of a run use. The projects "io_uring" and "fuse-native" of vitest.config.ts run the suite of
 * mounts over those; what fuse-native's interface lacks is skipped with the reason that stands here, and nothing else is.
 */
import { beforeEach } from "vitest";
import { TRANSPORTS, type Transport } from "../../src/daemon/options.ts";
import { loadFuseNative } from "../../src/region/addon.ts";
import { openFuseRing } from "../../src/region/fuse-ring.ts";

export const transport: Transport =
  TRANSPORTS.find((one) => one === process.env.MAPDIRECT_TEST_TRANSPORT) ?? "kernel";

/** Why something cannot be used here, or null: tried once. */
function reasonAgainst(attempt: () => unknown): () => string | null {
  let found: string | null | undefined;
  return () => {
    if (found !== undefined) return found;
    try {
      attempt();
      found = null;
    } catch (error) {
      found = (error as Error).message;
    }
    return found;
  };
}

export const fuseNativeUnavailable = reasonAgainst(loadFuseNative);
export const uringUnavailable = reasonAgainst(() => openFuseRing(4096));

const UNAVAILABLE: Readonly<Record<Transport, () => string | null>> = {
  kernel: () => null,
  io_uring: uringUnavailable,
  "fuse-native": fuseNativeUnavailable,
};

/** Why nothing can be tested over the transport of this run, or null. */
export const transportUnavailable = UNAVAILABLE[transport];

const NO_IOCTL = "no ioctl: no leases, and no questions to the daemon";
const NO_FALLOCATE = "no fallocate";
const NO_CALLER = "it does not say who calls: the mount is for whoever mounted alone";
const TIMES = "times are milliseconds from 1970 on, and mtime becomes what atime is set to";
const LARGE = "sizes are JavaScript numbers";
const HIDDEN = "libfuse addresses files by path: an open file that loses its name has a hidden one";

/** What fuse-native lacks, by the names of the tests that need it. docs/OPERATIONS.md has the same list for users. */
export const LACKING: Readonly<Record<string, string>> = {
  "read-only: nothing can be changed, everything read": NO_IOCTL,
  "info answers the same about the volume, asked at the region or at the mountpoint": NO_IOCTL,
  "--assume-pmem shows as assumed cache-line granularity": NO_IOCTL,
  "extents: what they say is where the bytes are in the region": NO_IOCTL,
  "extents of a file in thousands of pieces come whole, over many pages": NO_IOCTL,
  "prepare makes a hole ready: written, zero, allocated": NO_IOCTL,
  "leases of a mount without mappings: an empty list": NO_IOCTL,
  "makes, mounts, uses and unmounts a region of their own": NO_IOCTL,
  "allocates without changing what is read, with and without KEEP_SIZE": NO_FALLOCATE,
  "PUNCH_HOLE and ZERO_RANGE make zeros of exactly the range": NO_FALLOCATE,
  "more than there is: ENOSPC, and nothing changed": NO_FALLOCATE,
  "are gone after fallocate, punch hole and zero range": NO_FALLOCATE,
  "what KEEP_SIZE has allocated behind the end stays when the file grows, and goes when it is truncated to its size":
    NO_FALLOCATE,
  "walk over data and holes, the end being a hole": "no lseek: a file is all data",
  "a file can be 2^63 - 1 bytes long, and nothing longer": LARGE,
  "at offsets beyond 2^53, up to the last byte of a file of 2^63 - 1 bytes, data is written and read": LARGE,
  "are kept to the nanosecond, before 1970 and after 2038": TIMES,
  "beyond what can be kept exactly become the nearest that can": TIMES,
  "cp -a copies a tree that compares equal, there and back": TIMES,
  "rsync copies a tree that compares equal, there and back": TIMES,
  "tar copies a tree that compares equal, there and back": TIMES,
  "everything is as it was: modes, owners, links, sizes, contents":
    "the names of a hard link are cached apart: for a second one may show older attributes than the other",
  "an unlinked file lives on for those who have it open": HIDDEN,
  "takes the place of what was there, in one step": HIDDEN,
  "a directory that was removed while open lists nothing and takes no new names": HIDDEN,
  "a name is bytes, not text: what is no UTF-8 comes back as it went in": "names are UTF-8",
  "RENAME_NOREPLACE refuses, RENAME_EXCHANGE swaps, files and directories alike": "no renameat2",
  "a listing under way names each file once that others are renamed over, or exchanged with, meanwhile":
    "no renameat2",
  "another user is held to the mode bits": NO_CALLER,
  "in a sticky directory only the owner removes or renames a name": NO_CALLER,
  "a write by another user takes away setuid and setgid": NO_CALLER,
  "what takes setuid and setgid away is the lack of CAP_FSETID, and not who somebody is": NO_CALLER,
  "--lazy detaches a mount in use; its daemon ends with its last user, and nothing is lost":
    "it does not say when the last user is gone: the daemon ends when the mount is detached",
  "an abort of the connection by the administrator ends the daemon, and the mountpoint is free again":
    "it does not say that the connection was aborted",
};

if (transport !== "kernel") {
  const lacking = transport === "fuse-native" ? LACKING : {};
  beforeEach(({ task, skip }) => {
    const reason =
      transportUnavailable() ?? (Object.hasOwn(lacking, task.name) ? lacking[task.name] : undefined);
    if (reason !== undefined) skip(reason);
  });
}
