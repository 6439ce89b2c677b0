#!/usr/bin/env node
// @ts-check
/**
 * A file system in memory.
 *
 *   node examples/memory.mjs MOUNTPOINT
 *
 * Nodes are found by number, never by path: files that are renamed or unlinked while they are open need nothing special.
 * A node lives as long as it has a name, or the kernel has a reference to it.
 */
import {
  Errno,
  FallocMode,
  FsError,
  mount,
  OpenFlag,
  RenameFlag,
  ROOT_NODE,
  Seek,
  XattrFlag,
} from "mapdirect/fuse";

const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

let lastNode = ROOT_NODE - 1;

class Node {
  /** @param {number} mode @param {{ uid: number, gid: number }} owner */
  constructor(mode, { uid, gid }) {
    lastNode += 1;
    this.ino = lastNode;
    this.mode = mode;
    this.uid = uid;
    this.gid = gid;
    this.rdev = 0;
    this.nlink = 0;
    this.references = 0;
    this.size = 0;
    this.atime = this.mtime = this.ctime = now();
    /** Bytes of a file: at least `size` of them, zero behind it. */
    this.data = Buffer.alloc(0);
    this.target = "";
    /** @type {Map<string, Node> | null} */
    this.children = (mode & S_IFMT) === S_IFDIR ? new Map() : null;
    this.parent = this;
    /** @type {Map<string, Buffer>} */
    this.xattrs = new Map();
  }

  get attributes() {
    const { ino, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime } = this;
    return { ino, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime };
  }

  get entry() {
    this.references += 1;
    return { nodeid: this.ino, attributes: this.attributes };
  }

  /** @param {number} size */
  resize(size) {
    if (size > MAX_BYTES) throw new FsError("EFBIG");
    if (size > this.data.length) {
      const larger = Buffer.alloc(Math.max(size, 2 * this.data.length, 4096));
      this.data.copy(larger);
      this.data = larger;
    } else if (size < this.size) this.data.fill(0, size, this.size);
    this.size = size;
  }

  touch() {
    this.mtime = this.ctime = now();
  }
}

const MAX_BYTES = 256 * 1024 * 1024;

function now() {
  const ms = Date.now();
  return { seconds: Math.floor(ms / 1000), nanoseconds: (ms % 1000) * 1_000_000 };
}

/** @type {Map<number, Node>} */
const nodes = new Map();

/** @param {number} id */
function node(id) {
  const found = nodes.get(id);
  if (found === undefined) throw new FsError("ESTALE");
  return found;
}

/** @param {number} id */
function children(id) {
  const found = node(id).children;
  if (found === null) throw new FsError("ENOTDIR");
  return found;
}

/** @param {number} parent @param {string} name */
function child(parent, name) {
  const found = children(parent).get(name);
  if (found === undefined) throw new FsError("ENOENT");
  return found;
}

/** @param {import("mapdirect/fuse").NameRequest} request @param {number} mode */
function make(request, mode) {
  const parent = node(request.nodeid);
  if (children(request.nodeid).has(request.name)) throw new FsError("EEXIST");
  // A directory that was removed, but is somebody's working directory still.
  if (parent.nlink === 0) throw new FsError("ENOENT");
  const made = new Node(mode, request);
  nodes.set(made.ino, made);
  add(parent, request.name, made);
  return made;
}

/** @param {Node} parent @param {string} name @param {Node} added */
function add(parent, name, added) {
  parent.children?.set(name, added);
  parent.touch();
  added.ctime = parent.ctime;
  if (added.children === null) added.nlink += 1;
  else {
    added.nlink = 2 + [...added.children.values()].filter((each) => each.children !== null).length;
    added.parent = parent;
    parent.nlink += 1;
  }
}

/** @param {Node} parent @param {string} name */
function remove(parent, name) {
  const removed = parent.children?.get(name);
  if (removed === undefined) return;
  parent.children?.delete(name);
  parent.touch();
  removed.ctime = parent.ctime;
  if (removed.children === null) removed.nlink -= 1;
  else {
    removed.nlink = 0;
    parent.nlink -= 1;
  }
  drop(removed);
}

/** @param {Node} unused */
function drop(unused) {
  if (unused.nlink === 0 && unused.references === 0) nodes.delete(unused.ino);
}

const root = new Node(S_IFDIR | 0o755, { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 });
root.nlink = 2;
nodes.set(root.ino, root);

/** @type {import("mapdirect/fuse").FileSystem} */
const fileSystem = {
  lookup: ({ nodeid, name }) => children(nodeid).get(name)?.entry ?? null,

  forget(nodeid, references) {
    const forgotten = nodes.get(nodeid);
    if (forgotten === undefined) return;
    forgotten.references -= references;
    drop(forgotten);
  },

  getattr: ({ nodeid }) => node(nodeid).attributes,

  setattr({ nodeid, changes }) {
    const changed = node(nodeid);
    const { mode, uid, gid, size, atime, mtime } = changes;
    if (size !== undefined) {
      changed.resize(size);
      changed.touch();
    }
    if (mode !== undefined) changed.mode = (changed.mode & S_IFMT) | (mode & ~S_IFMT);
    if (uid !== undefined) changed.uid = uid;
    if (gid !== undefined) changed.gid = gid;
    if (atime !== undefined) changed.atime = atime === "now" ? now() : atime;
    if (mtime !== undefined) changed.mtime = mtime === "now" ? now() : mtime;
    changed.ctime = now();
    return changed.attributes;
  },

  mknod(request) {
    const made = make(request, request.mode);
    made.rdev = request.rdev;
    return made.entry;
  },
  mkdir: (request) => make(request, S_IFDIR | (request.mode & 0o7777)).entry,
  create: (request) => make(request, S_IFREG | (request.mode & 0o7777)).entry,

  symlink(request) {
    const made = make(request, S_IFLNK | 0o777);
    made.target = request.target;
    made.size = Buffer.byteLength(request.target);
    return made.entry;
  },
  readlink: ({ nodeid }) => node(nodeid).target,

  link({ nodeid, name, target }) {
    if (children(nodeid).has(name)) throw new FsError("EEXIST");
    add(node(nodeid), name, node(target));
    return node(target).entry;
  },

  unlink({ nodeid, name }) {
    if (child(nodeid, name).children !== null) throw new FsError("EISDIR");
    remove(node(nodeid), name);
  },
  rmdir({ nodeid, name }) {
    const { children } = child(nodeid, name);
    if (children === null) throw new FsError("ENOTDIR");
    if (children.size > 0) throw new FsError("ENOTEMPTY");
    remove(node(nodeid), name);
  },

  rename({ nodeid, name, newParent, newName, flags }) {
    const moved = child(nodeid, name);
    const replaced = children(newParent).get(newName);
    if (moved === replaced) return;
    const [source, target] = [node(nodeid), node(newParent)];
    if (flags === RenameFlag.EXCHANGE) {
      if (replaced === undefined) throw new FsError("ENOENT");
      moved.references += 1;
      replaced.references += 1;
      remove(source, name);
      remove(target, newName);
      add(source, name, replaced);
      add(target, newName, moved);
      moved.references -= 1;
      replaced.references -= 1;
      return;
    }
    if ((flags & ~RenameFlag.NOREPLACE) !== 0) throw new FsError("EINVAL");
    if (replaced !== undefined) {
      if (flags === RenameFlag.NOREPLACE) throw new FsError("EEXIST");
      if (replaced.children === null && moved.children !== null) throw new FsError("ENOTDIR");
      if (replaced.children !== null && moved.children === null) throw new FsError("EISDIR");
      if (replaced.children !== null && replaced.children.size > 0) throw new FsError("ENOTEMPTY");
      remove(target, newName);
    }
    // Between the two it has no name, and must not go.
    moved.references += 1;
    remove(source, name);
    add(target, newName, moved);
    moved.references -= 1;
  },

  // Without `open` every file can be opened. The node is enough: no handles are needed.
  read({ nodeid, offset, size }) {
    const file = node(nodeid);
    return file.data.subarray(Math.min(offset, file.size), Math.min(offset + size, file.size));
  },

  write({ nodeid, offset, data, flags }) {
    const file = node(nodeid);
    const at = (flags & OpenFlag.APPEND) !== 0 ? file.size : offset;
    if (at + data.length > file.size) file.resize(at + data.length);
    data.copy(file.data, at);
    file.touch();
    return data.length;
  },

  fallocate({ nodeid, mode, offset, length }) {
    const file = node(nodeid);
    const end = offset + length;
    const { KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE } = FallocMode;
    if ((mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE)) !== 0) throw new FsError("EOPNOTSUPP");
    if ((mode & KEEP_SIZE) === 0 && end > file.size) file.resize(end);
    if ((mode & (PUNCH_HOLE | ZERO_RANGE)) !== 0) {
      file.data.fill(0, Math.min(offset, file.size), Math.min(end, file.size));
    }
    file.touch();
  },

  // Everything is data, and the hole that each file has at its end.
  lseek({ nodeid, offset, whence }) {
    const { size } = node(nodeid);
    if (offset >= size) throw new FsError("ENXIO");
    return whence === Seek.DATA ? offset : size;
  },

  copyFileRange({ nodeid, offset, targetNodeid, targetOffset, length }) {
    const source = node(nodeid);
    const target = node(targetNodeid);
    const count = Math.max(0, Math.min(length, source.size - offset));
    if (targetOffset + count > target.size) target.resize(targetOffset + count);
    source.data.copy(target.data, targetOffset, offset, offset + count);
    target.touch();
    return count;
  },

  // Offsets count entries here. Reading the same directory while names come and go may miss or repeat some of them.
  readdir({ nodeid, offset }) {
    const directory = node(nodeid);
    const { ino, mode, parent } = directory;
    return [
      { name: ".", ino, mode },
      { name: "..", ino: parent.ino, mode },
      ...[...children(nodeid)].map(([name, { ino, mode }]) => ({ name, ino, mode })),
    ].slice(offset);
  },
  readdirplus({ nodeid, offset }) {
    const { ino, mode, parent } = node(nodeid);
    return (function* () {
      const all = [...children(nodeid)];
      if (offset < 1) yield { name: ".", ino, mode };
      if (offset < 2) yield { name: "..", ino: parent.ino, mode };
      for (const [name, each] of all.slice(Math.max(0, offset - 2))) {
        // The binding asks for one more than fits: it must not be counted as a reference yet.
        const { attributes } = each;
        yield { name, ino: each.ino, mode: each.mode, entry: { nodeid: each.ino, attributes } };
        each.references += 1;
      }
    })();
  },

  statfs: () => ({ blocks: 1 << 20, blocksFree: 1 << 19, files: 1 << 20, filesFree: (1 << 20) - nodes.size }),

  setxattr({ nodeid, name, value, flags }) {
    const { xattrs } = node(nodeid);
    if (flags === XattrFlag.CREATE && xattrs.has(name)) throw new FsError("EEXIST");
    if (flags === XattrFlag.REPLACE && !xattrs.has(name)) throw new FsError("ENODATA");
    xattrs.set(name, value);
  },
  getxattr: ({ nodeid, name }) => node(nodeid).xattrs.get(name) ?? null,
  listxattr: ({ nodeid }) => node(nodeid).xattrs.keys(),
  removexattr({ nodeid, name }) {
    if (!node(nodeid).xattrs.delete(name)) throw new FsError(Errno.ENODATA);
  },
};

const mountpoint = process.argv[2];
if (mountpoint === undefined) {
  process.stderr.write("usage: memory.mjs MOUNTPOINT\n");
  process.exit(2);
}
const mounted = await mount(fileSystem, mountpoint, { type: "memory" });
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => void mounted.unmount({ force: true }));
process.stdout.write(`mounted on ${mounted.path}\n`);
