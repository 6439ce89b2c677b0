/**
 * A file system as plain objects, to compare the real one with: no blocks, no log, no limits of space.
 *
 * Content is a map from block number to bytes; blocks are never changed in place, so that a snapshot of everything is
 * cheap and stays what it was.
 */
import { Errno, type ErrnoName } from "../../src/base/errno.ts";
import { read } from "../../src/namespace/data.ts";
import { FILE_BYTES_MAX, type Inode, S_IFDIR, S_IFMT, S_IFREG } from "../../src/namespace/inode.ts";
import type { Store } from "../../src/namespace/store.ts";

/** Block of the model: need not be the volume's. */
const BLOCK = 4096;
const BLOCK_BIG = BigInt(BLOCK);
const zeros = new Uint8Array(BLOCK);

export type Content = Map<bigint, Uint8Array>;

export interface Node {
  readonly ino: number;
  mode: number;
  uid: number;
  gid: number;
  rdev: number;
  nlink: number;
  size: bigint;
  parent: number;
  content: Content;
  entries: Map<string, number>;
  target: string | null;
  xattrs: Map<string, string>;
  opens: number;
}

export class ModelError extends Error {
  readonly errno: number;
  constructor(name: ErrnoName) {
    super(name);
    this.errno = Errno[name];
  }
}

function fail(name: ErrnoName): never {
  throw new ModelError(name);
}

/** A copy that later changes do not reach. */
export function cloneNode(node: Node): Node {
  return {
    ...node,
    content: new Map(node.content),
    entries: new Map(node.entries),
    xattrs: new Map(node.xattrs),
  };
}

export class Model {
  readonly nodes: Map<number, Node>;

  constructor(nodes = new Map<number, Node>()) {
    this.nodes = nodes;
  }

  /** What the store shows now, taken over as the truth. */
  static of(store: Store, withContent = true): Model {
    const model = new Model();
    for (const inode of store.state.inodes.values()) {
      const node: Node = {
        ino: inode.ino,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        nlink: inode.nlink,
        size: inode.size,
        parent: inode.parent,
        content: withContent ? contentOf(store, inode) : new Map(),
        entries: new Map(),
        target: inode.target,
        xattrs: new Map(),
        opens: inode.opens,
      };
      for (const entry of inode.directory?.names.values() ?? []) node.entries.set(entry.name, entry.ino);
      for (const [name, value] of inode.xattrs ?? [])
        node.xattrs.set(name, Buffer.from(value).toString("hex"));
      model.nodes.set(inode.ino, node);
    }
    return model;
  }

  clone(): Model {
    const nodes = new Map<number, Node>();
    for (const [ino, node] of this.nodes) nodes.set(ino, cloneNode(node));
    return new Model(nodes);
  }

  /** As it is after a crash: nobody has anything open. */
  withoutOrphans(): Model {
    const left = this.clone();
    for (const [ino, node] of left.nodes) {
      node.opens = 0;
      if (node.nlink === 0) left.nodes.delete(ino);
    }
    return left;
  }

  node(ino: number): Node {
    const node = this.nodes.get(ino);
    if (node === undefined) throw new Error(`the model has no inode ${ino}`);
    return node;
  }

  static isDirectory(node: Node): boolean {
    return (node.mode & S_IFMT) === S_IFDIR;
  }

  #directory(ino: number): Node {
    const node = this.node(ino);
    if (!Model.isDirectory(node)) fail("ENOTDIR");
    return node;
  }

  #checkName(name: string): void {
    if (name.length > 255) fail("ENAMETOOLONG");
  }

  #lookup(parent: number, name: string): Node {
    this.#checkName(name);
    const ino = this.#directory(parent).entries.get(name);
    if (ino === undefined) fail("ENOENT");
    return this.node(ino);
  }

  /** What create() will answer; the caller gets the new inode's number from the real one. */
  create(
    parent: number,
    name: string,
    mode: number,
    rdev: number,
    who: { uid: number; gid: number },
    target: string | null,
    ino: () => number,
  ): void {
    this.#checkName(name);
    const directory = this.#directory(parent);
    if (directory.nlink === 0) fail("ENOENT");
    if (directory.entries.has(name)) fail("EEXIST");
    const isDirectory = (mode & S_IFMT) === S_IFDIR;
    const setgid = (directory.mode & 0o2000) !== 0;
    const number = ino();
    this.nodes.set(number, {
      ino: number,
      mode: setgid && isDirectory ? mode | 0o2000 : mode,
      uid: who.uid,
      gid: setgid ? directory.gid : who.gid,
      rdev,
      nlink: isDirectory ? 2 : 1,
      size: target === null ? 0n : BigInt(target.length),
      parent: isDirectory ? parent : 0,
      content: new Map(),
      entries: new Map(),
      target,
      xattrs: new Map(),
      opens: 0,
    });
    directory.entries.set(name, number);
    if (isDirectory) directory.nlink += 1;
  }

  link(ino: number, parent: number, name: string): void {
    this.#checkName(name);
    const directory = this.#directory(parent);
    const node = this.node(ino);
    if (Model.isDirectory(node)) fail("EPERM");
    if (directory.nlink === 0) fail("ENOENT");
    if (directory.entries.has(name)) fail("EEXIST");
    directory.entries.set(name, ino);
    node.nlink += 1;
  }

  #reap(node: Node): void {
    if (node.nlink === 0 && node.opens === 0) this.nodes.delete(node.ino);
  }

  unlink(parent: number, name: string): void {
    const node = this.#lookup(parent, name);
    if (Model.isDirectory(node)) fail("EISDIR");
    this.node(parent).entries.delete(name);
    node.nlink -= 1;
    this.#reap(node);
  }

  rmdir(parent: number, name: string): void {
    const node = this.#lookup(parent, name);
    if (!Model.isDirectory(node)) fail("ENOTDIR");
    if (node.entries.size > 0) fail("ENOTEMPTY");
    const directory = this.node(parent);
    directory.entries.delete(name);
    directory.nlink -= 1;
    node.nlink = 0;
    this.#reap(node);
  }

  #isAbove(ancestor: Node, node: Node): boolean {
    for (let at = node; ; at = this.node(at.parent)) {
      if (at === ancestor) return true;
      if (at.ino === 1) return false;
    }
  }

  rename(source: number, sourceName: string, target: number, targetName: string, flags: number): void {
    if (flags > 2) fail("EINVAL");
    this.#checkName(sourceName);
    this.#checkName(targetName);
    const node = this.#lookup(source, sourceName);
    const from = this.node(source);
    const to = this.#directory(target);
    if (to.nlink === 0) fail("ENOENT");
    const oldIno = to.entries.get(targetName);
    const old = oldIno === undefined ? null : this.node(oldIno);
    if (Model.isDirectory(node) && this.#isAbove(node, to)) fail("EINVAL");
    if (flags === 2) {
      if (old === null) fail("ENOENT");
      if (Model.isDirectory(old) && this.#isAbove(old, from)) fail("EINVAL");
      if (old === node) return;
      from.entries.set(sourceName, old.ino);
      to.entries.set(targetName, node.ino);
      this.#moved(node, from, to);
      this.#moved(old, to, from);
      return;
    }
    if (old !== null) {
      if (flags === 1) fail("EEXIST");
      if (old === node) return;
      if (Model.isDirectory(old)) {
        if (!Model.isDirectory(node)) fail("EISDIR");
        if (old.entries.size > 0) fail("ENOTEMPTY");
        old.nlink = 0;
        to.nlink -= 1;
      } else {
        if (Model.isDirectory(node)) fail("ENOTDIR");
        old.nlink -= 1;
      }
    }
    from.entries.delete(sourceName);
    to.entries.set(targetName, node.ino);
    this.#moved(node, from, to);
    if (old !== null) this.#reap(old);
  }

  #moved(node: Node, from: Node, to: Node): void {
    if (!Model.isDirectory(node)) return;
    from.nlink -= 1;
    to.nlink += 1;
    node.parent = to.ino;
  }

  #file(ino: number): Node {
    const node = this.node(ino);
    const type = node.mode & S_IFMT;
    if (type === S_IFDIR) fail("EISDIR");
    if (type !== S_IFREG) fail("EINVAL");
    return node;
  }

  #kill(node: Node, kill: boolean): void {
    if (!kill) return;
    node.mode &= ~0o4000;
    if ((node.mode & 0o10) !== 0) node.mode &= ~0o2000;
  }

  /** @param bytes how many of the data the real one has taken. */
  write(ino: number, offset: bigint, data: Uint8Array, bytes: number | null, kill: boolean): void {
    const node = this.#file(ino);
    if (data.length === 0) return;
    if (offset >= FILE_BYTES_MAX) fail("EFBIG");
    const taken = bytes ?? data.length;
    this.#put(node, offset, data.subarray(0, taken));
    const end = offset + BigInt(taken);
    if (end > node.size) node.size = end;
    this.#kill(node, kill);
  }

  /** @param done how many bytes the real one has copied or shared. */
  copy(
    how: "copy" | "clone",
    range: { source: number; sourceOffset: bigint; target: number; targetOffset: bigint; length: bigint },
    done: number | null,
    kill: boolean,
    blockBytes: bigint,
  ): void {
    const source = this.#file(range.source);
    const target = this.#file(range.target);
    const { sourceOffset, targetOffset } = range;
    const left = source.size > sourceOffset ? source.size - sourceOffset : 0n;
    const length = range.length < left ? range.length : left;
    if (targetOffset + length > FILE_BYTES_MAX) fail("EFBIG");
    const overlap = targetOffset < sourceOffset + length && sourceOffset < targetOffset + length;
    if (source === target && overlap) fail("EINVAL");
    if (how === "clone") {
      if (length !== range.length) fail("EINVAL");
      const toEnd = sourceOffset + length === source.size && targetOffset + length >= target.size;
      const aligned = (offset: bigint): boolean => offset % blockBytes === 0n;
      if (length > 0n && !(aligned(sourceOffset) && aligned(targetOffset) && (toEnd || aligned(length))))
        fail("EINVAL");
    }
    if (length === 0n) return;
    const bytes = new Uint8Array(done ?? 0);
    for (let at = 0; at < bytes.length; ) {
      const from = sourceOffset + BigInt(at);
      const within = Number(from % BLOCK_BIG);
      const count = Math.min(BLOCK - within, bytes.length - at);
      bytes.set(Model.block(source, from / BLOCK_BIG).subarray(within, within + count), at);
      at += count;
    }
    this.#put(target, targetOffset, bytes);
    const end = targetOffset + BigInt(bytes.length);
    if (end > target.size) target.size = end;
    this.#kill(target, kill);
  }

  #put(node: Node, offset: bigint, data: Uint8Array): void {
    for (let done = 0; done < data.length; ) {
      const at = offset + BigInt(done);
      const block = at / BLOCK_BIG;
      const within = Number(at % BLOCK_BIG);
      const count = Math.min(BLOCK - within, data.length - done);
      const bytes = (node.content.get(block) ?? zeros).slice();
      bytes.set(data.subarray(done, done + count), within);
      node.content.set(block, bytes);
      done += count;
    }
  }

  /** Bytes [from, to) read as zeros from now on. */
  #clear(node: Node, from: bigint, to: bigint): void {
    for (const [block, old] of [...node.content]) {
      const begin = block * BLOCK_BIG;
      if (begin + BLOCK_BIG <= from || begin >= to) continue;
      const first = from > begin ? Number(from - begin) : 0;
      const last = to < begin + BLOCK_BIG ? Number(to - begin) : BLOCK;
      if (first === 0 && last === BLOCK) {
        node.content.delete(block);
        continue;
      }
      const bytes = old.slice();
      bytes.fill(0, first, last);
      node.content.set(block, bytes);
    }
  }

  truncate(ino: number, size: bigint, kill: boolean): void {
    const node = this.#file(ino);
    if (size < 0n || size > FILE_BYTES_MAX) fail("EFBIG");
    if (size < node.size) this.#clear(node, size, FILE_BYTES_MAX + BLOCK_BIG);
    node.size = size;
    this.#kill(node, kill);
  }

  fallocate(ino: number, mode: number, offset: bigint, length: bigint, kill: boolean): void {
    const node = this.#file(ino);
    if (length <= 0n) fail("EINVAL");
    const end = offset + length;
    if (end > FILE_BYTES_MAX) fail("EFBIG");
    if (![0, 1, 3, 0x10, 0x11].includes(mode)) fail("EOPNOTSUPP");
    if (mode !== 0 && mode !== 1) this.#clear(node, offset, end);
    if ((mode & 1) === 0 && end > node.size) node.size = end;
    this.#kill(node, kill);
  }

  prepare(ino: number): void {
    this.#file(ino);
  }

  setattr(
    ino: number,
    mode: number | undefined,
    uid: number | undefined,
    gid: number | undefined,
    kill: boolean,
  ): void {
    const node = this.node(ino);
    if (mode !== undefined) node.mode = (node.mode & S_IFMT) | (mode & 0o7777);
    this.#kill(node, kill);
    if (uid !== undefined) node.uid = uid;
    if (gid !== undefined) node.gid = gid;
  }

  setXattr(ino: number, name: string, value: Uint8Array, flags: number): void {
    const node = this.node(ino);
    if (name.length > 255) fail("ERANGE");
    if (value.length > 65536) fail("ENOSPC");
    if (flags > 3) fail("EINVAL");
    const known = node.xattrs.has(name);
    if (known && (flags & 1) !== 0) fail("EEXIST");
    if (!known && (flags & 2) !== 0) fail("ENODATA");
    node.xattrs.set(name, Buffer.from(value).toString("hex"));
  }

  removeXattr(ino: number, name: string): void {
    if (!this.node(ino).xattrs.delete(name)) fail("ENODATA");
  }

  open(ino: number): void {
    this.node(ino).opens += 1;
  }

  release(ino: number): void {
    const node = this.node(ino);
    node.opens -= 1;
    this.#reap(node);
  }

  /** Byte values of a block; shorter than a block where the file ends. */
  static block(node: Node, block: bigint): Uint8Array {
    return node.content.get(block) ?? zeros;
  }
}

/** All of a file's blocks that do not read as zeros. */
export function contentOf(store: Store, inode: Inode): Content {
  const content: Content = new Map();
  if (inode.extents === null) return content;
  const perBlock = BigInt(store.blockBytes) / BLOCK_BIG;
  const data = Buffer.alloc(BLOCK);
  for (const extent of inode.extents) {
    const from = BigInt(extent.block) * perBlock;
    const to = from + BigInt(extent.count) * perBlock;
    for (let block = from; block < to; block += 1n) {
      const offset = block * BLOCK_BIG;
      if (offset >= inode.size) break;
      data.fill(0);
      read(store, inode, offset, data, 0, BLOCK);
      if (!data.equals(zeros)) content.set(block, Uint8Array.from(data));
    }
  }
  return content;
}

/** The first thing in which what is seen differs from what is expected; null if nothing does. Contents apart. */
export function difference(seen: Model, expected: Model): string | null {
  for (const [ino, node] of expected.nodes) {
    const other = seen.nodes.get(ino);
    if (other === undefined) return `inode ${ino} is missing`;
    for (const field of ["mode", "uid", "gid", "rdev", "nlink", "size", "parent", "target"] as const) {
      if (Model.isDirectory(node) && node.nlink === 0 && field === "parent") continue;
      if (other[field] !== node[field]) {
        return `inode ${ino}: ${field} is ${other[field]}, expected ${node[field]}`;
      }
    }
    for (const map of ["entries", "xattrs"] as const) {
      const found: ReadonlyMap<string, unknown> = other[map];
      if (found.size !== node[map].size)
        return `inode ${ino}: ${found.size} ${map}, expected ${node[map].size}`;
      for (const [name, value] of node[map]) {
        if (found.get(name) !== value)
          return `inode ${ino}: ${map} "${name}" is ${found.get(name)}, expected ${value}`;
      }
    }
  }
  for (const ino of seen.nodes.keys()) if (!expected.nodes.has(ino)) return `inode ${ino} should not be`;
  return null;
}

/** As difference(), for what files contain: each byte must be one that the file had there in one of `states`. */
export function foreignBytes(seen: Model, states: readonly Model[]): string | null {
  for (const [ino, node] of seen.nodes) {
    const versions = states.flatMap((state) => state.nodes.get(ino) ?? []);
    const blocks = new Set([
      ...node.content.keys(),
      ...versions.flatMap((version) => [...version.content.keys()]),
    ]);
    for (const block of blocks) {
      if (block * BLOCK_BIG >= node.size) continue;
      const bytes = Model.block(node, block);
      const candidates = versions.map((version) => Model.block(version, block));
      const length =
        node.size - block * BLOCK_BIG < BLOCK_BIG ? Number(node.size - block * BLOCK_BIG) : BLOCK;
      if (candidates.some((candidate) => Buffer.compare(candidate, bytes) === 0)) continue;
      for (let at = 0; at < length; at += 1) {
        if (!candidates.some((candidate) => candidate[at] === bytes[at])) {
          return `inode ${ino}: byte ${block * BLOCK_BIG + BigInt(at)} is ${bytes[at]}, never was more than ${candidates.map((candidate) => candidate[at])}`;
        }
      }
    }
  }
  return null;
}
