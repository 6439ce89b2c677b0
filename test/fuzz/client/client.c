/*
 * A program that uses the client library on a mount whose daemon lies. There is no mount: what the library asks the kernel
 * about it (fstatfs, ioctl, epoll_wait) is answered here, by name (see build.mjs), from the bytes of the input. The file is an
 * ordinary one, the region another.
 *
 * Whatever the daemon answers: no memory but the mapping's own is touched, no descriptor is lost, nothing hangs; the
 * sanitizers and the library's own checks (MAPDIRECT_CHECKS) hold.
 *
 * For libFuzzer; with -DSTANDALONE a program by itself: client FILE..., or client --random COUNT SEED.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "mapdirect.h"
#include "wire.h"

#define PAGE 4096ul
#define REGION_BYTES (64 * PAGE)
#define FILE_BYTES (32 * PAGE)
#define UUID_AT 40
#define CANARIES 64
/* Of all threads together; every run makes a few, and none may stay. */
#define DESCRIPTORS_MAX 150
#define FUSE_MAGIC 0x65735546

static int region_fd;
static int file_fd;
static char region_path[64];
static struct stat region_status;
static struct stat file_status;
static uint8_t *canaries[CANARIES];

static void fail(const char *what) {
  fprintf(stderr, "client fuzzing: %s\n", what);
  abort();
}

/* ---- the input, taken byte by byte, by one thread at a time: the caller waits while the keeper asks */

static const uint8_t *input;
static size_t input_left;

static uint8_t take(void) {
  if (input_left == 0) return 0;
  input_left--;
  return *input++;
}

static uint64_t take_number(void) {
  static const uint64_t interesting[] = {
      0,          1,          2,         3,
      4,          15,         16,        255,
      508,        509,        4095,      4096,
      4097,       8192,       2ul << 20, REGION_BYTES,
      FILE_BYTES, UINT32_MAX, 1ul << 31, 1ul << 32,
      1ul << 47,  INT64_MAX,  1ul << 63, UINT64_MAX,
      1ul << 62,  -PAGE,      -4097ul,   INT64_MAX - 4095,
  };
  uint8_t how = take();
  if (how < 64) return (uint64_t)take() * PAGE;
  if (how < 128) return take();
  if (how < 224) return interesting[take() % (sizeof interesting / sizeof *interesting)];
  uint64_t value = 0;
  for (int byte = 0; byte < 8; byte++)
    value = value << 8 | take();
  return value;
}

/* Any fields of an answer, otherwise right, say something else. */
static void lie(void *answer, size_t bytes) {
  for (unsigned left = take() % 4; left > 0; left--) {
    size_t width = take() % 2 == 0 ? 8 : 4;
    size_t at = (take() % 2 == 0 ? take() : take() * 256u + take()) * 4 % (bytes - 7);
    uint64_t value = take_number();
    memcpy((char *)answer + at, &value, width);
  }
}

/* ---- what the kernel and the daemon say */

static atomic_int watch_fd = -1;            /* last one that a watch began on */
static atomic_int news_fd = -1;             /* what epoll_wait is to tell of */
static atomic_uint waits;                   /* how often the watcher has gone back to waiting */
static struct mapdirect_wire_status status; /* the next answer to STATUS */
static uint64_t lease_id;

int fuzz_fstatfs(int fd, struct statfs *filesystem) {
  int result = fstatfs(fd, filesystem);
  filesystem->f_type = FUSE_MAGIC;
  return result;
}

static void answer_region(struct mapdirect_wire_region *region) {
  memset(region, 0, sizeof *region);
  region->version = MAPDIRECT_WIRE_VERSION;
  region->kind = MAPDIRECT_WIRE_REGION_KIND_FILE;
  region->flags = take() % 4;
  region->block_size = PAGE;
  region->region_bytes = REGION_BYTES;
  region->map_alignment = PAGE;
  if (pread(region_fd, region->uuid, sizeof region->uuid, UUID_AT) != sizeof region->uuid) fail("pread");
  region->superblock_uuid_offset = UUID_AT;
  region->device = region_status.st_dev;
  region->inode = region_status.st_ino;
  region->path_bytes = (uint32_t)strlen(region_path);
  strcpy((char *)region->path, region_path);
  lie(region, sizeof *region);
}

static void answer_map(struct mapdirect_wire_map_full *wire) {
  uint64_t at = wire->map.offset;
  uint64_t end = at + wire->map.length;
  uint32_t count = take() % 8;
  uint8_t many = take();
  wire->map.lease_id = lease_id;
  wire->map.generation = 7;
  wire->map.inode = file_status.st_ino;
  wire->map.file_bytes = FILE_BYTES;
  wire->map.map_bytes = take() < 200 ? FILE_BYTES : take_number();
  wire->map.count = count;
  for (uint32_t index = 0; index < count; index++) {
    uint8_t how = take();
    uint64_t length = (how % 4 + 1) * PAGE;
    if (how >= 240) {
      at = take_number();
      length = take_number();
    } else if (how >= 220) {
      at += PAGE;
    }
    wire->extents[index] = (struct mapdirect_wire_extent){
        .offset = at,
        .physical = how / 8 % 60 * PAGE,
        .length = length,
        .state = how >= 230         ? take()
                 : how / 4 % 2 == 0 ? MAPDIRECT_WRITTEN
                                    : how / 8 % 2,
    };
    at += length;
  }
  if (many >= 248) wire->map.count = many >= 252 ? MAPDIRECT_WIRE_EXTENTS_MAX : (uint32_t)take_number();
  wire->map.next_offset = at < end && take() < 200 ? at : 0;
  lie(wire, take() < 200 ? sizeof wire->map : sizeof *wire);
}

int fuzz_ioctl(int fd, unsigned long request, void *argument) {
  static const int errors[] = {EINVAL, EAGAIN, EPERM, EIO, ENOTTY, EINTR, ENOMEM, ENOTCONN, ETXTBSY, EACCES};
  if (request >> 8 != MAPDIRECT_IOCTL_END >> 8 && (request >> 8 & 0xff) != 0x4d)
    return (int)syscall(SYS_ioctl, fd, request, argument);
  if (request == MAPDIRECT_IOCTL_STATUS) { /* the watcher asks */
    memcpy(argument, &status, sizeof status);
    return 0;
  }
  if (request == MAPDIRECT_IOCTL_END) return 0;
  if (take() >= 250) {
    errno = errors[take() % (sizeof errors / sizeof *errors)];
    return -1;
  }
  switch (request) {
  case MAPDIRECT_IOCTL_REGION:
    answer_region(argument);
    break;
  case MAPDIRECT_IOCTL_GRANT: {
    /* The kernel copies as many bytes as the request's number says. */
    struct mapdirect_wire_map_full whole = {.map = ((struct mapdirect_wire_grant_full *)argument)->map};
    lease_id++;
    answer_map(&whole);
    memcpy(argument, &whole, sizeof(struct mapdirect_wire_grant_full));
    break;
  }
  case MAPDIRECT_IOCTL_EXTENTS:
    answer_map(argument);
    break;
  case MAPDIRECT_IOCTL_WATCH:
    atomic_store(&watch_fd, fd);
    break;
  default:
    break;
  }
  return 0;
}

/* The watches are ordinary files, of which a real epoll set knows nothing. */
int fuzz_epoll_wait(int epoll_fd, struct epoll_event *events, int count, int timeout_ms) {
  atomic_fetch_add(&waits, 1);
  for (int left = timeout_ms; left > 0; left--) {
    int fd = atomic_exchange(&news_fd, -1);
    if (fd >= 0) {
      events[0] = (struct epoll_event){.events = EPOLLPRI, .data.fd = fd};
      return 1;
    }
    int ready = epoll_wait(epoll_fd, events, count, 1);
    if (ready != 0) return ready;
  }
  return 0;
}

/* A watch has news; returns when the library has dealt with it. */
static void break_lease(void) {
  int fd = atomic_load(&watch_fd);
  if (fd < 0) return;
  status = (struct mapdirect_wire_status){
      .version = MAPDIRECT_WIRE_VERSION,
      .state = take() % 5,
      .reason = 1,
      .lease_id = lease_id,
      .length = PAGE,
      .remaining_ms = 1000,
  };
  lie(&status, sizeof status);
  unsigned before = atomic_load(&waits);
  atomic_store(&news_fd, fd);
  for (int left = 2000; left > 0 && atomic_load(&waits) == before; left--)
    usleep(1000);
  if (atomic_load(&waits) == before && atomic_load(&news_fd) < 0) fail("the watcher does not come back");
  atomic_store(&news_fd, -1);
}

/* ---- the program */

static sigjmp_buf caught;
static _Thread_local volatile bool touching;

static void on_fault(int number) {
  if (!touching) fail(number == SIGBUS ? "SIGBUS outside of the mapping" : "SIGSEGV");
  siglongjmp(caught, 1);
}

/* Loads and stores in every page: SIGBUS is an answer, and so is SIGSEGV on what is not mapped. */
static void touch(volatile uint8_t *start, size_t length) {
  for (volatile size_t at = 0; at < length; at += PAGE) {
    if (sigsetjmp(caught, 1) != 0) continue;
    touching = true;
    uint8_t value = start[at];
    start[at] = (uint8_t)(value + 1);
    touching = false;
  }
  touching = false;
}

static void on_break(const struct mapdirect_break *what, void *context) {
  (void)what;
  (void)context;
}

static void check_canaries(void) {
  for (int index = 0; index < CANARIES; index++) {
    for (size_t at = 0; at < PAGE; at += 64)
      if (canaries[index][at] != (uint8_t)(index + 1)) fail("foreign memory was changed");
    canaries[index][1] = (uint8_t)index; /* it is still mapped, and ours */
  }
}

/* Of every thread: the library's has a table of its own. */
static size_t descriptors(void) {
  DIR *threads = opendir("/proc/self/task");
  size_t count = 0;
  if (threads == NULL) fail("/proc/self/task");
  for (struct dirent *thread; (thread = readdir(threads)) != NULL;) {
    char path[sizeof thread->d_name + 32];
    snprintf(path, sizeof path, "/proc/self/task/%s/fd", thread->d_name);
    DIR *folder = opendir(path);
    if (folder == NULL) continue;
    while (readdir(folder) != NULL)
      count++;
    closedir(folder);
  }
  closedir(threads);
  return count;
}

static void set_up(void) {
  region_fd = memfd_create("region", MFD_CLOEXEC);
  snprintf(region_path, sizeof region_path, "/proc/%d/fd/%d", (int)getpid(), region_fd);
  file_fd = memfd_create("file", MFD_CLOEXEC);
  if (region_fd < 0 || file_fd < 0) fail("cannot make files");
  if (ftruncate(region_fd, REGION_BYTES) != 0 || ftruncate(file_fd, FILE_BYTES) != 0) fail("ftruncate");
  if (pwrite(region_fd, "0123456789abcdef", 16, UUID_AT) != 16) fail("pwrite");
  if (fstat(region_fd, &region_status) != 0 || fstat(file_fd, &file_status) != 0) fail("fstat");
  for (int index = 0; index < CANARIES; index++) {
    canaries[index] = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (canaries[index] == MAP_FAILED) fail("mmap");
    memset(canaries[index], index + 1, PAGE);
  }
  struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
  sigaction(SIGBUS, &action, NULL);
  sigaction(SIGSEGV, &action, NULL);
}

struct held {
  uint8_t *start;
  size_t length;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static bool ready;
  static unsigned runs;
  struct held held[4] = {0};
  if (!ready) set_up();
  input = data;
  input_left = size;
  for (unsigned step = 0; step < 12 && (input_left > 0 || step == 0); step++) {
    struct held *one = &held[take() % 4];
    switch (take() % 8) {
    case 0:
    case 1:
    case 2: {
      if (one->start != NULL) break;
      size_t length = (take() % 16 + 1) * PAGE;
      int flags = MAP_SHARED_VALIDATE | MAP_DIRECT | (take() % 4 == 0 ? MAP_POPULATE : 0);
      int prot = PROT_READ | PROT_WRITE;
      off_t offset = (off_t)(take() % 24 * PAGE);
      uint8_t *mapped = mapdirect_map(NULL, length, prot, flags, file_fd, offset, take() % 3);
      if (mapped == MAP_FAILED) break;
      if (mapped == NULL || (uintptr_t)mapped % PAGE != 0) fail("a mapping at an impossible address");
      for (int index = 0; index < CANARIES; index++)
        if (canaries[index] + PAGE > mapped && canaries[index] < mapped + length)
          fail("a mapping over foreign memory");
      *one = (struct held){.start = mapped, .length = length};
      touch(mapped, length);
      break;
    }
    case 3:
      if (one->start == NULL) break;
      if (one->length > PAGE && take() % 2 == 0) { /* a part of it */
        if (mapdirect_unmap(one->start, PAGE) != 0) fail("unmap of a part");
        one->start += PAGE;
        one->length -= PAGE;
        break;
      }
      if (mapdirect_unmap(one->start, one->length) != 0) fail("unmap");
      one->start = NULL;
      break;
    case 4:
      if (one->start == NULL) break;
      mapdirect_persist(one->start, one->length);
      struct mapdirect_lease_info info;
      mapdirect_query(one->start, &info);
      touch(one->start, one->length);
      break;
    case 5: {
      struct mapdirect_extent extents[5];
      struct mapdirect_map_info info_of_map;
      ssize_t count = mapdirect_extents(file_fd, 0, FILE_BYTES, extents, take() % 6, &info_of_map);
      if (count > 5) fail("more extents than there is room for");
      break;
    }
    case 6:
      mapdirect_on_break(on_break, NULL, take() % 2 == 0 ? MAPDIRECT_REMAP : 0);
      break_lease();
      if (one->start != NULL) touch(one->start, one->length);
      break;
    default:
      if (one->start == NULL) break;
      uint8_t *moved = mapdirect_remap(one->start, one->length, one->length, MREMAP_MAYMOVE, NULL);
      if (moved != MAP_FAILED) one->start = moved;
      break;
    }
  }
  for (int index = 0; index < 4; index++)
    if (held[index].start != NULL && mapdirect_unmap(held[index].start, held[index].length) != 0)
      fail("unmap at the end");
  atomic_store(&watch_fd, -1);
  check_canaries();
  ready = true;
  if (++runs % 64 == 0 && descriptors() > DESCRIPTORS_MAX) fail("descriptors are left open");
  return 0;
}

#ifdef STANDALONE
static void run_file(const char *path) {
  static uint8_t bytes[1 << 16];
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t size = fd < 0 ? -1 : read(fd, bytes, sizeof bytes);
  if (size < 0) fail(path);
  close(fd);
  LLVMFuzzerTestOneInput(bytes, (size_t)size);
}

int main(int count, char **arguments) {
  if (count == 4 && strcmp(arguments[1], "--random") == 0) {
    uint8_t bytes[512];
    uint64_t state = strtoull(arguments[3], NULL, 10) * 2 + 1;
    for (long left = atol(arguments[2]); left > 0; left--) {
      for (size_t at = 0; at < sizeof bytes; at++) {
        state = state * 6364136223846793005ul + 1442695040888963407ul;
        bytes[at] = (uint8_t)(state >> 56);
      }
      LLVMFuzzerTestOneInput(bytes, state >> 33 & 511);
    }
  } else {
    for (int index = 1; index < count; index++)
      run_file(arguments[index]);
  }
  return 0;
}
#endif
