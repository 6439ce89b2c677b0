/*
 * What a direct mapping costs to make and to end, beside an ordinary one of the same file, and beside as many mmap(2) as it has
 * extents, of a file in memory, without anything else.
 *
 *   grant FILE EXTENTS SECONDS
 *
 * Gives FILE the EXTENTS blocks of 4 KiB of another file, the last one first, so that none is physically behind its
 * neighbour; then maps all of it directly and ordinarily by turns. Prints medians in microseconds as JSON, and how many extents
 * the mapping found.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "mapdirect.h"

enum { BLOCK = 4096, SAMPLES_MAX = 100000 };

enum { KINDS = 6 };
static double *samples[KINDS]; /* map and unmap: direct, ordinary, by pieces */

static double micros(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static void fail(const char *what) {
  fprintf(stderr, "grant: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int ascending(const void *left, const void *right) {
  double a = *(const double *)left;
  double b = *(const double *)right;
  return (a > b) - (a < b);
}

static double median(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, ascending);
  return values[count / 2];
}

static int count_extents(const char *map, size_t length) {
  int count = 0;
  struct mapdirect_lease_info info;
  for (size_t at = 0; at < length; at += info.length) {
    if (mapdirect_query(map + at, &info) != 0 || info.length == 0) fail("query");
    count++;
  }
  return count;
}

static int open_new(const char *path) {
  int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) fail(path);
  return fd;
}

/* Blocks are shared one by one, and then the other file goes. */
static int make_file(const char *path, long extents) {
  static char block[BLOCK];
  char source_path[4096];
  memset(block, 'g', sizeof block);
  snprintf(source_path, sizeof source_path, "%s-source", path);
  int source = open_new(source_path);
  int fd = open_new(path);
  for (long index = 0; index < extents; index++)
    if (pwrite(source, block, BLOCK, index * BLOCK) != BLOCK) fail("write");
  for (long index = 0; index < extents; index++) {
    off_t from = (extents - 1 - index) * BLOCK;
    off_t to = index * BLOCK;
    if (copy_file_range(source, &from, fd, &to, BLOCK, 0) != BLOCK) fail("copy_file_range");
  }
  close(source);
  if (unlink(source_path) != 0 || fsync(fd) != 0) fail("fsync");
  /* It takes a moment until they are all this file's alone. */
  for (int tries = 0; tries < 1000; tries++) {
    void *map = mapdirect_map(NULL, (size_t)extents * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_DIRECT,
                              fd, 0, MAPDIRECT_BREAKABLE);
    if (map != MAP_FAILED) {
      mapdirect_unmap(map, (size_t)extents * BLOCK);
      return fd;
    }
    usleep(10000);
  }
  fail("mapdirect_map");
  return fd;
}

static char *map_pieces(int memory, long extents) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  char *map = mmap(NULL, (size_t)extents * BLOCK, PROT_NONE, flags, -1, 0);
  if (map == MAP_FAILED) fail("mmap");
  for (long index = 0; index < extents; index++)
    if (mmap(map + index * BLOCK, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory,
             (extents - 1 - index) * BLOCK) == MAP_FAILED)
      fail("mmap");
  return map;
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: grant FILE EXTENTS SECONDS\n");
    return 2;
  }
  long extents = strtol(argv[2], NULL, 10);
  double end = strtod(argv[3], NULL) * 1e6;
  size_t length = (size_t)extents * BLOCK;
  int fd = make_file(argv[1], extents);
  int memory = memfd_create("grant", MFD_CLOEXEC);
  if (memory < 0 || ftruncate(memory, (off_t)length) != 0) fail("memfd");
  for (int kind = 0; kind < KINDS; kind++)
    if ((samples[kind] = calloc(SAMPLES_MAX, sizeof(double))) == NULL) fail("memory");

  int found = 0;
  int count = 0;
  end += micros();
  while (count < SAMPLES_MAX && (count < 5 || micros() < end)) {
    double before = micros();
    char *map = mapdirect_map(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_DIRECT, fd, 0,
                              MAPDIRECT_BREAKABLE);
    samples[0][count] = micros() - before;
    if (map == MAP_FAILED) fail("mapdirect_map");
    if (count == 0) found = count_extents(map, length);
    before = micros();
    if (mapdirect_unmap(map, length) != 0) fail("mapdirect_unmap");
    samples[1][count] = micros() - before;

    before = micros();
    map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    samples[2][count] = micros() - before;
    if (map == MAP_FAILED) fail("mmap");
    before = micros();
    if (munmap(map, length) != 0) fail("munmap");
    samples[3][count] = micros() - before;

    before = micros();
    map = map_pieces(memory, extents);
    samples[4][count] = micros() - before;
    before = micros();
    if (munmap(map, length) != 0) fail("munmap");
    samples[5][count] = micros() - before;
    count++;
  }
  unlink(argv[1]);
  double medians[KINDS];
  for (int kind = 0; kind < KINDS; kind++)
    medians[kind] = median(samples[kind], count);
  printf("{\"samples\":%d,\"extents\":%d,\"map\":%.3f,\"unmap\":%.3f,\"plainMap\":%.3f,\"plainUnmap\":%.3f,"
         "\"piecesMap\":%.3f,\"piecesUnmap\":%.3f}\n",
         count, found, medians[0], medians[1], medians[2], medians[3], medians[4], medians[5]);
  return 0;
}
