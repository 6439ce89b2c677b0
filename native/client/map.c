/*
 * Asking for a lease and building the mapping.
 *
 *   caller   check flags, descriptor and region (R1..R4)
 *   keeper   open the file once more (the lease description), GRANT, EXTENTS
 *            open the region with the caller's identity, or get it at the door of direct_group=; check that it is the one that the mount names
 *            reserve addresses; map the pieces; map the anchor (one PROT_NONE page of the lease description)
 *            enter it in the table
 *            a moment later: open the file a third time and watch the lease there; close the lease description (break.c)
 *
 * Whatever fails on the way undoes what came before: the lease ends with its description, the addresses are
 * unmapped.
 *
 * The request lies in memory of its own, not on the caller's stack: a signal handler that leaves with
 * siglongjmp leaks it, rather than have the keeper write into a stack that is in use by somebody else.
 */
#include "internal.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "syscall.h"

/* Companions of MAP_DIRECT. Whatever else is in flags is refused: nothing is ever ignored. */
#define FLAGS_KNOWN                                                                                          \
  (MAP_TYPE_BITS | MAP_DIRECT | MAP_SYNC | MAP_POPULATE | MAP_NONBLOCK | MAP_NORESERVE | MAP_LOCKED |        \
   MAP_FIXED | MAP_FIXED_NOREPLACE)
/* Those that go to the kernel with each piece of the region. */
#define FLAGS_OF_PIECES (MAP_POPULATE | MAP_NONBLOCK | MAP_NORESERVE | MAP_LOCKED)
#define LEASE_KIND_BITS 0xffu
/* How long the daemon may take to hand out a descriptor. */
#define DOOR_MS 10000

struct map_request {
  struct request base;
  /* what the caller asked for */
  uintptr_t hint;
  size_t length; /* whole pages */
  int prot;
  int flags;
  int fd;
  uint64_t offset;
  uintptr_t shadow; /* of an automatic mapping; else 0 */
  struct io_lease *io;
  uint32_t kind;
  uint32_t lease_flags;
  char caller[48]; /* the thread as /proc names it: its descriptor table is the one that fd is in */
  bool barred;     /* it may not open the region by its path */
  struct identity identity;
  struct file_facts file; /* of fd */
  struct mapdirect_wire_region region;
  /* the keeper's work */
  int lease_fd;
  int region_fd;
  struct stat region_status;
  uint64_t region_inode;
  bool granted;
  uintptr_t start;
  uintptr_t anchor;
  bool anchor_apart;        /* not within the reserved range */
  uintptr_t reserved_start; /* what is to be unmapped on failure */
  size_t reserved_length;
  struct mapping *mapping;
  struct mapping *dead; /* what MAP_FIXED replaced */
  struct piece *run;    /* pieces, with addresses counted from 0 until the place is known; and the anchor */
  size_t run_count;
  size_t run_capacity;
  uint64_t hole_bytes;
  uint64_t lease_id;
  uint8_t lease_token[16];
  uint64_t generation;
  uint32_t granted_kind;
  struct mapdirect_wire_grant_full wire;
};

static bool lacks_resources(int error) {
  return error == EMFILE || error == ENFILE || error == ENOMEM;
}

/* ---- on the caller's thread */

int core_check_type(int flags) {
  if ((flags & MAP_TYPE_BITS) != MAP_SHARED_VALIDATE || (flags & MAP_ANONYMOUS) != 0) return -EINVAL;
  return 0;
}

/* By /proc and not by gettid(2): /proc may be of another PID namespace, and have another number. */
static int name_caller(char *name, size_t bytes) {
  long length =
      raw_syscall(SYS_readlinkat, AT_FDCWD, (long)"/proc/thread-self", (long)name, (long)bytes, 0, 0);
  if (length <= 0 || length >= (long)bytes) return -EOPNOTSUPP; /* no /proc, or one where we are not */
  name[length] = 0;
  return 0;
}

/*
 * May the caller not open the region? Only it can tell: the keeper takes on its file-system identity, but not the capabilities
 * that it has dropped, nor what Landlock or seccomp forbid it. A lack of descriptors says nothing.
 */
static bool is_barred(const struct mapdirect_wire_region *region) {
  int errno_before = errno;
  int fd = raw_open((const char *)region->path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
  bool barred = fd < 0 && !lacks_resources(errno);
  if (fd >= 0) raw_close(fd);
  errno = errno_before;
  return barred;
}

static int check(void *addr, size_t length, int prot, int flags, int fd, off_t offset, unsigned lease,
                 struct map_request *map) {
  const unsigned options = MAPDIRECT_WHOLE_FILE | MAPDIRECT_PREPARE;
  uintptr_t page = page_bytes();
  if ((prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC)) != 0) return -EINVAL;
  if ((lease & LEASE_KIND_BITS) > MAPDIRECT_BREAKABLE || (lease & ~(LEASE_KIND_BITS | options)) != 0)
    return -EINVAL;
  if (offset < 0 || !is_aligned((uint64_t)offset, page)) return -EINVAL;
  int access_mode = fcntl(fd, F_GETFL);
  if (access_mode < 0 || (access_mode & O_PATH) != 0) return -EBADF;
  if (length == 0) return -EINVAL;
  if (length > SIZE_MAX / 4) return -ENOMEM;
  length = round_up(length, page);
  if ((uint64_t)INT64_MAX - (uint64_t)offset < length) return -EOVERFLOW;
  bool placed = (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) != 0;
  if (placed && (!is_aligned((uintptr_t)addr, page) || (uintptr_t)addr > UINTPTR_MAX - length))
    return -EINVAL;
  if ((flags & ~FLAGS_KNOWN) != 0) return -EOPNOTSUPP;
  int error = region_of(fd, &map->file, &map->region);
  if (error != 0) return error;
  if ((access_mode & O_ACCMODE) != O_RDWR || (prot & PROT_WRITE) == 0) return -EACCES;
  if ((map->region.flags & MAPDIRECT_WIRE_REGION_FLAG_READ_ONLY) != 0) return -EOPNOTSUPP;
  bool cacheline = (map->region.flags & MAPDIRECT_WIRE_REGION_FLAG_CACHELINE) != 0;
  if ((flags & MAP_SYNC) != 0 && !(cacheline && persist_can_flush())) return -EOPNOTSUPP;
  uint64_t alignment = map->region.map_alignment;
  if (alignment == 0 || (alignment & (alignment - 1)) != 0) return -EOPNOTSUPP;
  if (!is_aligned((uint64_t)offset, alignment) || !is_aligned(length, alignment)) return -EINVAL;
  if (placed && !is_aligned((uintptr_t)addr, alignment)) return -EINVAL;

  map->hint = (uintptr_t)addr;
  map->length = length;
  map->prot = prot;
  map->flags = flags;
  map->fd = fd;
  map->offset = (uint64_t)offset;
  map->kind = lease & LEASE_KIND_BITS;
  if ((lease & MAPDIRECT_WHOLE_FILE) != 0) map->lease_flags |= MAPDIRECT_WIRE_LEASE_FLAG_WHOLE_FILE;
  if ((lease & MAPDIRECT_PREPARE) != 0) map->lease_flags |= MAPDIRECT_WIRE_LEASE_FLAG_PREPARE;
  if ((flags & MAP_SYNC) != 0) map->lease_flags |= MAPDIRECT_WIRE_LEASE_FLAG_SYNC;
  map->identity = identity_of_caller();
  map->barred = is_barred(&map->region);
  return name_caller(map->caller, sizeof map->caller);
}

/* ---- on the keeper: the lease */

/* A new open file description of the caller's file, in the keeper's table. */
static int open_lease(struct map_request *map) {
  char path[96];
  char *at = append_text(append_text(path, "/proc/"), map->caller);
  at = append_text(at, "/fd/");
  append_number(at, (unsigned)map->fd);
  int fd = raw_open(path, O_RDWR | O_CLOEXEC | O_NOCTTY, 0);
  if (fd < 0) {
    switch (errno) {
    case ENOENT:
      return -EOPNOTSUPP; /* no /proc */
    case EROFS:
    case EPERM:
      return -EACCES;
    default:
      return -errno;
    }
  }
  map->lease_fd = fd;
  struct file_facts file;
  int error = file_facts_of(fd, &file);
  if (error != 0 && error != -EOPNOTSUPP) return error;
  /* Another thread of the program may have closed fd and opened something else in its place. */
  if (error != 0 || file.device != map->file.device || file.inode != map->file.inode) return -EBADF;
  return 0;
}

static int grow_run(struct map_request *map) {
  if (map->run_count < map->run_capacity) return 0;
  size_t old_bytes = map->run_capacity * sizeof(struct piece);
  size_t bytes = round_up(old_bytes == 0 ? 1 : 2 * old_bytes, page_bytes());
  struct piece *larger = page_alloc(bytes);
  if (larger == NULL) return -ENOMEM;
  if (map->run_count > 0) memcpy(larger, map->run, map->run_count * sizeof(struct piece));
  page_free(map->run, round_up(old_bytes, page_bytes()));
  map->run = larger;
  map->run_capacity = bytes / sizeof(struct piece);
  return 0;
}

static bool is_inside(uint64_t bytes, uint64_t at, uint64_t length) {
  return length <= bytes && at <= bytes - length;
}

/* Append [from, to) of the file; joins its predecessor where the pages would look the same. */
static int add_piece(struct map_request *map, uint64_t from, uint64_t to, enum piece_state state,
                     uint64_t physical) {
  if (from >= to) return 0;
  if (!is_aligned(from, page_bytes()) || !is_aligned(to, page_bytes())) return -EINVAL;
  if (state == PIECE_DIRECT) {
    uint64_t alignment = map->region.map_alignment;
    uint64_t length = to - from;
    if (!is_inside(map->region.region_bytes, physical, length)) {
      /* The volume may have grown since we asked. Otherwise it is a broken answer. */
      if (ioctl(map->lease_fd, (unsigned long)MAPDIRECT_IOCTL_REGION, &map->region) != 0) return -errno;
      if (!is_inside(map->region.region_bytes, physical, length)) return -EIO;
    }
    if (!is_aligned(physical, alignment) || !is_aligned(from - map->offset, alignment) ||
        !is_aligned(to - from, alignment))
      return -EINVAL;
  }
  if (state == PIECE_HOLE) {
    map->hole_bytes += to - from;
    if (map->hole_bytes > HOLE_BYTES_MAX) return -ENOMEM;
  }
  uintptr_t start = (uintptr_t)(from - map->offset);
  uintptr_t end = (uintptr_t)(to - map->offset);
  if (map->run_count > 0) {
    struct piece *last = &map->run[map->run_count - 1];
    bool adjoins = state != PIECE_DIRECT || last->physical + (last->end - last->start) == physical;
    if (last->state == state && last->end == start && adjoins) {
      last->end = end;
      return 0;
    }
  }
  if (map->run_count == PIECES_MAX) return -ENOMEM;
  int error = grow_run(map);
  if (error != 0) return error;
  map->run[map->run_count++] =
      (struct piece){.start = start, .end = end, .offset = from, .physical = physical, .state = state};
  return 0;
}

/* The extents of one answer, from *cursor on. */
static int add_extents(struct map_request *map, const struct mapdirect_wire_extent *extents, uint32_t count,
                       uint64_t end, uint64_t *cursor) {
  for (uint32_t index = 0; index < count; index++) {
    const struct mapdirect_wire_extent *extent = &extents[index];
    if (extent->length == 0 || extent->length > (uint64_t)INT64_MAX - extent->offset) return -EIO;
    uint64_t from = extent->offset;
    uint64_t to = extent->offset + extent->length;
    uint64_t physical = extent->physical;
    if (to <= *cursor) continue;
    if (from < *cursor) {
      physical += *cursor - from;
      from = *cursor;
    }
    if (from >= end) break;
    if (to > end) to = end;
    int error = add_piece(map, *cursor, from, PIECE_HOLE, 0); /* what is not mentioned */
    if (error != 0) return error;
    switch (extent->state) {
    case MAPDIRECT_WIRE_EXTENT_STATE_HOLE:
    case MAPDIRECT_WIRE_EXTENT_STATE_UNWRITTEN:
      error = add_piece(map, from, to, PIECE_HOLE, 0);
      break;
    case MAPDIRECT_WIRE_EXTENT_STATE_WRITTEN:
      error = add_piece(map, from, to, PIECE_DIRECT, physical);
      break;
    case MAPDIRECT_WIRE_EXTENT_STATE_SHARED:
      error = -EPERM;
      break;
    default:
      error = -EIO;
    }
    if (error != 0) return error;
    *cursor = to;
  }
  return 0;
}

/* The extents that did not fit into the answer to GRANT, from `next` on. */
static int fetch_extents(struct map_request *map, uint64_t next, uint64_t end, uint64_t *cursor) {
  size_t bytes = round_up(sizeof(struct mapdirect_wire_map_full), page_bytes());
  struct mapdirect_wire_map_full *wire = page_alloc(bytes);
  if (wire == NULL) return -ENOMEM;
  int error = 0;
  while (error == 0 && next != 0 && next < end) {
    wire->map =
        (struct mapdirect_wire_map){.version = MAPDIRECT_WIRE_VERSION, .offset = next, .length = end - next};
    uint64_t asked = next;
    if (ioctl(map->lease_fd, (unsigned long)MAPDIRECT_IOCTL_EXTENTS, wire) != 0) {
      error = -errno;
      break;
    }
    next = wire->map.next_offset;
    uint64_t before = *cursor;
    bool sound = wire->map.count <= MAPDIRECT_WIRE_EXTENTS_MAX && (next == 0 || next > asked);
    error = sound ? add_extents(map, wire->extents, wire->map.count, end, cursor) : -EIO;
    if (error == 0 && next != 0 && *cursor == before) error = -EIO; /* it would hardly ever end */
  }
  page_free(wire, bytes);
  return error;
}

static int grant(struct map_request *map) {
  struct mapdirect_wire_map *header = &map->wire.map;
  uint64_t end = map->offset + map->length;
  header->version = MAPDIRECT_WIRE_VERSION;
  header->kind = map->kind;
  header->flags = map->lease_flags;
  header->offset = map->offset;
  header->length = map->length;
  if (ioctl(map->lease_fd, (unsigned long)MAPDIRECT_IOCTL_GRANT, &map->wire) != 0)
    return errno == ENOTTY || errno == ENOSYS ? -EOPNOTSUPP : -errno;
  map->granted = true;
  map->lease_id = header->lease_id;
  memcpy(map->lease_token, header->token, sizeof map->lease_token);
  map->generation = header->generation;
  map->granted_kind = header->kind;
  if (header->count > MAPDIRECT_WIRE_GRANT_EXTENTS_MAX) return -EIO;

  uint64_t cursor = map->offset;
  uint64_t map_bytes = header->map_bytes;
  int error = add_extents(map, map->wire.extents, header->count, end, &cursor);
  if (error == 0) error = fetch_extents(map, header->next_offset, end, &cursor);
  if (error != 0) return error;
  uint64_t last = map_bytes < end ? round_up(map_bytes, page_bytes()) : end;
  error = add_piece(map, cursor, last, PIECE_HOLE, 0);
  if (error != 0) return error;
  return add_piece(map, cursor > last ? cursor : last, end, PIECE_BEYOND, 0);
}

/* ---- on the keeper: the region */

static int region_has_uuid(const struct map_request *map) {
  const struct mapdirect_wire_region *region = &map->region;
  uint64_t at = region->superblock_uuid_offset;
  uint8_t uuid[sizeof region->uuid];
  if (region->kind != MAPDIRECT_WIRE_REGION_KIND_DEVDAX) {
    if (raw_pread(map->region_fd, uuid, sizeof uuid, (off_t)at) != (ssize_t)sizeof uuid) return -EOPNOTSUPP;
  } else { /* a character DAX device has no read(2) */
    uint64_t unit = region->map_alignment;
    uint64_t first = at / unit * unit;
    if (at - first > unit - sizeof uuid) return -EOPNOTSUPP;
    long mapped = raw_mmap(0, (size_t)unit, PROT_READ, MAP_SHARED, map->region_fd, (off_t)first);
    if (raw_failed(mapped)) return -EOPNOTSUPP;
    memcpy(uuid, (const char *)mapped + (at - first), sizeof uuid);
    raw_munmap((uintptr_t)mapped, (size_t)unit);
  }
  return memcmp(uuid, region->uuid, sizeof uuid) == 0 ? 0 : -EOPNOTSUPP;
}

/* From the daemon's door, if it has one and lets the caller in. What comes out is checked like what was opened. */
static int region_from_door(const struct mapdirect_wire_region *region) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (region->socket_bytes == 0 || region->socket_bytes >= sizeof address.sun_path) return -EACCES;
  memcpy(address.sun_path, region->socket, region->socket_bytes);
  int door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (door < 0) return lacks_resources(errno) ? -errno : -EACCES;
  int result = -EACCES;
  if (connect(door, (struct sockaddr *)&address, sizeof address) == 0) {
    struct pollfd ready = {.fd = door, .events = POLLIN};
    char byte;
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    union {
      struct cmsghdr header;
      char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int count = poll(&ready, 1, DOOR_MS);
    if (count == 1 && recvmsg(door, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) == 1) {
      const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
      if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
          header->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(&result, CMSG_DATA(header), sizeof result);
    } else if (count == 0) {
      result = -EAGAIN;
    }
  } else if (errno == EAGAIN) {
    result = -EAGAIN; /* more are waiting there than it takes */
  }
  raw_close(door);
  return result;
}

/* What the caller may open is not for anybody's mount to name: one that lies would have the caller store into it. Root may,
 * the caller itself, and whoever owns what is named. */
static bool is_named_rightly(const struct map_request *map, const struct stat *region) {
  uid_t mounter;
  if (!mounter_of(&map->file, &mounter)) return false;
  return mounter == 0 || mounter == map->identity.fsuid || mounter == region->st_uid;
}

/* The region by its path, if the caller may open it and the mount may name it; -EACCES if not. */
static int region_by_path(struct map_request *map) {
  if (map->barred) return -EACCES;
  /* O_NONBLOCK: what is at that path may be anything by now. */
  int fd = raw_open((const char *)map->region.path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
  if (fd < 0) return lacks_resources(errno) ? -errno : -EACCES;
  struct stat status;
  if (fstat(fd, &status) == 0 && is_named_rightly(map, &status)) return fd;
  raw_close(fd);
  return -EACCES;
}

static int open_region(struct map_request *map) {
  const struct mapdirect_wire_region *region = &map->region;
  int fd = region_by_path(map);
  /* What comes out of the door the daemon may reach itself. */
  if (fd == -EACCES) fd = region_from_door(region);
  if (fd < 0) return fd;
  map->region_fd = fd;
  struct stat *status = &map->region_status;
  if (fstat(fd, status) != 0) return -errno;
  bool same = false;
  switch (region->kind) {
  case MAPDIRECT_WIRE_REGION_KIND_FILE:
    same = S_ISREG(status->st_mode) && status->st_dev == region->device && status->st_ino == region->inode;
    break;
  case MAPDIRECT_WIRE_REGION_KIND_BLOCK:
    same = S_ISBLK(status->st_mode) && status->st_rdev == region->device;
    break;
  case MAPDIRECT_WIRE_REGION_KIND_DEVDAX:
    same = S_ISCHR(status->st_mode) && status->st_rdev == region->device;
    break;
  default:
    break;
  }
  return same ? region_has_uuid(map) : -EOPNOTSUPP;
}

/* ---- on the keeper: the address space */

/* Address modulo `unit` that lets the first large extent use huge pages. */
static uintptr_t wanted_phase(const struct map_request *map, uintptr_t unit) {
  for (size_t index = 0; index < map->run_count; index++) {
    const struct piece *piece = &map->run[index];
    if (piece->state == PIECE_DIRECT && piece->end - piece->start >= HUGE_PAGE_BYTES)
      return (uintptr_t)(piece->physical - piece->start) % unit;
  }
  return 0;
}

static int act_reserve(void *context) {
  const struct map_request *map = context;
  long result = raw_mmap(map->hint, map->length, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  return raw_failed(result) ? (int)result : 0;
}

static long reserve_anywhere(uintptr_t hint, size_t length) {
  return raw_mmap(hint, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/* At the caller's address; the anchor goes elsewhere, for what lies beside it is not ours. */
static int reserve_placed(struct map_request *map) {
  int error = 0;
  if ((map->flags & MAP_FIXED_NOREPLACE) != 0) {
    long result = raw_mmap(map->hint, map->length, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (raw_failed(result)) return (int)result;
    if ((uintptr_t)result != map->hint) { /* before 4.17 the flag is a hint */
      raw_munmap((uintptr_t)result, map->length);
      return -EEXIST;
    }
  } else {
    sigset_t mask;
    core_lock(&mask);
    error = change_replace(map->hint, map->hint + map->length, act_reserve, map, &map->dead);
    change_bury(map->dead);
    core_unlock(&mask);
    if (error != 0) return error;
  }
  map->start = map->hint;
  map->reserved_start = map->start;
  map->reserved_length = map->length;
  long anchor = reserve_anywhere(0, page_bytes());
  if (raw_failed(anchor)) return (int)anchor;
  map->anchor = (uintptr_t)anchor;
  map->anchor_apart = true;
  return 0;
}

static int reserve_free(struct map_request *map) {
  uintptr_t page = page_bytes();
  size_t total = map->length + page;
  uintptr_t unit =
      map->region.map_alignment > HUGE_PAGE_BYTES ? (uintptr_t)map->region.map_alignment : HUGE_PAGE_BYTES;
  uintptr_t hint = map->hint / page * page;
  if (hint != 0 && is_aligned(hint, map->region.map_alignment)) {
    long result = reserve_anywhere(hint, total);
    if (!raw_failed(result) && (uintptr_t)result == hint) {
      map->start = hint;
      map->reserved_start = hint;
      map->reserved_length = total;
      map->anchor = hint + map->length;
      return 0;
    }
    if (!raw_failed(result)) raw_munmap((uintptr_t)result, total);
  }
  bool align = map->length >= HUGE_PAGE_BYTES || map->region.map_alignment > page;
  size_t slack = align ? unit : 0;
  long result = reserve_anywhere(0, total + slack);
  if (raw_failed(result)) return (int)result;
  uintptr_t base = (uintptr_t)result;
  uintptr_t start = base;
  if (align) start = base + (wanted_phase(map, unit) + unit - base % unit) % unit;
  if (start > base) raw_munmap(base, start - base);
  if (base + total + slack > start + total) raw_munmap(start + total, base + slack - start);
  map->start = start;
  map->reserved_start = start;
  map->reserved_length = total;
  map->anchor = start + map->length;
  return 0;
}

static int place_pieces(struct map_request *map) {
  int kernel_flags = MAP_FIXED | (map->flags & FLAGS_OF_PIECES);
  /* A file on a DAX file system: without MAP_SYNC a CPU flush would leave the file system's own metadata
   * behind. */
  if ((map->region.flags & MAPDIRECT_WIRE_REGION_FLAG_NEEDS_MAP_SYNC) != 0)
    kernel_flags |= MAP_SHARED_VALIDATE | MAP_SYNC;
  else
    kernel_flags |= MAP_SHARED;
  for (size_t index = 0; index < map->run_count; index++) {
    struct piece *piece = &map->run[index];
    size_t length = piece->end - piece->start;
    piece->start += map->start;
    piece->end += map->start;
    long result = 0;
    switch (piece->state) {
    case PIECE_DIRECT:
      result =
          raw_mmap(piece->start, length, map->prot, kernel_flags, map->region_fd, (off_t)piece->physical);
      if (raw_failed(result)) break;
      result = 0;
      map->region_inode = region_inode_at(piece->start, &map->region_status);
      break;
    case PIECE_HOLE:
      result = hole_place(piece->start, length, map->prot, MAP_FIXED);
      break;
    default:
      result = beyond_place(piece->start, length, map->prot);
    }
    if (result == -ENODEV) return -EOPNOTSUPP;
    if (result != 0) return (int)result;
  }
  long anchor = raw_mmap(map->anchor, page_bytes(), PROT_NONE, MAP_PRIVATE | MAP_FIXED, map->lease_fd, 0);
  if (!raw_failed(anchor)) return 0;
  return anchor == -ENOMEM ? -ENOMEM : -EOPNOTSUPP;
}

/* With the lock held. */
static int forget_what_was(struct map_request *map) {
  struct mapping *stale = NULL;
  int error = break_forget(map->reserved_start, map->reserved_start + map->reserved_length, &stale);
  if (error == 0) error = break_forget(map->anchor, map->anchor + page_bytes(), &stale);
  change_bury(stale);
  while (stale != NULL) {
    struct mapping *next = stale->next;
    stale->next = map->dead;
    map->dead = stale;
    stale = next;
  }
  return error;
}

static int publish(struct map_request *map) {
  int error = grow_run(map);
  if (error != 0) return error;
  sigset_t mask;
  core_lock(&mask);
  struct mapping *mapping = mapping_alloc();
  error = mapping == NULL ? -ENOMEM : forget_what_was(map);
  if (error == 0) error = table_reserve(map->run_count + 1);
  if (error == 0) {
    mapping->lease_id = map->lease_id;
    memcpy(mapping->lease_token, map->lease_token, sizeof mapping->lease_token);
    mapping->generation = map->generation;
    mapping->device = map->file.device;
    mapping->inode = map->file.inode;
    mapping->map_alignment = map->region.map_alignment;
    mapping->kind = map->granted_kind;
    mapping->cacheline =
        (map->region.flags & MAPDIRECT_WIRE_REGION_FLAG_CACHELINE) != 0 && persist_can_flush();
    mapping->prot = map->prot;
    mapping->shadow = map->shadow;
    mapping->io = map->io;
    mapping->shadow_offset = map->offset;
    mapping->shadow_bytes = map->length;
    mapping->region_inode = map->region_inode;
    mapping->keeper_generation = keeper_generation();
    mapping->watch_tried = true;
    mapping->identity = map->identity;
    mapping->lease_fd = keeper_fd_of(map->lease_fd);
    map->lease_fd = -1;
    for (size_t index = 0; index < map->run_count; index++)
      map->run[index].mapping = mapping;
    table_insert(map->run, map->run_count);
    struct piece anchor = {
        .start = map->anchor, .end = map->anchor + page_bytes(), .mapping = mapping, .state = PIECE_ANCHOR};
    table_insert(&anchor, 1);
    watch_later(mapping);
  } else if (mapping != NULL) {
    mapping_free(mapping);
  }
  core_unlock(&mask);
  return error;
}

static int build(struct map_request *map) {
  int error = open_lease(map);
  if (error == 0) error = open_region(map);
  if (error == 0) error = beyond_open();
  if (error == 0) error = grant(map);
  if (error == 0)
    error = (map->flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) != 0 ? reserve_placed(map) : reserve_free(map);
  if (error == 0) error = place_pieces(map);
  if (error == 0) error = publish(map);
  return error;
}

static void run_map(struct request *base) {
  struct map_request *map = (struct map_request *)(void *)base;
  map->lease_fd = -1;
  map->region_fd = -1;
  watcher_start(); /* as itself, not as the caller */
  struct identity before = identity_assume(map->identity);
  base->error = build(map);
  if (base->error != 0) {
    /* What is mapped ordinarily instead replaces the reservation: a gap might be another thread's mapping by then. */
    bool kept = map->shadow != 0 && (map->flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) == MAP_FIXED;
    if (map->reserved_length > 0 && !kept) raw_munmap(map->reserved_start, map->reserved_length);
    if (map->anchor_apart) raw_munmap(map->anchor, page_bytes());
    if (map->granted) {
      struct mapdirect_wire_lease lease = {.version = MAPDIRECT_WIRE_VERSION, .lease_id = map->lease_id};
      ioctl(map->lease_fd, (unsigned long)MAPDIRECT_IOCTL_END, &lease);
    }
  }
  if (map->region_fd >= 0) raw_close(map->region_fd);
  if (map->lease_fd >= 0) raw_close(map->lease_fd);
  identity_assume(before);
  page_free(map->run, round_up(map->run_capacity * sizeof(struct piece), page_bytes()));
}

static int map_any(void *addr, size_t length, int prot, int flags, int fd, off_t offset, unsigned lease,
                   uintptr_t shadow, struct io_lease *io, void **result) {
  int error = core_check_type(flags);
  if (error != 0) return error;
  struct map_request *map = page_alloc(round_up(sizeof *map, page_bytes()));
  if (map == NULL) return -ENOMEM;
  error = check(addr, length, prot, flags, fd, offset, lease, map);
  if (error == 0) error = keeper_prepare_forks();
  if (error == 0) {
    map->shadow = shadow;
    map->io = io;
    if (shadow != 0) map->lease_flags |= MAPDIRECT_WIRE_LEASE_FLAG_AUTOMATIC;
    map->base.run = run_map;
    error = keeper_run(&map->base);
    change_mourn(map->dead);
  }
  if (error == 0) {
    *result = (void *)map->start;
    count_up(COUNT_DIRECT, 1);
    count_up(COUNT_DIRECT_BYTES, map->length);
  }
  page_free(map, round_up(sizeof *map, page_bytes()));
  return error;
}

int core_map(void *addr, size_t length, int prot, int flags, int fd, off_t offset, unsigned lease,
             void **result) {
  return map_any(addr, length, prot, flags, fd, offset, lease, 0, NULL, result);
}

int core_map_automatic(void *addr, size_t length, int prot, int flags, int fd, off_t offset, uintptr_t shadow,
                       void **result) {
  return map_any(addr, length, prot, flags, fd, offset, MAPDIRECT_BREAKABLE | MAPDIRECT_PREPARE, shadow, NULL,
                 result);
}

int core_map_io(size_t length, int fd, uintptr_t shadow, struct io_lease *io, void **result) {
  return map_any(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_DIRECT, fd, 0,
                 MAPDIRECT_BREAKABLE | MAPDIRECT_WHOLE_FILE, shadow, io, result);
}
