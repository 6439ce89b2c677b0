/*
 * One file, one block size, one request at a time (as fio's psync engine): short, so that those who are compared can take
 * turns within a second.
 *
 *   io FILE read|write random|sequential BLOCK_BYTES FILE_BYTES SECONDS
 *
 * SECONDS of 0 means: once through the file. Prints {"operations", "bytes", "seconds"} as JSON.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint64_t next_random(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

int main(int argc, char **argv) {
  if (argc != 7) {
    fprintf(stderr, "usage: io FILE read|write random|sequential BLOCK_BYTES FILE_BYTES SECONDS\n");
    return 2;
  }
  int writes = strcmp(argv[2], "write") == 0;
  int random = strcmp(argv[3], "random") == 0;
  uint64_t block = strtoull(argv[4], NULL, 10);
  uint64_t blocks = block ? strtoull(argv[5], NULL, 10) / block : 0;
  double limit = strtod(argv[6], NULL);
  /* For both: the preload library serves no other descriptors. */
  int file = open(argv[1], O_RDWR | O_CLOEXEC | (writes ? O_CREAT : 0), 0644);
  char *buffer = blocks ? aligned_alloc(4096, (block + 4095) / 4096 * 4096) : NULL;
  if (file < 0 || !buffer) {
    fprintf(stderr, "io: %s: %s\n", argv[1], file < 0 ? strerror(errno) : "bad sizes");
    return 1;
  }
  memset(buffer, 0x5a, block);
  uint64_t state = 88172645463325252u;
  uint64_t done = 0;
  double begin = seconds();
  double end = begin;
  for (;;) {
    uint64_t index = (random ? next_random(&state) : done) % blocks;
    off_t offset = (off_t)(index * block);
    ssize_t moved = writes ? pwrite(file, buffer, block, offset) : pread(file, buffer, block, offset);
    if (moved != (ssize_t)block) {
      fprintf(stderr, "io: %s at %jd: %s\n", argv[2], (intmax_t)offset,
              moved < 0 ? strerror(errno) : "short");
      return 1;
    }
    done++;
    if (limit == 0 ? done == blocks : done % 16 == 0 && seconds() - begin >= limit) break;
  }
  end = seconds();
  printf("{\"operations\": %ju, \"bytes\": %ju, \"seconds\": %.6f}\n", (uintmax_t)done,
         (uintmax_t)(done * block), end - begin);
  return 0;
}
