/*
 * How long a request waits at most, while others change the volume.
 *
 *   pause FILE SECONDS
 *
 * Reads 4 KiB of FILE, and asks for its attributes past the kernel's cache, again and again; keeps the latency of each.
 * Prints quantiles in microseconds as JSON. `ownCpuStalls` says how long this program alone was kept from running at
 * most while it asked nobody anything: what the machine adds to the longest pause.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SAMPLES_MAX = 8000000 };
static float *samples;

static double micros(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static int ascending(const void *left, const void *right) {
  float a = *(const float *)left;
  float b = *(const float *)right;
  return (a > b) - (a < b);
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: pause FILE SECONDS\n");
    return 2;
  }
  static char block[4096] __attribute__((aligned(4096)));
  int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
  samples = malloc(SAMPLES_MAX * sizeof *samples);
  if (fd < 0 || !samples) {
    fprintf(stderr, "pause: %s: %s\n", argv[1], strerror(errno));
    return 1;
  }
  double end = micros() + strtod(argv[2], NULL) * 1e6;
  size_t count = 0;
  double stall = 0;
  for (double before = micros(); before < end && count < SAMPLES_MAX; count++) {
    struct statx reply;
    int bad = count % 2 == 0
                  ? pread(fd, block, sizeof block, 0) < 0
                  : statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &reply) != 0;
    double after = micros();
    if (bad) {
      fprintf(stderr, "pause: %s: %s\n", argv[1], strerror(errno));
      return 1;
    }
    samples[count] = (float)(after - before);
    /* As long again with nobody asked: the clock alone. */
    double last = after;
    double until = after + samples[count];
    for (before = after; before < until; before = micros()) {
      if (before - last > stall) stall = before - last;
      last = before;
    }
    if (before - last > stall) stall = before - last;
  }
  qsort(samples, count, sizeof *samples, ascending);
  printf("{\"requests\": %zu, \"median\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"longest\": %.1f, "
         "\"ownCpuStalls\": %.1f}\n",
         count, samples[count / 2], samples[count * 99 / 100], samples[count * 999 / 1000],
         samples[count - 1], stall);
  return 0;
}
