/*
 * Loads and stores through a direct mapping, beside a plain mmap(2) of the same bytes of the region.
 *
 *   direct FILE REGION PROCESSES SLICES SLICE_MS
 *   direct FILE REGION touch STEP SLICES
 *
 * Both mappings show the same physical pages, so caches and memory treat them alike. Slices of the two alternate,
 * A B B A, all processes doing the same at a time; a rate is operations by the CPU time of the process, so that what
 * else runs on the machine counts little. Prints, for each kind, the median rates and the median of the ratios of
 * neighbours, as JSON. `touch` maps anew for each sample, and stores one byte every STEP bytes; with it go the
 * kilobytes that the kernel maps there with huge pages.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "mapdirect.h"

enum { PAGE = 4096, LINE = 64, CHUNK = 1 << 20, SLICES_MAX = 512, PROCESSES_MAX = 16 };
enum { DIRECT, RAW, SIDES };

struct view {
  char *at;
  bool is_direct;
};

static size_t length;
static bool cacheline;
static uint64_t seed = 88172645463325252u;
static volatile uint64_t sink;

static void fail(const char *what) {
  fprintf(stderr, "direct: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double seconds(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint64_t next_random(void) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return seed;
}

#if defined(__x86_64__)
#include <cpuid.h>
static enum { CLFLUSH, CLFLUSHOPT, CLWB } flush_with;

static void choose_flush(void) {
  unsigned a, b = 0, c, d;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  flush_with = b & (1u << 24) ? CLWB : b & (1u << 23) ? CLFLUSHOPT : CLFLUSH;
}

static void flush(const char *at, size_t bytes) {
  for (size_t done = 0; done < bytes; done += LINE) {
    if (flush_with == CLWB)
      __asm__ volatile("clwb %0" : : "m"(at[done]) : "memory");
    else if (flush_with == CLFLUSHOPT)
      __asm__ volatile("clflushopt %0" : : "m"(at[done]) : "memory");
    else
      __asm__ volatile("clflush %0" : : "m"(at[done]) : "memory");
  }
  __asm__ volatile("sfence" : : : "memory");
}
#else
static void choose_flush(void) {}
static void flush(const char *at, size_t bytes) {
  for (size_t done = 0; done < bytes; done += LINE)
    __asm__ volatile("dc cvac, %0" : : "r"(at + done) : "memory");
  __asm__ volatile("dsb ish" : : : "memory");
}
#endif

/* What a program without the library would do for the same durability. */
static void persist(const struct view *view, char *at, size_t bytes) {
  if (view->is_direct) {
    if (mapdirect_persist(at, bytes) != 0) fail("mapdirect_persist");
  } else if (cacheline) {
    flush(at, bytes);
  } else {
    char *page = (char *)((uintptr_t)at & ~(uintptr_t)(PAGE - 1));
    if (msync(page, PAGE, MS_SYNC) != 0) fail("msync");
  }
}

static void store_line(const struct view *view) {
  char *at = view->at + next_random() % (length / LINE) * LINE;
  uint64_t *word = (uint64_t *)at;
  for (int index = 0; index < LINE / 8; index++)
    word[index] = seed;
  persist(view, at, LINE);
}

static void copy_page(const struct view *view) {
  static char page[PAGE] __attribute__((aligned(PAGE)));
  page[0] = (char)seed;
  char *at = view->at + next_random() % (length / PAGE) * PAGE;
  memcpy(at, page, PAGE);
  persist(view, at, PAGE);
}

static void load_random(const struct view *view) {
  uint64_t sum = 0;
  for (int count = 0; count < 64; count++)
    sum += *(const uint64_t *)(view->at + next_random() % (length / 8) * 8);
  sink = sum;
}

static void fill_chunk(const struct view *view) {
  static size_t at[SIDES];
  size_t *next = &at[view->is_direct ? DIRECT : RAW];
  memset(view->at + *next, (int)seed, CHUNK);
  *next = (*next + CHUNK) % length;
}

static void read_chunk(const struct view *view) {
  static size_t at[SIDES];
  size_t *next = &at[view->is_direct ? DIRECT : RAW];
  const uint64_t *word = (const uint64_t *)(view->at + *next);
  uint64_t sum = 0;
  for (size_t index = 0; index < CHUNK / 8; index++)
    sum += word[index];
  sink = sum;
  *next = (*next + CHUNK) % length;
}

static const struct kind {
  const char *name;
  void (*run)(const struct view *view);
  int per_run; /* operations, or bytes, of one call */
} kinds[] = {
    {"store64", store_line, 1},  {"copy4k", copy_page, 1},    {"randomLoad", load_random, 64},
    {"fill", fill_chunk, CHUNK}, {"scan", read_chunk, CHUNK},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

/* Shared by the processes: they start each slice together. */
static struct shared {
  pthread_barrier_t barrier;
  double rate[PROCESSES_MAX][KINDS][SLICES_MAX][SIDES];
} * shared;

static int ascending(const void *left, const void *right) {
  double a = *(const double *)left;
  double b = *(const double *)right;
  return (a > b) - (a < b);
}

static double median(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, ascending);
  return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static char *map_direct(int fd) {
  char *map = mapdirect_map(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_DIRECT, fd, 0,
                            MAPDIRECT_BREAKABLE);
  if (map == MAP_FAILED) fail("mapdirect_map");
  return map;
}

/* The physical runs that the direct mapping shows, from the region itself. */
struct run {
  size_t offset;
  uint64_t physical;
  size_t length;
};
static struct run runs[4096];
static int run_count;

static void find_runs(const char *direct) {
  struct mapdirect_lease_info info;
  run_count = 0;
  for (size_t at = 0; at < length; at += info.length) {
    if (mapdirect_query(direct + at, &info) != 0 || info.length == 0) fail("mapdirect_query");
    if (info.state != MAPDIRECT_WRITTEN || run_count == 4096) {
      fprintf(stderr, "direct: the file is not prepared, or in too many pieces\n");
      exit(1);
    }
    cacheline = info.cacheline != 0;
    runs[run_count++] = (struct run){at, info.physical, info.length};
  }
}

static char *map_raw(int region) {
  if (run_count == 1) {
    char *map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, region, (off_t)runs[0].physical);
    if (map == MAP_FAILED) fail("mmap of the region");
    return map;
  }
  char *map = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) fail("mmap");
  for (int index = 0; index < run_count; index++)
    if (mmap(map + runs[index].offset, runs[index].length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
             region, (off_t)runs[index].physical) == MAP_FAILED)
      fail("mmap of the region");
  return map;
}

static double slice(const struct kind *kind, const struct view *view, double limit_sec) {
  double begin = seconds(CLOCK_THREAD_CPUTIME_ID);
  double end = seconds(CLOCK_MONOTONIC) + limit_sec;
  uint64_t calls = 0;
  int batch = kind->per_run == 1 ? 32 : 1;
  do {
    for (int count = 0; count < batch; count++)
      kind->run(view);
    calls += (uint64_t)batch;
  } while (seconds(CLOCK_MONOTONIC) < end);
  return (double)calls * kind->per_run / (seconds(CLOCK_THREAD_CPUTIME_ID) - begin);
}

static void work(int process, int fd, int region, int slices, double slice_sec) {
  seed += (uint64_t)process * 0x9e3779b97f4a7c15u;
  struct view views[SIDES];
  views[DIRECT] = (struct view){map_direct(fd), true};
  find_runs(views[DIRECT].at);
  views[RAW] = (struct view){map_raw(region), false};
  for (int side = 0; side < SIDES; side++)
    for (size_t at = 0; at < length; at += PAGE)
      *(volatile char *)(views[side].at + at) = 1;
  for (int kind = 0; kind < KINDS; kind++) {
    for (int index = 0; index < slices; index++) {
      for (int turn = 0; turn < SIDES; turn++) {
        int side = (turn + index) % SIDES;
        pthread_barrier_wait(&shared->barrier);
        shared->rate[process][kind][index][side] = slice(&kinds[kind], &views[side], slice_sec);
      }
    }
  }
  if (mapdirect_unmap(views[DIRECT].at, length) != 0) fail("mapdirect_unmap");
}

static void compare(int processes, int slices) {
  printf("{\"cacheline\": %s", cacheline ? "true" : "false");
  for (int kind = 0; kind < KINDS; kind++) {
    static double values[SIDES + 1][SLICES_MAX];
    for (int index = 0; index < slices; index++) {
      double sum[SIDES] = {0, 0};
      for (int process = 0; process < processes; process++)
        for (int side = 0; side < SIDES; side++)
          sum[side] += shared->rate[process][kind][index][side];
      values[DIRECT][index] = sum[DIRECT];
      values[RAW][index] = sum[RAW];
      values[SIDES][index] = sum[DIRECT] / sum[RAW];
    }
    printf(", \"%s\": {\"direct\": %.1f, \"raw\": %.1f, \"ratio\": %.5f}", kinds[kind].name,
           median(values[DIRECT], slices), median(values[RAW], slices), median(values[SIDES], slices));
  }
  printf("}\n");
}

/* Kilobytes of a mapping that the kernel has mapped by huge pages. */
static long huge_kib(const char *at) {
  FILE *maps = fopen("/proc/self/smaps", "re");
  if (!maps) fail("smaps");
  char line[512];
  bool here = false;
  long total = 0;
  while (fgets(line, sizeof line, maps)) {
    unsigned long from, to;
    long kib;
    if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
      here = from < (unsigned long)at + length && to > (unsigned long)at;
    else if (here && (sscanf(line, "ShmemPmdMapped: %ld", &kib) == 1 ||
                      sscanf(line, "FilePmdMapped: %ld", &kib) == 1))
      total += kib;
  }
  fclose(maps);
  return total;
}

static int touch(int fd, int region, size_t step, int slices) {
  static double values[SIDES + 1][SLICES_MAX];
  long huge[SIDES] = {0, 0};
  char *first = map_direct(fd);
  find_runs(first);
  if (mapdirect_unmap(first, length) != 0) fail("mapdirect_unmap");
  double touches = (double)(length / step);
  for (int index = 0; index < slices; index++) {
    double rate[SIDES];
    for (int turn = 0; turn < SIDES; turn++) {
      int side = (turn + index) % SIDES;
      char *map = side == DIRECT ? map_direct(fd) : map_raw(region);
      double begin = seconds(CLOCK_THREAD_CPUTIME_ID);
      for (size_t at = 0; at < length; at += step)
        *(volatile char *)(map + at) = 1;
      rate[side] = touches / (seconds(CLOCK_THREAD_CPUTIME_ID) - begin);
      if (index == 0) huge[side] = huge_kib(map);
      if ((side == DIRECT ? mapdirect_unmap(map, length) : munmap(map, length)) != 0) fail("munmap");
    }
    values[DIRECT][index] = rate[DIRECT];
    values[RAW][index] = rate[RAW];
    values[SIDES][index] = rate[DIRECT] / rate[RAW];
  }
  printf("{\"touch\": {\"direct\": %.1f, \"raw\": %.1f, \"ratio\": %.5f}, \"hugeKib\": {\"direct\": %ld, "
         "\"raw\": %ld}}\n",
         median(values[DIRECT], slices), median(values[RAW], slices), median(values[SIDES], slices),
         huge[DIRECT], huge[RAW]);
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 6) {
    fprintf(
        stderr,
        "usage: direct FILE REGION PROCESSES SLICES SLICE_MS\n       direct FILE REGION touch STEP SLICES\n");
    return 2;
  }
  bool touches = strcmp(argv[3], "touch") == 0;
  int processes = touches ? 1 : (int)strtol(argv[3], NULL, 10);
  int slices = (int)strtol(argv[touches ? 5 : 4], NULL, 10);
  if (processes < 1 || processes > PROCESSES_MAX || slices < 1 || slices > SLICES_MAX) {
    fprintf(stderr, "direct: 1 to %d processes, 1 to %d slices\n", PROCESSES_MAX, SLICES_MAX);
    return 2;
  }
  choose_flush();
  struct stat status;
  int fd = open(argv[1], O_RDWR | O_CLOEXEC);
  if (fd < 0 || fstat(fd, &status) != 0) fail(argv[1]);
  int region = open(argv[2], O_RDWR | O_CLOEXEC);
  if (region < 0) fail(argv[2]);
  length = (size_t)status.st_size / CHUNK * CHUNK;
  if (length == 0) {
    fprintf(stderr, "direct: the file has less than 1 MiB\n");
    return 2;
  }
  if (mapdirect_prepare(fd, 0, (off_t)length) != 0) fail("mapdirect_prepare");
  if (touches) return touch(fd, region, strtoul(argv[4], NULL, 10), slices);

  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) fail("mmap");
  pthread_barrierattr_t attributes;
  pthread_barrierattr_init(&attributes);
  pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_barrier_init(&shared->barrier, &attributes, (unsigned)processes);
  double slice_sec = strtod(argv[5], NULL) / 1000;
  /* The first runs here: what its mapping says of the region's granularity is printed. */
  pid_t children[PROCESSES_MAX];
  for (int process = 1; process < processes; process++) {
    children[process] = fork();
    if (children[process] < 0) fail("fork");
    if (children[process] == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      work(process, fd, region, slices, slice_sec);
      _exit(0);
    }
  }
  work(0, fd, region, slices, slice_sec);
  for (int process = 1; process < processes; process++) {
    int ended;
    if (waitpid(children[process], &ended, 0) < 0 || ended != 0) {
      fprintf(stderr, "direct: a process has failed\n");
      return 1;
    }
  }
  compare(processes, slices);
  return 0;
}
