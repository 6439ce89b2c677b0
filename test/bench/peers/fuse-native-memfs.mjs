/**
 * A peer: an in-memory file system on the npm package fuse-native, as fast as one reasonably writes it there.
 *
 *   node fuse-native-memfs.mjs MOUNTPOINT [--tuned]
 *
 * A table from path to node, one Buffer per file (growing by doubling), an array of open nodes. Nothing waits: every
 * callback is called before the operation returns. fuse-native's own time-out per request, which costs a timer each, is off.
 * With --tuned it also gets the mount options that would help it but that fuse-native's interface has no word for.
 * Ends when its standard input ends, so that it does not outlive whoever started it.
 */
import { createRequire } from "node:module";

const Fuse = createRequire(import.meta.url)("fuse-native");
const mountpoint = process.argv[2];
const tuned = process.argv[3] === "--tuned";

const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const BLOCK = 4096;
const empty = Buffer.alloc(0);

let lastIno = 0;

class Node {
  constructor(mode) {
    const now = Date.now();
    lastIno += 1;
    this.mode = mode;
    this.uid = process.getuid();
    this.gid = process.getgid();
    this.size = 0;
    this.nlink = (mode & S_IFMT) === S_IFDIR ? 2 : 1;
    this.ino = lastIno;
    this.atime = now;
    this.mtime = now;
    this.ctime = now;
    this.blksize = BLOCK;
    this.data = empty;
    /** Names of a directory's entries; path by path they are in the table. */
    this.names = (mode & S_IFMT) === S_IFDIR ? new Set() : undefined;
  }

  get blocks() {
    return Math.ceil(this.size / 512);
  }

  /** Bytes beyond the size are always zero: growing is only a number, up to what is allocated. */
  reserve(bytes) {
    if (bytes <= this.data.length) return;
    const grown = Buffer.alloc(Math.max(bytes, this.data.length * 2, BLOCK));
    this.data.copy(grown, 0, 0, this.size);
    this.data = grown;
  }

  resize(bytes) {
    if (bytes > this.size) this.reserve(bytes);
    else this.data.fill(0, bytes, this.size);
    this.size = bytes;
  }
}

const root = new Node(S_IFDIR | 0o755);
const table = new Map([["/", root]]);

/** fuse-native takes a handle of 0 for none. */
const open = [undefined];
const free = [];

function openNode(node) {
  const fd = free.pop() ?? open.length;
  open[fd] = node;
  return fd;
}

const cutAt = (path) => path.lastIndexOf("/");
const parentOf = (path) => table.get(path.slice(0, cutAt(path)) || "/");
const nameOf = (path) => path.slice(cutAt(path) + 1);

function add(path, node) {
  const parent = parentOf(path);
  parent.names.add(nameOf(path));
  parent.mtime = Date.now();
  table.set(path, node);
}

function remove(path) {
  const parent = parentOf(path);
  parent.names.delete(nameOf(path));
  parent.mtime = Date.now();
  table.delete(path);
}

const operations = {
  getattr(path, done) {
    const node = table.get(path);
    if (node === undefined) done(Fuse.ENOENT);
    else done(0, node);
  },
  fgetattr(path, _fd, done) {
    operations.getattr(path, done);
  },
  readdir(path, done) {
    const node = table.get(path);
    if (node === undefined) done(Fuse.ENOENT);
    else done(0, [".", "..", ...node.names]);
  },
  open(path, _flags, done) {
    const node = table.get(path);
    if (node === undefined) done(Fuse.ENOENT);
    else done(0, openNode(node));
  },
  create(path, mode, done) {
    const node = new Node((mode & ~S_IFMT) | S_IFREG);
    add(path, node);
    done(0, openNode(node));
  },
  release(_path, fd, done) {
    open[fd] = undefined;
    free.push(fd);
    done(0);
  },
  read(_path, fd, buffer, length, position, done) {
    const node = open[fd];
    const end = Math.min(position + length, node.size);
    done(end <= position ? 0 : node.data.copy(buffer, 0, position, end));
  },
  write(_path, fd, buffer, length, position, done) {
    const node = open[fd];
    node.reserve(position + length);
    buffer.copy(node.data, position, 0, length);
    if (position + length > node.size) node.size = position + length;
    node.mtime = Date.now();
    done(length);
  },
  truncate(path, size, done) {
    const node = table.get(path);
    if (node === undefined) return done(Fuse.ENOENT);
    node.resize(size);
    node.mtime = Date.now();
    done(0);
  },
  ftruncate(_path, fd, size, done) {
    open[fd].resize(size);
    open[fd].mtime = Date.now();
    done(0);
  },
  unlink(path, done) {
    if (!table.has(path)) return done(Fuse.ENOENT);
    remove(path);
    done(0);
  },
  mkdir(path, mode, done) {
    add(path, new Node((mode & ~S_IFMT) | S_IFDIR));
    done(0);
  },
  rmdir(path, done) {
    const node = table.get(path);
    if (node === undefined) return done(Fuse.ENOENT);
    if (node.names.size > 0) return done(Fuse.ENOTEMPTY);
    remove(path);
    done(0);
  },
  rename(source, target, done) {
    const node = table.get(source);
    if (node === undefined) return done(Fuse.ENOENT);
    if (node.names !== undefined) {
      const below = [...table.keys()].filter((path) => path.startsWith(`${source}/`));
      for (const path of below) {
        table.set(target + path.slice(source.length), table.get(path));
        table.delete(path);
      }
    }
    remove(source);
    add(target, node);
    done(0);
  },
  chmod(path, mode, done) {
    const node = table.get(path);
    if (node === undefined) return done(Fuse.ENOENT);
    node.mode = (node.mode & S_IFMT) | (mode & ~S_IFMT);
    done(0);
  },
  chown(path, uid, gid, done) {
    const node = table.get(path);
    if (node === undefined) return done(Fuse.ENOENT);
    if (uid !== 0xffffffff) node.uid = uid;
    if (gid !== 0xffffffff) node.gid = gid;
    done(0);
  },
  utimens(path, atime, mtime, done) {
    const node = table.get(path);
    if (node === undefined) return done(Fuse.ENOENT);
    node.atime = atime;
    node.mtime = mtime;
    done(0);
  },
  statfs(_path, done) {
    const blocks = 1 << 20;
    done(0, {
      bsize: BLOCK,
      frsize: BLOCK,
      blocks,
      bfree: blocks,
      bavail: blocks,
      files: 1 << 20,
      ffree: 1 << 20,
      favail: 1 << 20,
      namemax: 255,
    });
  },
};

/** fuse-native passes on only the options that it knows; libfuse 2.9 below it knows these as well. */
class TunedFuse extends Fuse {
  _fuseOptions() {
    return `${super._fuseOptions()},direct_io,big_writes,max_write=131072,hard_remove,use_ino`;
  }
}

const options = {
  timeout: false,
  fsname: "fuse-native-memfs",
  // Nothing but this mount changes the files: what the kernel knows of them stays true.
  entryTimeout: 3600,
  attrTimeout: 3600,
  defaultPermissions: true,
  // Only root may ask for it, and mapdirect's mounts by root have it too.
  allowOther: process.getuid() === 0,
};
const fuse = new (tuned ? TunedFuse : Fuse)(mountpoint, operations, options);
fuse.mount((error) => {
  if (error) {
    process.stderr.write(`${error.message}\n`);
    process.exit(1);
  }
});

process.stdin.resume();
process.stdin.on("end", () => Fuse.unmount(mountpoint, () => process.exit(0)));
