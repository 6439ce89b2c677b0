/*
 * What the guest's tests need of a direct mapping, one small command each; says what it found on standard output.
 *
 *   direct store FILE BYTES TEXT     prepare and map the file, store TEXT into its middle, persist; prints
 *                                    "physical N" and what ftruncate() answers meanwhile
 *   direct sync FILE BYTES           whether MAP_SYNC is granted: "granted", or the errno
 *   direct misaligned FILE BYTES     what a mapping of BYTES - 4096 and one at offset 4096 get
 *   direct register FILE BYTES       io_uring: the mapping as a registered buffer, and a read(2) into it by the kernel
 *   direct load FILE BYTES LEASE      stores records for ever (records.mjs checks them), and prints the number of each
 *                                    when it is durable; LEASE: seal or breakable
 *   direct peek REGION OFFSET BYTES UNIT   the region's bytes by a mapping of its own
 *   direct extent FILE OFFSET        where that byte of a region file lies on its block device (FIEMAP)
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <mapdirect.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

static void give_up(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerrorname_np(errno));
  exit(1);
}

static int open_file(const char *path, off_t bytes) {
  int fd = open(path, O_RDWR | O_CREAT, 0600);
  if (fd < 0) give_up("open");
  if (ftruncate(fd, bytes) != 0) give_up("ftruncate");
  if (mapdirect_prepare(fd, 0, bytes) != 0) give_up("prepare");
  return fd;
}

static char *map(int fd, size_t bytes, off_t offset, int flags) {
  return mapdirect_map(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | flags, fd, offset,
                       MAPDIRECT_SEAL);
}

static char *must_map(int fd, size_t bytes) {
  char *at = map(fd, bytes, 0, 0);
  if (at == MAP_FAILED) give_up("map");
  return at;
}

static int store(const char *path, size_t bytes, const char *text) {
  int fd = open_file(path, (off_t)bytes);
  char *data = must_map(fd, bytes);
  char *place = data + bytes / 2 + 128;
  struct mapdirect_lease_info info;
  strcpy(place, text);
  if (mapdirect_persist(place, strlen(text)) != 0) give_up("persist");
  if (mapdirect_query(place, &info) != 0) give_up("query");
  printf("physical %llu\n", (unsigned long long)info.physical);
  printf("truncate %s\n", ftruncate(fd, 0) == 0 ? "done" : strerrorname_np(errno));
  char seen[256] = {0};
  if (pread(fd, seen, strlen(text), (off_t)(bytes / 2 + 128)) < 0) give_up("pread");
  printf("read %s\n", seen);
  char back[] = "written by pwrite";
  if (pwrite(fd, back, sizeof back, 4096) != sizeof back) give_up("pwrite");
  printf("mapping %s\n", data + 4096);
  if (mapdirect_unmap(data, bytes) != 0) give_up("unmap");
  return 0;
}

/* Record n is one cache line of eight words, at n modulo the number of lines; its words tell n and their own place. */
__attribute__((noreturn)) static void load(const char *path, size_t bytes, const char *lease) {
  unsigned kind = strcmp(lease, "seal") == 0 ? MAPDIRECT_SEAL : MAPDIRECT_BREAKABLE;
  int fd = open_file(path, (off_t)bytes);
  char *data =
      mapdirect_map(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0, kind);
  if (data == MAP_FAILED) give_up("map");
  for (uint64_t number = 1;; number++) {
    volatile uint64_t *line = (volatile uint64_t *)(data + number * 64 % bytes);
    for (uint64_t word = 0; word < 8; word++)
      line[word] = number << 8 | word;
    if (mapdirect_persist((const void *)line, 64) != 0) give_up("persist");
    char text[32];
    int length = snprintf(text, sizeof text, "%llu\n", (unsigned long long)number);
    if (write(STDOUT_FILENO, text, (size_t)length) != length) give_up("write");
  }
}

static int sync_granted(const char *path, size_t bytes) {
  int fd = open_file(path, (off_t)bytes);
  char *at = map(fd, bytes, 0, MAP_SYNC);
  printf("%s\n", at == MAP_FAILED ? strerrorname_np(errno) : "granted");
  return 0;
}

static int misaligned(const char *path, size_t bytes) {
  int fd = open_file(path, (off_t)bytes);
  char *shorter = map(fd, bytes - 4096, 0, 0);
  printf("length %s\n", shorter == MAP_FAILED ? strerrorname_np(errno) : "mapped");
  char *later = map(fd, bytes, 4096, 0);
  printf("offset %s\n", later == MAP_FAILED ? strerrorname_np(errno) : "mapped");
  return 0;
}

/* Without liburing: one ring of one entry. */
static int registered(const char *path, size_t bytes) {
  int fd = open_file(path, (off_t)bytes);
  char *data = must_map(fd, bytes);
  struct io_uring_params params = {0};
  int ring = (int)syscall(SYS_io_uring_setup, 1, &params);
  if (ring < 0) give_up("io_uring_setup");
  struct iovec buffer = {.iov_base = data, .iov_len = bytes};
  if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) != 0) {
    printf("refused %s\n", strerrorname_np(errno));
    return 0;
  }
  size_t sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
  size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
  size_t ring_bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
  char *rings = mmap(NULL, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, (off_t)IORING_OFF_SQ_RING);
  struct io_uring_sqe *entry = mmap(NULL, params.sq_entries * sizeof *entry, PROT_READ | PROT_WRITE,
                                    MAP_SHARED, ring, (off_t)IORING_OFF_SQES);
  if (rings == MAP_FAILED || (void *)entry == MAP_FAILED) give_up("mmap of the rings");
  int source = memfd_create("source", 0);
  static char text[4096];
  memset(text, 'K', sizeof text);
  if (write(source, text, sizeof text) != sizeof text) give_up("write");
  *entry = (struct io_uring_sqe){.opcode = IORING_OP_READ_FIXED,
                                 .fd = source,
                                 .addr = (uintptr_t)(data + 8192),
                                 .len = sizeof text,
                                 .buf_index = 0};
  *(uint32_t *)(rings + params.sq_off.array) = 0;
  __atomic_store_n((uint32_t *)(rings + params.sq_off.tail), 1, __ATOMIC_RELEASE);
  if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
    give_up("io_uring_enter");
  struct io_uring_cqe *done = (struct io_uring_cqe *)(rings + params.cq_off.cqes);
  if (done->res != (int)sizeof text) {
    errno = done->res < 0 ? -done->res : EIO;
    give_up("the fixed read");
  }
  if (memcmp(data + 8192, text, sizeof text) != 0) give_up("what the kernel stored");
  char seen[4096];
  if (pread(fd, seen, sizeof seen, 8192) != sizeof seen || memcmp(seen, text, sizeof seen) != 0)
    give_up("what read(2) sees of it");
  printf("registered\n");
  return 0;
}

static int peek(const char *path, size_t offset, size_t bytes, size_t unit) {
  int fd = open(path, O_RDONLY);
  if (fd < 0) give_up("open");
  size_t first = offset / unit * unit;
  size_t length = (offset + bytes - first + unit - 1) / unit * unit;
  char *at = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, (off_t)first);
  if (at == MAP_FAILED) give_up("mmap");
  printf("%.*s\n", (int)bytes, at + (offset - first));
  return 0;
}

static int extent(const char *path, uint64_t offset) {
  int fd = open(path, O_RDONLY);
  if (fd < 0) give_up("open");
  char space[sizeof(struct fiemap) + sizeof(struct fiemap_extent)] __attribute__((aligned(8))) = {0};
  struct fiemap *map_of = (struct fiemap *)space;
  *map_of = (struct fiemap){.fm_start = offset, .fm_length = 1, .fm_extent_count = 1};
  if (ioctl(fd, FS_IOC_FIEMAP, map_of) != 0 || map_of->fm_mapped_extents != 1) give_up("fiemap");
  const struct fiemap_extent *found = &map_of->fm_extents[0];
  printf("%llu\n", (unsigned long long)(found->fe_physical + (offset - found->fe_logical)));
  return 0;
}

int main(int argc, char **argv) {
  const char *command = argc > 1 ? argv[1] : "";
  const char *path = argc > 2 ? argv[2] : "";
  size_t number = argc > 3 ? strtoull(argv[3], NULL, 0) : 0;
  if (strcmp(command, "store") == 0 && argc == 5) return store(path, number, argv[4]);
  if (strcmp(command, "load") == 0 && argc == 5) load(path, number, argv[4]);
  if (strcmp(command, "sync") == 0 && argc == 4) return sync_granted(path, number);
  if (strcmp(command, "misaligned") == 0 && argc == 4) return misaligned(path, number);
  if (strcmp(command, "register") == 0 && argc == 4) return registered(path, number);
  if (strcmp(command, "peek") == 0 && argc == 6)
    return peek(path, number, strtoull(argv[4], NULL, 0), strtoull(argv[5], NULL, 0));
  if (strcmp(command, "extent") == 0 && argc == 4) return extent(path, number);
  fprintf(stderr, "see the head of direct.c\n");
  return 2;
}
