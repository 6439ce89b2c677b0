/*
 * Which files lie on a mapdirect mount, and on which region.
 *
 * The daemon says so once for each mount (REGION); after that its answer is known, by the number of the mount, which
 * the kernel gives to no other (STATX_MNT_ID_UNIQUE, Linux 6.8). An answer stays true while the mount lives: where the
 * region is, how it is made durable and whether it may be written are settled when the daemon starts. Where the kernel
 * has no such numbers, the daemon is asked each time.
 *
 * What is asked of the kernel here costs no request to the daemon: type, device and inode number of an open file never
 * change, and of its size the kernel knows better than anybody.
 */
#include "internal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "syscall.h"

#define FUSE_MAGIC 0x65735546

/* Newer than the headers of the build machine. */
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000u
#endif
/* struct statx of linux/stat.h, whose name sys/stat.h has taken. */
struct kernel_statx {
  uint32_t mask;
  uint32_t block_bytes;
  uint64_t attributes;
  uint32_t links;
  uint32_t uid;
  uint32_t gid;
  uint16_t mode;
  uint16_t spare0;
  uint64_t inode;
  uint64_t bytes;
  uint64_t blocks;
  uint64_t attributes_mask;
  uint64_t times[8];
  uint32_t device_of_file[2];
  uint32_t device_major;
  uint32_t device_minor;
  uint64_t mount_id;
  uint64_t spare[13];
};
_Static_assert(sizeof(struct kernel_statx) == 256, "as the kernel has it");
_Static_assert(offsetof(struct kernel_statx, mount_id) == 0x90, "as the kernel has it");

/* Never changed after it is in the list, but for the mounter, and never freed. */
struct known_mount {
  struct known_mount *next;
  uint64_t mount_id;
  _Atomic int64_t mounter; /* user id; -1: not looked up yet */
  struct mapdirect_wire_region region;
};

/* A program that sees more mounts than this asks again for the others. */
#define KNOWN_MAX 16u

static _Atomic(struct known_mount *) known;
static _Atomic uint32_t known_count;

static struct known_mount *find(uint64_t mount_id) {
  struct known_mount *mount = atomic_load_explicit(&known, memory_order_acquire);
  while (mount != NULL && mount->mount_id != mount_id)
    mount = mount->next;
  return mount;
}

/* Two threads may both remember the same: harmless. */
static void remember(uint64_t mount_id, const struct mapdirect_wire_region *region) {
  if (atomic_fetch_add_explicit(&known_count, 1, memory_order_relaxed) >= KNOWN_MAX) return;
  struct known_mount *mount = page_alloc(round_up(sizeof *mount, page_bytes()));
  if (mount == NULL) return;
  mount->mount_id = mount_id;
  mount->mounter = -1;
  mount->region = *region;
  mount->next = atomic_load_explicit(&known, memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(&known, &mount->next, mount, memory_order_release,
                                                memory_order_relaxed))
    continue;
}

int file_facts_of(int fd, struct file_facts *facts) {
  struct kernel_statx status = {0};
  const unsigned wanted = STATX_TYPE | STATX_INO | STATX_SIZE;
  const int how = AT_EMPTY_PATH | AT_STATX_DONT_SYNC;
  long result = raw_syscall(SYS_statx, fd, (long)"", how, wanted | STATX_MNT_ID_UNIQUE, (long)&status, 0);
  if (result != 0) return (int)result;
  *facts = (struct file_facts){
      .device = makedev(status.device_major, status.device_minor),
      .inode = status.inode,
      .bytes = status.bytes,
      .mount_id = (status.mask & STATX_MNT_ID_UNIQUE) != 0 ? status.mount_id : 0,
  };
  return S_ISREG(status.mode) ? 0 : -EOPNOTSUPP;
}

static int ask(int fd, struct mapdirect_wire_region *region) {
  struct statfs filesystem;
  /* ioctl numbers mean something else to other files: ask only what can be ours. */
  if (fstatfs(fd, &filesystem) != 0) return -errno;
  if ((unsigned long)filesystem.f_type != FUSE_MAGIC) return -EOPNOTSUPP;
  memset(region, 0, sizeof *region);
  if (ioctl(fd, (unsigned long)MAPDIRECT_IOCTL_REGION, region) != 0) {
    switch (errno) {
    case EIO:
    case EINTR:
    case ENOMEM:
    case ENOTCONN:
    case ECONNABORTED:
    case ECANCELED: /* the daemon died while it was on its way, over io_uring */
      return -errno;
    default:
      return -EOPNOTSUPP; /* a FUSE file system, but not this one */
    }
  }
  if (region->version != MAPDIRECT_WIRE_VERSION) return -EOPNOTSUPP;
  if (region->path_bytes == 0 || region->path_bytes >= sizeof region->path) return -EOPNOTSUPP;
  if (region->path[0] != '/' || region->path[region->path_bytes] != 0) return -EOPNOTSUPP;
  return 0;
}

int region_of(int fd, struct file_facts *facts, struct mapdirect_wire_region *region) {
  int error = file_facts_of(fd, facts);
  if (error != 0) return error;
  const struct known_mount *mount = facts->mount_id == 0 ? NULL : find(facts->mount_id);
  if (mount != NULL) {
    *region = mount->region;
    return 0;
  }
  error = ask(fd, region);
  if (error == 0 && facts->mount_id != 0) remember(facts->mount_id, region);
  return error;
}

/* ---- who mounted */

#define MOUNT_BYTES (64u << 10) /* two paths of PATH_MAX, each byte escaped as \\ooo, and options */

struct mounter {
  dev_t device;
  int64_t uid; /* -1: not found */
};

/* One of mountinfo (proc(5)): number parent major:minor root mountpoint … - type source options */
static int see_mount(void *context, const char *line) {
  struct mounter *mounter = context;
  if (line == NULL) return LINE_GO_ON; /* none of ours is so long */
  uint64_t number;
  uint64_t major_number;
  uint64_t minor_number;
  if (!parse_field(&line, 10, ' ', &number) || !parse_field(&line, 10, ' ', &number) ||
      !parse_field(&line, 10, ':', &major_number))
    return LINE_GO_ON;
  line = parse_number(line, 10, &minor_number);
  if (major_number != major(mounter->device) || minor_number != minor(mounter->device)) return LINE_GO_ON;
  /* A path cannot hold " - ": blanks are escaped in it. The options of the file system come last. */
  const char *type = strstr(line, " - fuse");
  const char *options = type == NULL ? NULL : strrchr(type, ' ');
  const char *user = options == NULL ? NULL : strstr(options, "user_id=");
  if (user == NULL || (user[-1] != ' ' && user[-1] != ',')) return LINE_GO_ON;
  parse_number(user + strlen("user_id="), 10, &number);
  if (number > UINT32_MAX) return LINE_GO_ON;
  mounter->uid = (int64_t)number;
  return LINE_STOP;
}

static int64_t read_mounter(dev_t device) {
  struct mounter mounter = {.device = device, .uid = -1};
  each_line_of_process("mountinfo", MOUNT_BYTES, see_mount, &mounter);
  return mounter.uid;
}

bool mounter_of(const struct file_facts *facts, uid_t *uid) {
  struct known_mount *mount = facts->mount_id == 0 ? NULL : find(facts->mount_id);
  int64_t mounter = mount == NULL ? -1 : atomic_load_explicit(&mount->mounter, memory_order_relaxed);
  if (mounter < 0) mounter = read_mounter(facts->device);
  if (mounter < 0) return false;
  if (mount != NULL) atomic_store_explicit(&mount->mounter, mounter, memory_order_relaxed);
  *uid = (uid_t)mounter;
  return true;
}
