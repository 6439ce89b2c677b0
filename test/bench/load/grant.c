/*
 * What a direct mapping costs to make and to end, beside an ordinary one of the same file.
 *
 *   grant FILE EXTENTS SECONDS
 *
 * Writes EXTENTS blocks of 4 KiB into FILE, the last one first, so that none is physically behind its neighbour; then maps
 * all of it directly and ordinarily by turns. Prints medians in microseconds as JSON, and how many extents the mapping
 * found.
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

static double *samples[4]; /* map and unmap, direct and ordinary */

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

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: grant FILE EXTENTS SECONDS\n");
    return 2;
  }
  long extents = strtol(argv[2], NULL, 10);
  double end = strtod(argv[3], NULL) * 1e6;
  size_t length = (size_t)extents * BLOCK;
  static char block[BLOCK];
  memset(block, 'g', sizeof block);
  int fd = open(argv[1], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) fail(argv[1]);
  for (long index = extents - 1; index >= 0; index--)
    if (pwrite(fd, block, BLOCK, index * BLOCK) != BLOCK) fail("write");
  if (fsync(fd) != 0) fail("fsync");
  for (int kind = 0; kind < 4; kind++)
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
    count++;
  }
  unlink(argv[1]);
  double medians[4];
  for (int kind = 0; kind < 4; kind++)
    medians[kind] = median(samples[kind], count);
  printf(
      "{\"samples\":%d,\"extents\":%d,\"map\":%.3f,\"unmap\":%.3f,\"plainMap\":%.3f,\"plainUnmap\":%.3f}\n",
      count, found, medians[0], medians[1], medians[2], medians[3]);
  return 0;
}
