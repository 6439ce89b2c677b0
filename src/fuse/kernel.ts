/**
 * The kernel's own FUSE structs and constants, as include/uapi/linux/fuse.h declares them up to protocol 7.46.
 *
 * Invariants:
 * - every struct has the kernel's name, size and offsets; nested structs are written out flat. A test compiles all of
 *   this against the system's <linux/fuse.h>;
 * - field names are the kernel's member names in camelCase, and a `padding`, `unused`, `dummy` or `spare` field is
 *   written as zero and ignored when read (the kernel may give it a meaning in a later minor version);
 * - a 64-bit field is a bigint where its whole range is in use: request ids, lock owners, file offsets and sizes, user
 *   pointers. It is a number where the values are this daemon's own or small: node ids, handles, counts. A number field
 *   that holds more than 2^53 - 1 does not decode (CorruptionError, which Request.body() turns into EINVAL);
 * - times are seconds and nanoseconds since 1970. The wire says uint64_t, the kernel stores a time64_t in it, so that
 *   seconds before 1970 are negative: they are declared i64.
 */
import { constants } from "node:fs";
import { big64, bytes, i32, i64, type Struct, struct, u16, u32, u64 } from "../layout/struct.ts";

export const FUSE_MAJOR = 7;
/** The newest minor version that this code knows. */
export const FUSE_MINOR = 46;
/** The oldest minor version that is worked with (Linux 5.4). */
export const FUSE_MINOR_MIN = 31;
/** The node id of the root directory. */
export const FUSE_ROOT_ID = 1;
/** Smallest buffer that read(2) of /dev/fuse accepts, bytes. */
export const FUSE_MIN_READ_BUFFER = 8192;
/** Pages in a request when FUSE_MAX_PAGES was not negotiated (fs/fuse/fuse_i.h). */
export const FUSE_DEFAULT_MAX_PAGES_PER_REQ = 32;
/** Most iovecs, in and out together, in one unrestricted ioctl retry. */
export const FUSE_IOCTL_MAX_IOV = 256;
/** Bit of the request id of a request that the kernel sends again (7.40). The reply carries it, too. */
export const FUSE_UNIQUE_RESEND = 1n << 63n;
/** uid and gid of a request whose owner has no id under the mount's id mapping (7.41). */
export const FUSE_INVALID_UIDGID = 0xffff_ffff;
/** Longest name of a directory entry, bytes (NAME_MAX). */
export const NAME_MAX_BYTES = 255;
/** Longest symbolic link target, bytes, without its NUL (PATH_MAX - 1). */
export const TARGET_MAX_BYTES = 4095;
/** The kernel refuses a reply with an errno from 512 on, and the caller goes on waiting (fuse_dev_do_write). */
export const REPLY_ERRNO_MAX = 511;

// biome-ignore lint/suspicious/noExplicitAny: a struct of any declaration; its own type is recovered by StructValue.
export type AnyStruct = Struct<any>;

// ---------------------------------------------------------------- headers

export const InHeader = struct(
  "fuse_in_header",
  "Starts every request.",
  {
    len: u32("bytes of the whole request, this header included"),
    opcode: u32("Opcode"),
    unique: big64("request id"),
    nodeid: u64("the node that the request is about; 0 where there is none"),
    uid: u32("file system uid of the caller"),
    gid: u32("file system gid of the caller"),
    pid: u32("thread group id of the caller in the daemon's pid namespace, 0 if it has none there"),
    totalExtlen: u16("length of the extensions at the end of the request, in 8-byte units (7.38)"),
    padding: u16("zero"),
  },
  40,
);

export const OutHeader = struct(
  "fuse_out_header",
  "Starts every reply and every notification.",
  {
    len: u32("bytes of the whole reply, this header included"),
    error: i32("0 or a negative errno; the code of a notification"),
    unique: big64("request id; 0 for a notification"),
  },
  16,
);

// ---------------------------------------------------------------- attributes

const attrFields = {
  ino: u64("inode number, shown as st_ino"),
  size: big64("bytes"),
  blocks: u64("allocated space in units of 512 bytes"),
  atime: i64("last access, seconds"),
  mtime: i64("last modification, seconds"),
  ctime: i64("last change of the inode, seconds"),
  atimensec: u32("nanoseconds of atime"),
  mtimensec: u32("nanoseconds of mtime"),
  ctimensec: u32("nanoseconds of ctime"),
  mode: u32("type and permissions, as st_mode"),
  nlink: u32("hard links"),
  uid: u32("owner"),
  gid: u32("group"),
  rdev: u32("device number of a device node, in the kernel's 32-bit encoding (new_encode_dev)"),
  blksize: u32("preferred transfer size, bytes"),
  flags: u32("AttrFlag (7.32)"),
} as const;

export const FuseAttr = struct("fuse_attr", "The attributes of a node.", attrFields, 88);

export const EntryOut = struct(
  "fuse_entry_out",
  "A directory entry and the attributes of its node; counts as one lookup until a FORGET.",
  {
    nodeid: u64("node id; 0 is a negative entry that may be cached"),
    generation: u64("node id and generation together are never used for another file"),
    entryValid: u64("how long the name may be cached, seconds"),
    attrValid: u64("how long the attributes may be cached, seconds"),
    entryValidNsec: u32("nanoseconds of entryValid"),
    attrValidNsec: u32("nanoseconds of attrValid"),
    ...attrFields,
  },
  128,
);

export const GetattrIn = struct(
  "fuse_getattr_in",
  "GETATTR.",
  { getattrFlags: u32("GetattrFlag"), dummy: u32("zero"), fh: u64("file handle, if GetattrFlag.FH") },
  16,
);

export const AttrOut = struct(
  "fuse_attr_out",
  "Reply of GETATTR and SETATTR.",
  {
    attrValid: u64("how long the attributes may be cached, seconds"),
    attrValidNsec: u32("nanoseconds of attrValid"),
    dummy: u32("zero"),
    ...attrFields,
  },
  104,
);

export const SetattrIn = struct(
  "fuse_setattr_in",
  "SETATTR.",
  {
    valid: u32("Fattr: which of the fields below to apply"),
    padding: u32("zero"),
    fh: u64("file handle, if Fattr.FH"),
    size: big64("new size, bytes"),
    lockOwner: big64("lock owner, if Fattr.LOCKOWNER"),
    atime: i64("seconds"),
    mtime: i64("seconds"),
    ctime: i64("seconds"),
    atimensec: u32("nanoseconds"),
    mtimensec: u32("nanoseconds"),
    ctimensec: u32("nanoseconds"),
    mode: u32("new mode"),
    unused4: u32("zero"),
    uid: u32("new owner"),
    gid: u32("new group"),
    unused5: u32("zero"),
  },
  88,
);

export const StatxIn = struct(
  "fuse_statx_in",
  "STATX (7.39).",
  {
    getattrFlags: u32("GetattrFlag"),
    padding: u32("zero"),
    fh: u64("file handle, if GetattrFlag.FH"),
    sxFlags: u32("AT_STATX_* flags of statx(2)"),
    sxMask: u32("STATX_* bits that are asked for"),
  },
  24,
);

export const StatxOut = struct(
  "fuse_statx_out",
  "Reply of STATX (7.39): validity, then struct statx as statx(2) returns it.",
  {
    attrValid: u64("how long the attributes may be cached, seconds"),
    attrValidNsec: u32("nanoseconds of attrValid"),
    flags: u32("zero"),
    spare: bytes(16, "zero"),
    mask: u32("STATX_* bits of the fields that are filled in"),
    blksize: u32("preferred transfer size, bytes"),
    attributes: big64("STATX_ATTR_* bits that are set"),
    nlink: u32("hard links"),
    uid: u32("owner"),
    gid: u32("group"),
    mode: u16("type and permissions"),
    spare0: u16("zero"),
    ino: u64("inode number"),
    size: big64("bytes"),
    blocks: u64("allocated space in units of 512 bytes"),
    attributesMask: big64("STATX_ATTR_* bits that this file system knows"),
    atimeSec: i64("seconds"),
    atimeNsec: u32("nanoseconds"),
    atimePadding: u32("zero"),
    btimeSec: i64("birth, seconds"),
    btimeNsec: u32("nanoseconds"),
    btimePadding: u32("zero"),
    ctimeSec: i64("seconds"),
    ctimeNsec: u32("nanoseconds"),
    ctimePadding: u32("zero"),
    mtimeSec: i64("seconds"),
    mtimeNsec: u32("nanoseconds"),
    mtimePadding: u32("zero"),
    rdevMajor: u32("device node: major"),
    rdevMinor: u32("device node: minor"),
    devMajor: u32("ignored by the kernel"),
    devMinor: u32("ignored by the kernel"),
    spare2: bytes(112, "zero"),
  },
  288,
);

// ---------------------------------------------------------------- names

export const MknodIn = struct(
  "fuse_mknod_in",
  "MKNOD; the name follows.",
  {
    mode: u32("type and permissions, umask applied unless DONT_MASK"),
    rdev: u32("device number"),
    umask: u32("umask of the caller"),
    padding: u32("zero"),
  },
  16,
);

export const MkdirIn = struct(
  "fuse_mkdir_in",
  "MKDIR; the name follows.",
  { mode: u32("permissions, umask applied unless DONT_MASK"), umask: u32("umask of the caller") },
  8,
);

export const RenameIn = struct(
  "fuse_rename_in",
  "RENAME; old and new name follow.",
  { newdir: u64("node id of the target directory") },
  8,
);

export const Rename2In = struct(
  "fuse_rename2_in",
  "RENAME2; old and new name follow.",
  {
    newdir: u64("node id of the target directory"),
    flags: u32("RenameFlag"),
    padding: u32("zero"),
  },
  16,
);

export const LinkIn = struct(
  "fuse_link_in",
  "LINK; the header names the directory, the new name follows.",
  { oldnodeid: u64("the node that gets another name") },
  8,
);

// ---------------------------------------------------------------- open files

export const OpenIn = struct(
  "fuse_open_in",
  "OPEN and OPENDIR.",
  {
    flags: u32("O_* flags without O_CREAT, O_EXCL, O_NOCTTY"),
    openFlags: u32("OpenInFlag (7.33)"),
  },
  8,
);

export const CreateIn = struct(
  "fuse_create_in",
  "CREATE and TMPFILE; a name follows (a placeholder for TMPFILE).",
  {
    flags: u32("O_* flags"),
    mode: u32("permissions, umask applied unless DONT_MASK"),
    umask: u32("umask of the caller"),
    openFlags: u32("OpenInFlag (7.33)"),
  },
  16,
);

export const OpenOut = struct(
  "fuse_open_out",
  "Reply of OPEN and OPENDIR; follows the entry in the reply of CREATE and TMPFILE.",
  {
    fh: u64("file handle, sent back with every request on this open file"),
    openFlags: u32("Fopen"),
    backingId: i32("backing file for Fopen.PASSTHROUGH (7.40), else 0"),
  },
  16,
);

export const ReleaseIn = struct(
  "fuse_release_in",
  "RELEASE and RELEASEDIR: the open file description is gone.",
  {
    fh: u64("file handle"),
    flags: u32("O_* flags"),
    releaseFlags: u32("ReleaseFlag"),
    lockOwner: big64("lock owner, if ReleaseFlag.FLOCK_UNLOCK"),
  },
  24,
);

export const FlushIn = struct(
  "fuse_flush_in",
  "FLUSH: one descriptor of an open file was closed.",
  {
    fh: u64("file handle"),
    unused: u32("zero"),
    padding: u32("zero"),
    lockOwner: big64("lock owner whose POSIX locks end"),
  },
  24,
);

export const ReadIn = struct(
  "fuse_read_in",
  "READ, READDIR, READDIRPLUS.",
  {
    fh: u64("file handle"),
    offset: big64("byte offset; for directories the `off` of the entry before"),
    size: u32("most bytes in the reply"),
    readFlags: u32("ReadFlag"),
    lockOwner: big64("lock owner, if ReadFlag.LOCKOWNER"),
    flags: u32("O_* flags of the open file, as of now"),
    padding: u32("zero"),
  },
  40,
);

export const WriteIn = struct(
  "fuse_write_in",
  "WRITE; `size` bytes of data follow.",
  {
    fh: u64("file handle; a guess if WriteFlag.CACHE"),
    offset: big64("byte offset"),
    size: u32("bytes"),
    writeFlags: u32("WriteFlag"),
    lockOwner: big64("lock owner, if WriteFlag.LOCKOWNER"),
    flags: u32("O_* flags of the open file, as of now"),
    padding: u32("zero"),
  },
  40,
);

export const WriteOut = struct(
  "fuse_write_out",
  "Reply of WRITE and COPY_FILE_RANGE.",
  { size: u32("bytes written"), padding: u32("zero") },
  8,
);

export const FsyncIn = struct(
  "fuse_fsync_in",
  "FSYNC and FSYNCDIR.",
  { fh: u64("file handle"), fsyncFlags: u32("FsyncFlag"), padding: u32("zero") },
  16,
);

export const FallocateIn = struct(
  "fuse_fallocate_in",
  "FALLOCATE.",
  {
    fh: u64("file handle"),
    offset: big64("byte offset"),
    length: big64("bytes"),
    mode: u32("FallocMode"),
    padding: u32("zero"),
  },
  32,
);

export const LseekIn = struct(
  "fuse_lseek_in",
  "LSEEK: only SEEK_DATA and SEEK_HOLE reach the daemon.",
  {
    fh: u64("file handle"),
    offset: i64("byte offset, negative if the caller said so (the wire type is unsigned)"),
    whence: u32("Seek"),
    padding: u32("zero"),
  },
  24,
);

export const LseekOut = struct("fuse_lseek_out", "Reply of LSEEK.", { offset: big64("byte offset") }, 8);

export const CopyFileRangeIn = struct(
  "fuse_copy_file_range_in",
  "COPY_FILE_RANGE and COPY_FILE_RANGE_64; the header names the source node.",
  {
    fhIn: u64("source file handle"),
    offIn: big64("byte offset in the source"),
    nodeidOut: u64("target node"),
    fhOut: u64("target file handle"),
    offOut: big64("byte offset in the target"),
    len: big64("bytes"),
    flags: big64("flags of copy_file_range(2), 0 so far"),
  },
  56,
);

export const CopyFileRangeOut = struct(
  "fuse_copy_file_range_out",
  "Reply of COPY_FILE_RANGE_64 (7.45).",
  { bytesCopied: big64("bytes") },
  8,
);

export const BmapIn = struct(
  "fuse_bmap_in",
  "BMAP (FIBMAP, swap files): block number in the file to block number on the device.",
  { block: u64("block in the file"), blocksize: u32("bytes"), padding: u32("zero") },
  16,
);

export const BmapOut = struct("fuse_bmap_out", "Reply of BMAP.", { block: u64("block on the device") }, 8);

// ---------------------------------------------------------------- whole file system, extended attributes, locks

const kstatfsFields = {
  blocks: u64("size in units of frsize"),
  bfree: u64("free, in units of frsize"),
  bavail: u64("free for unprivileged users, in units of frsize"),
  files: u64("inodes"),
  ffree: u64("free inodes"),
  bsize: u32("preferred transfer size, bytes"),
  namelen: u32("longest name, bytes"),
  frsize: u32("unit of the block counts, bytes"),
  padding: u32("zero"),
  spare: bytes(24, "zero"),
} as const;

export const Kstatfs = struct("fuse_kstatfs", "What statfs(2) tells.", kstatfsFields, 80);
export const StatfsOut = struct("fuse_statfs_out", "Reply of STATFS.", kstatfsFields, 80);

export const SetxattrIn = struct(
  "fuse_setxattr_in",
  "SETXATTR; name and value follow. Without SETXATTR_EXT only the first 8 bytes are sent.",
  {
    size: u32("bytes of the value"),
    flags: u32("XattrFlag"),
    setxattrFlags: u32("SetxattrFlag (7.33)"),
    padding: u32("zero"),
  },
  16,
);
/** Size of SetxattrIn when SETXATTR_EXT was not negotiated (FUSE_COMPAT_SETXATTR_IN_SIZE). */
export const SETXATTR_IN_COMPAT_BYTES = 8;

export const GetxattrIn = struct(
  "fuse_getxattr_in",
  "GETXATTR (a name follows) and LISTXATTR.",
  {
    size: u32("most bytes in the reply; 0 asks for the length, answered with GetxattrOut"),
    padding: u32("zero"),
  },
  8,
);

export const GetxattrOut = struct(
  "fuse_getxattr_out",
  "Reply of GETXATTR and LISTXATTR with size 0.",
  { size: u32("bytes of the value or the list"), padding: u32("zero") },
  8,
);

const fileLockFields = {
  start: big64("first byte"),
  end: big64("last byte, inclusive; 2^63 - 1 is the end of the file"),
  type: u32("LockType"),
  pid: u32("thread group id of the holder"),
} as const;

export const LkIn = struct(
  "fuse_lk_in",
  "GETLK, SETLK, SETLKW.",
  {
    fh: u64("file handle"),
    owner: big64("lock owner"),
    ...fileLockFields,
    lkFlags: u32("LkFlag"),
    padding: u32("zero"),
  },
  48,
);

export const LkOut = struct("fuse_lk_out", "Reply of GETLK.", fileLockFields, 24);

export const AccessIn = struct(
  "fuse_access_in",
  "ACCESS.",
  { mask: u32("R_OK 4, W_OK 2, X_OK 1"), padding: u32("zero") },
  8,
);

export const SyncfsIn = struct("fuse_syncfs_in", "SYNCFS (7.34).", { padding: u64("zero") }, 8);

// ---------------------------------------------------------------- life of the connection

export const InitIn = struct(
  "fuse_init_in",
  "INIT. Kernels before 7.36 send the first 16 bytes.",
  {
    major: u32("protocol version of the kernel"),
    minor: u32("protocol version of the kernel"),
    maxReadahead: u32("bytes"),
    flags: u32("InitBit 0 to 31"),
    flags2: u32("InitBit 32 to 63, if INIT_EXT (7.36)"),
    unused: bytes(44, "zero"),
  },
  64,
);

export const InitOut = struct(
  "fuse_init_out",
  "Reply of INIT.",
  {
    major: u32("protocol version of the daemon"),
    minor: u32("protocol version that both use"),
    maxReadahead: u32("bytes, at most what the kernel said"),
    flags: u32("InitBit 0 to 31 that both want"),
    maxBackground: u16("most background requests under way"),
    congestionThreshold: u16("background requests from which on the mount counts as congested"),
    maxWrite: u32("most bytes in one WRITE"),
    timeGran: u32("granularity of time stamps, nanoseconds, a power of ten up to 10^9"),
    maxPages: u16("most pages in one request, if MAX_PAGES (7.28)"),
    mapAlignment: u16("log2 of the alignment in SETUPMAPPING, if MAP_ALIGNMENT (7.31)"),
    flags2: u32("InitBit 32 to 63 that both want, if INIT_EXT (7.36)"),
    maxStackDepth: u32("how deep passthrough may be stacked, if PASSTHROUGH (7.40)"),
    requestTimeout: u16("seconds after which the kernel aborts the connection, if REQUEST_TIMEOUT (7.43)"),
    unused: bytes(22, "zero"),
  },
  64,
);

export const InterruptIn = struct(
  "fuse_interrupt_in",
  "INTERRUPT.",
  { unique: big64("id of the request whose caller got a signal") },
  8,
);

export const ForgetIn = struct(
  "fuse_forget_in",
  "FORGET: the kernel drops lookups of the node in the header. Never answered.",
  { nlookup: u64("how many lookups") },
  8,
);

export const ForgetOne = struct(
  "fuse_forget_one",
  "One element of BATCH_FORGET.",
  { nodeid: u64("node id"), nlookup: u64("how many lookups") },
  16,
);

export const BatchForgetIn = struct(
  "fuse_batch_forget_in",
  "BATCH_FORGET; `count` ForgetOne follow. Never answered.",
  { count: u32("elements"), dummy: u32("zero") },
  8,
);

// ---------------------------------------------------------------- ioctl and poll

export const IoctlIn = struct(
  "fuse_ioctl_in",
  "IOCTL; `inSize` bytes follow.",
  {
    fh: u64("file handle"),
    flags: u32("IoctlFlag"),
    cmd: u32("ioctl number"),
    arg: big64("the argument as the caller gave it: a user pointer or any number"),
    inSize: u32("bytes that follow"),
    outSize: u32("most bytes after IoctlOut in the reply"),
  },
  32,
);

export const IoctlIovec = struct(
  "fuse_ioctl_iovec",
  "User memory that an unrestricted ioctl asks for.",
  { base: big64("user address"), len: big64("bytes") },
  16,
);

export const IoctlOut = struct(
  "fuse_ioctl_out",
  "Reply of IOCTL; bytes for the caller follow.",
  {
    result: i32("return value of the ioctl; a negative errno fails it"),
    flags: u32("IoctlFlag.RETRY or 0"),
    inIovs: u32("iovecs to read, with RETRY"),
    outIovs: u32("iovecs to write, with RETRY"),
  },
  16,
);

export const PollIn = struct(
  "fuse_poll_in",
  "POLL.",
  {
    fh: u64("file handle"),
    kh: u64("the kernel's handle, for the wake-up"),
    flags: u32("PollFlag"),
    events: u32("PollEvent bits that are asked for (7.21)"),
  },
  24,
);

export const PollOut = struct(
  "fuse_poll_out",
  "Reply of POLL.",
  { revents: u32("PollEvent bits that are true now"), padding: u32("zero") },
  8,
);

// ---------------------------------------------------------------- directory reading

export const Dirent = struct(
  "fuse_dirent",
  "One entry in the reply of READDIR; the name follows, then zeros up to a multiple of 8 bytes.",
  {
    ino: u64("inode number"),
    off: u64("where to continue after this entry"),
    namelen: u32("bytes of the name, no NUL"),
    type: u32("DT_* type: (mode >> 12) & 15"),
  },
  24,
);

export const Direntplus = struct(
  "fuse_direntplus",
  "One entry in the reply of READDIRPLUS: an EntryOut, then a Dirent. Counts as a lookup unless nodeid is 0.",
  {
    nodeid: u64("node id; 0: no node (for . and ..)"),
    generation: u64("generation"),
    entryValid: u64("seconds"),
    attrValid: u64("seconds"),
    entryValidNsec: u32("nanoseconds"),
    attrValidNsec: u32("nanoseconds"),
    ...attrFields,
    direntIno: u64("inode number"),
    direntOff: u64("where to continue after this entry"),
    direntNamelen: u32("bytes of the name, no NUL"),
    direntType: u32("DT_* type"),
  },
  152,
);

// ---------------------------------------------------------------- notifications

export const NotifyPollWakeupOut = struct(
  "fuse_notify_poll_wakeup_out",
  "NOTIFY_POLL.",
  { kh: u64("the kernel's handle from PollIn") },
  8,
);

export const NotifyInvalInodeOut = struct(
  "fuse_notify_inval_inode_out",
  "NOTIFY_INVAL_INODE.",
  {
    ino: u64("node id"),
    off: i64("first byte of cached data to drop; negative: attributes only"),
    len: i64("bytes; 0 or less: up to the end"),
  },
  24,
);

export const NotifyInvalEntryOut = struct(
  "fuse_notify_inval_entry_out",
  "NOTIFY_INVAL_ENTRY; the name and a NUL follow.",
  {
    parent: u64("node id of the directory"),
    namelen: u32("bytes of the name, without the NUL"),
    flags: u32("InvalEntryFlag (7.38)"),
  },
  16,
);

export const NotifyDeleteOut = struct(
  "fuse_notify_delete_out",
  "NOTIFY_DELETE; the name and a NUL follow.",
  {
    parent: u64("node id of the directory"),
    child: u64("node id that the name must still stand for"),
    namelen: u32("bytes of the name, without the NUL"),
    padding: u32("zero"),
  },
  24,
);

export const NotifyStoreOut = struct(
  "fuse_notify_store_out",
  "NOTIFY_STORE; the bytes follow.",
  {
    nodeid: u64("node id"),
    offset: big64("byte offset of the first; the file becomes as long as they reach"),
    size: u32("bytes that follow"),
    padding: u32("zero"),
  },
  24,
);

export const NotifyRetrieveIn = struct(
  "fuse_notify_retrieve_in",
  "NOTIFY_REPLY: the answer to a retrieve notification; data follows.",
  {
    dummy1: big64("zero"),
    offset: big64("byte offset"),
    size: u32("bytes that follow"),
    dummy2: u32("zero"),
    dummy3: big64("zero"),
    dummy4: big64("zero"),
  },
  40,
);

// ---------------------------------------------------------------- virtiofs DAX windows, passthrough, extensions

export const SetupmappingIn = struct(
  "fuse_setupmapping_in",
  "SETUPMAPPING: virtiofs only.",
  {
    fh: u64("file handle"),
    foffset: big64("byte offset in the file"),
    len: big64("bytes"),
    flags: big64("1 write, 2 read"),
    moffset: big64("byte offset in the window"),
  },
  40,
);

export const RemovemappingIn = struct(
  "fuse_removemapping_in",
  "REMOVEMAPPING: virtiofs only; `count` pairs of window offset and length follow.",
  { count: u32("elements") },
  4,
);

export const BackingMap = struct(
  "fuse_backing_map",
  "Argument of FUSE_DEV_IOC_BACKING_OPEN (7.40).",
  { fd: i32("descriptor of the backing file"), flags: u32("zero"), padding: u64("zero") },
  16,
);

export const ExtHeader = struct(
  "fuse_ext_header",
  "Starts an extension at the end of a request (7.38).",
  { size: u32("bytes of the extension, this header included"), type: u32("ExtType") },
  8,
);

/** Every struct, for the compile-time check against the system's header and for documentation. */
export const kernelStructs: readonly AnyStruct[] = [
  InHeader,
  OutHeader,
  FuseAttr,
  EntryOut,
  GetattrIn,
  AttrOut,
  SetattrIn,
  StatxIn,
  StatxOut,
  MknodIn,
  MkdirIn,
  RenameIn,
  Rename2In,
  LinkIn,
  OpenIn,
  CreateIn,
  OpenOut,
  ReleaseIn,
  FlushIn,
  ReadIn,
  WriteIn,
  WriteOut,
  FsyncIn,
  FallocateIn,
  LseekIn,
  LseekOut,
  CopyFileRangeIn,
  CopyFileRangeOut,
  BmapIn,
  BmapOut,
  Kstatfs,
  StatfsOut,
  SetxattrIn,
  GetxattrIn,
  GetxattrOut,
  LkIn,
  LkOut,
  AccessIn,
  SyncfsIn,
  InitIn,
  InitOut,
  InterruptIn,
  ForgetIn,
  ForgetOne,
  BatchForgetIn,
  IoctlIn,
  IoctlIovec,
  IoctlOut,
  PollIn,
  PollOut,
  Dirent,
  Direntplus,
  NotifyPollWakeupOut,
  NotifyInvalInodeOut,
  NotifyInvalEntryOut,
  NotifyDeleteOut,
  NotifyStoreOut,
  NotifyRetrieveIn,
  SetupmappingIn,
  RemovemappingIn,
  BackingMap,
  ExtHeader,
];

// ---------------------------------------------------------------- constants

/** FUSE_* opcodes (enum fuse_opcode). */
export const Opcode = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  READLINK: 5,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  GETXATTR: 22,
  LISTXATTR: 23,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  GETLK: 31,
  SETLK: 32,
  SETLKW: 33,
  ACCESS: 34,
  CREATE: 35,
  INTERRUPT: 36,
  BMAP: 37,
  DESTROY: 38,
  IOCTL: 39,
  POLL: 40,
  NOTIFY_REPLY: 41,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  READDIRPLUS: 44,
  RENAME2: 45,
  LSEEK: 46,
  COPY_FILE_RANGE: 47,
  SETUPMAPPING: 48,
  REMOVEMAPPING: 49,
  SYNCFS: 50,
  TMPFILE: 51,
  STATX: 52,
  COPY_FILE_RANGE_64: 53,
} as const;
export type OpcodeName = keyof typeof Opcode;
export type OpcodeValue = (typeof Opcode)[OpcodeName];

/**
 * FUSE_* INIT flags as bit positions: 0 to 31 lie in `flags`, 32 to 63 in `flags2` (shifted down by 32).
 * Positions, because JavaScript's bit operators stop at 32 bits.
 */
export const InitBit = {
  ASYNC_READ: 0,
  POSIX_LOCKS: 1,
  FILE_OPS: 2,
  ATOMIC_O_TRUNC: 3,
  EXPORT_SUPPORT: 4,
  BIG_WRITES: 5,
  DONT_MASK: 6,
  SPLICE_WRITE: 7,
  SPLICE_MOVE: 8,
  SPLICE_READ: 9,
  FLOCK_LOCKS: 10,
  HAS_IOCTL_DIR: 11,
  AUTO_INVAL_DATA: 12,
  DO_READDIRPLUS: 13,
  READDIRPLUS_AUTO: 14,
  ASYNC_DIO: 15,
  WRITEBACK_CACHE: 16,
  NO_OPEN_SUPPORT: 17,
  PARALLEL_DIROPS: 18,
  HANDLE_KILLPRIV: 19,
  POSIX_ACL: 20,
  ABORT_ERROR: 21,
  MAX_PAGES: 22,
  CACHE_SYMLINKS: 23,
  NO_OPENDIR_SUPPORT: 24,
  EXPLICIT_INVAL_DATA: 25,
  MAP_ALIGNMENT: 26,
  SUBMOUNTS: 27,
  HANDLE_KILLPRIV_V2: 28,
  SETXATTR_EXT: 29,
  INIT_EXT: 30,
  INIT_RESERVED: 31,
  SECURITY_CTX: 32,
  HAS_INODE_DAX: 33,
  CREATE_SUPP_GROUP: 34,
  HAS_EXPIRE_ONLY: 35,
  DIRECT_IO_ALLOW_MMAP: 36,
  PASSTHROUGH: 37,
  NO_EXPORT_SUPPORT: 38,
  HAS_RESEND: 39,
  ALLOW_IDMAP: 40,
  OVER_IO_URING: 41,
  REQUEST_TIMEOUT: 42,
  HAS_IO_URING_BUFPOOL: 43,
} as const;
export type InitFlagName = keyof typeof InitBit;

/** FATTR_*: which fields of SetattrIn count. */
export const Fattr = {
  MODE: 1 << 0,
  UID: 1 << 1,
  GID: 1 << 2,
  SIZE: 1 << 3,
  ATIME: 1 << 4,
  MTIME: 1 << 5,
  FH: 1 << 6,
  /** Set with ATIME: use the daemon's clock. */
  ATIME_NOW: 1 << 7,
  MTIME_NOW: 1 << 8,
  LOCKOWNER: 1 << 9,
  /** Set under WRITEBACK_CACHE only: the kernel is the one that keeps times. */
  CTIME: 1 << 10,
  /** With SIZE under HANDLE_KILLPRIV_V2: strip setuid, and setgid if group-executable. */
  KILL_SUIDGID: 1 << 11,
} as const;

/** FOPEN_*: flags of OpenOut. */
export const Fopen = {
  DIRECT_IO: 1 << 0,
  KEEP_CACHE: 1 << 1,
  NONSEEKABLE: 1 << 2,
  CACHE_DIR: 1 << 3,
  STREAM: 1 << 4,
  NOFLUSH: 1 << 5,
  PARALLEL_DIRECT_WRITES: 1 << 6,
  PASSTHROUGH: 1 << 7,
  IO_URING_ZERO_COPY: 1 << 8,
} as const;

/** FUSE_OPEN_*: `openFlags` of OpenIn and CreateIn. */
export const OpenInFlag = { KILL_SUIDGID: 1 << 0 } as const;
/** FUSE_RELEASE_*. */
export const ReleaseFlag = { FLUSH: 1 << 0, FLOCK_UNLOCK: 1 << 1 } as const;
/** FUSE_GETATTR_*. */
export const GetattrFlag = { FH: 1 << 0 } as const;
/** FUSE_LK_*. */
export const LkFlag = { FLOCK: 1 << 0 } as const;
/** FUSE_WRITE_*. */
export const WriteFlag = {
  /** Written back from the page cache: the handle is a guess and the caller's ids are not the writer's. */
  CACHE: 1 << 0,
  LOCKOWNER: 1 << 1,
  KILL_SUIDGID: 1 << 2,
} as const;
/** FUSE_READ_*. */
export const ReadFlag = { LOCKOWNER: 1 << 1 } as const;
/** FUSE_IOCTL_*. */
export const IoctlFlag = {
  COMPAT: 1 << 0,
  UNRESTRICTED: 1 << 1,
  RETRY: 1 << 2,
  BIT32: 1 << 3,
  DIR: 1 << 4,
  COMPAT_X32: 1 << 5,
} as const;
/** FUSE_POLL_*. */
export const PollFlag = { SCHEDULE_NOTIFY: 1 << 0 } as const;
/** FUSE_FSYNC_*. */
export const FsyncFlag = { FDATASYNC: 1 << 0 } as const;
/** FUSE_ATTR_*: flags of FuseAttr. */
export const AttrFlag = { SUBMOUNT: 1 << 0, DAX: 1 << 1 } as const;
/** FUSE_SETXATTR_*. */
export const SetxattrFlag = { ACL_KILL_SGID: 1 << 0 } as const;
/** Flags of NotifyInvalEntryOut: FUSE_EXPIRE_ONLY. */
export const InvalEntryFlag = { EXPIRE_ONLY: 1 << 0 } as const;
/** enum fuse_ext_type: up to 31 security contexts, 32 supplementary groups. */
export const ExtType = { MAX_NR_SECCTX: 31, GROUPS: 32 } as const;

/** enum fuse_notify_code. */
export const NotifyCode = {
  POLL: 1,
  INVAL_INODE: 2,
  INVAL_ENTRY: 3,
  STORE: 4,
  RETRIEVE: 5,
  DELETE: 6,
  RESEND: 7,
  INC_EPOCH: 8,
  PRUNE: 9,
} as const;

/** RENAME_* of renameat2(2), linux/fs.h. */
export const RenameFlag = { NOREPLACE: 1 << 0, EXCHANGE: 1 << 1, WHITEOUT: 1 << 2 } as const;

/** FALLOC_FL_*, linux/falloc.h. */
export const FallocMode = {
  KEEP_SIZE: 0x01,
  PUNCH_HOLE: 0x02,
  NO_HIDE_STALE: 0x04,
  COLLAPSE_RANGE: 0x08,
  ZERO_RANGE: 0x10,
  INSERT_RANGE: 0x20,
  UNSHARE_RANGE: 0x40,
  WRITE_ZEROES: 0x80,
} as const;

/** SEEK_*, linux/fs.h. */
export const Seek = { SET: 0, CUR: 1, END: 2, DATA: 3, HOLE: 4 } as const;
/** XATTR_CREATE and XATTR_REPLACE, linux/xattr.h. */
export const XattrFlag = { CREATE: 1, REPLACE: 2 } as const;
/** F_RDLCK and so on, asm-generic/fcntl.h. */
export const LockType = { READ: 0, WRITE: 1, UNLOCK: 2 } as const;
/** POLL* of poll(2), asm-generic/poll.h. */
export const PollEvent = {
  IN: 0x0001,
  PRI: 0x0002,
  OUT: 0x0004,
  ERR: 0x0008,
  HUP: 0x0010,
  RDNORM: 0x0040,
  RDBAND: 0x0080,
  WRNORM: 0x0100,
  WRBAND: 0x0200,
  RDHUP: 0x2000,
} as const;

/** O_* of open(2). DIRECT, DIRECTORY and NOFOLLOW differ between x86-64 and aarch64, so Node says them. */
export const OpenFlag = {
  ACCMODE: 0o3,
  RDONLY: constants.O_RDONLY,
  WRONLY: constants.O_WRONLY,
  RDWR: constants.O_RDWR,
  /** Opened by execve(2): the kernel's __FMODE_EXEC, which FUSE passes on. */
  EXEC: 0x20,
  CREAT: constants.O_CREAT,
  EXCL: constants.O_EXCL,
  TRUNC: constants.O_TRUNC,
  APPEND: constants.O_APPEND,
  NONBLOCK: constants.O_NONBLOCK,
  DSYNC: constants.O_DSYNC,
  SYNC: constants.O_SYNC,
  DIRECT: constants.O_DIRECT,
  DIRECTORY: constants.O_DIRECTORY,
  NOFOLLOW: constants.O_NOFOLLOW,
  NOATIME: constants.O_NOATIME,
} as const;

/** ioctls of /dev/fuse itself: _IOR/_IOW/_IO(229, n, …), x86-64 and aarch64 alike. */
export const DeviceIoctl = {
  CLONE: 0x8004_e500,
  BACKING_OPEN: 0x4010_e501,
  BACKING_CLOSE: 0x4004_e502,
  SYNC_INIT: 0x0000_e503,
} as const;
