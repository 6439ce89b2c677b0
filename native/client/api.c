/* The public functions: errno in, errno out. What each promises is in mapdirect.h. */
#include "internal.h"

#include <string.h>
#include <sys/ioctl.h>

#include "syscall.h"

#define TEXT_OF(value) #value
#define VERSION_OF(major, minor, patch) TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)

/* errno is the caller's while we succeed, whatever libc did with it on the way. */
static int answer(int errno_before, ssize_t error) {
  errno = error < 0 ? (int)-error : errno_before;
  return error < 0 ? -1 : 0;
}

void *mapdirect_map(void *addr, size_t length, int prot, int flags, int fd, off_t offset, unsigned lease) {
  void *result = MAP_FAILED;
  int errno_before = errno;
  int error = core_map(addr, length, prot, flags | MAP_DIRECT, fd, offset, lease, &result);
  return answer(errno_before, error) == 0 ? result : MAP_FAILED;
}

int mapdirect_unmap(void *addr, size_t length) {
  int errno_before = errno;
  return answer(errno_before, core_unmap((uintptr_t)addr, length));
}

int mapdirect_detach(void *addr, size_t length) {
  int errno_before = errno;
  return answer(errno_before, core_detach((uintptr_t)addr, length));
}

void *mapdirect_remap(void *old_addr, size_t old_length, size_t new_length, int flags, void *new_addr) {
  void *result = MAP_FAILED;
  int errno_before = errno;
  int error = core_remap((uintptr_t)old_addr, old_length, new_length, flags, (uintptr_t)new_addr, &result);
  return answer(errno_before, error) == 0 ? result : MAP_FAILED;
}

int mapdirect_persist(const void *addr, size_t length) {
  int error = core_persist((uintptr_t)addr, length);
  /* errno stays as it was: nothing on that way goes through libc's calls. */
  return error == 0 ? 0 : answer(errno, error);
}

static int prepare(int fd, off_t offset, off_t length) {
  struct file_facts file;
  struct mapdirect_wire_region region;
  if (offset < 0 || length < 0) return -EINVAL;
  int error = region_of(fd, &file, &region);
  if (error != 0) return error;
  struct mapdirect_wire_range range = {
      .version = MAPDIRECT_WIRE_VERSION, .offset = (uint64_t)offset, .length = (uint64_t)length};
  return ioctl(fd, (unsigned long)MAPDIRECT_IOCTL_PREPARE, &range) == 0 ? 0 : -errno;
}

int mapdirect_prepare(int fd, off_t offset, off_t length) {
  int errno_before = errno;
  return answer(errno_before, prepare(fd, offset, length));
}

static ssize_t fetch_extents(int fd, off_t offset, off_t length, struct mapdirect_extent *extents,
                             size_t capacity, struct mapdirect_map_info *info,
                             struct mapdirect_wire_map_full *wire) {
  wire->map.version = MAPDIRECT_WIRE_VERSION;
  wire->map.offset = (uint64_t)offset;
  wire->map.length = (uint64_t)length;
  if (ioctl(fd, (unsigned long)MAPDIRECT_IOCTL_EXTENTS, wire) != 0) return -errno;
  if (wire->map.count > MAPDIRECT_WIRE_EXTENTS_MAX) return -EIO;
  size_t count = wire->map.count < capacity ? wire->map.count : capacity;
  for (size_t index = 0; index < count; index++) {
    const struct mapdirect_wire_extent *from = &wire->extents[index];
    extents[index] = (struct mapdirect_extent){
        .offset = from->offset, .physical = from->physical, .length = from->length, .state = from->state};
  }
  if (info != NULL) {
    *info = (struct mapdirect_map_info){
        .generation = wire->map.generation,
        .next_offset = count < wire->map.count ? wire->extents[count].offset : wire->map.next_offset,
        .file_bytes = wire->map.file_bytes,
        .map_bytes = wire->map.map_bytes,
        .inode = wire->map.inode,
    };
  }
  return (ssize_t)count;
}

static ssize_t extents_of(int fd, off_t offset, off_t length, struct mapdirect_extent *extents,
                          size_t capacity, struct mapdirect_map_info *info) {
  struct file_facts file;
  struct mapdirect_wire_region region;
  if (offset < 0 || length < 0 || (capacity > 0 && extents == NULL)) return -EINVAL;
  int error = region_of(fd, &file, &region);
  if (error != 0) return error;
  /* 16 KiB: more than some threads' stacks have to spare. */
  struct mapdirect_wire_map_full *wire = page_alloc(round_up(sizeof *wire, page_bytes()));
  if (wire == NULL) return -ENOMEM;
  ssize_t result = fetch_extents(fd, offset, length, extents, capacity, info, wire);
  page_free(wire, round_up(sizeof *wire, page_bytes()));
  return result;
}

ssize_t mapdirect_extents(int fd, off_t offset, off_t length, struct mapdirect_extent *extents,
                          size_t capacity, struct mapdirect_map_info *info) {
  int errno_before = errno;
  ssize_t count = extents_of(fd, offset, length, extents, capacity, info);
  return answer(errno_before, count) == 0 ? count : -1;
}

static uint32_t state_of(const struct piece *piece) {
  switch (piece->state) {
  case PIECE_DIRECT:
    return MAPDIRECT_WRITTEN;
  case PIECE_BEYOND:
    return MAPDIRECT_BEYOND;
  case PIECE_REVOKED:
    return MAPDIRECT_REVOKED;
  case PIECE_CACHED:
    return MAPDIRECT_CACHED;
  default:
    return MAPDIRECT_HOLE;
  }
}

int mapdirect_query(const void *addr, struct mapdirect_lease_info *info) {
  uintptr_t address = (uintptr_t)addr;
  struct piece piece;
  struct mapping mapping;
  if (!table_find(address, &piece, &mapping) || piece.start > address) return answer(errno, -EFAULT);
  uint64_t delta = address - piece.start;
  bool written = piece.state == PIECE_DIRECT;
  *info = (struct mapdirect_lease_info){
      .lease_id = mapping.lease_id,
      .generation = mapping.generation,
      .offset = piece.offset + delta,
      .physical = written ? piece.physical + delta : 0,
      .length = piece.end - address,
      .inode = mapping.inode,
      .device = mapping.device,
      .kind = mapping.kind,
      .state = state_of(&piece),
      .cacheline = mapping.cacheline,
  };
  return 0;
}

int mapdirect_on_break(mapdirect_break_handler *handler, void *context, unsigned flags) {
  if (flags != 0 && flags != MAPDIRECT_REMAP && flags != MAPDIRECT_INERT) return answer(errno, -EINVAL);
  /* A break may come before the thread that is to be told of it does. */
  if (handler == mapdirect_hand_over && context == MAPDIRECT_UNTIL_ANSWERED) relay_listen();
  break_wish(handler, context, flags);
  return 0;
}

void mapdirect_hand_over(const struct mapdirect_break *what, void *context) {
  relay_hand_over(what, context == MAPDIRECT_UNTIL_ANSWERED);
}

int mapdirect_wait_break(struct mapdirect_break *what, int timeout_ms) {
  return answer(errno, relay_wait(what, timeout_ms));
}

int mapdirect_answer_break(const struct mapdirect_break *what) {
  return answer(errno, relay_answer(what));
}

void mapdirect_stats(struct mapdirect_stats *stats) {
  *stats = (struct mapdirect_stats){
      .direct = counted(COUNT_DIRECT),
      .direct_bytes = counted(COUNT_DIRECT_BYTES),
      .automatic = counted(COUNT_AUTOMATIC),
      .revoked = counted(COUNT_REVOKED),
      .past_end = counted(COUNT_PAST_END),
      .busy = counted(COUNT_BUSY),
      .no_space = counted(COUNT_NO_SPACE),
      .no_access = counted(COUNT_NO_ACCESS),
      .unsupported = counted(COUNT_UNSUPPORTED),
      .other = counted(COUNT_OTHER),
  };
}

const char *mapdirect_version(void) {
  return VERSION_OF(MAPDIRECT_VERSION_MAJOR, MAPDIRECT_VERSION_MINOR, MAPDIRECT_VERSION_PATCH);
}
