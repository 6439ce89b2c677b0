/*
 * gpu-checkpoint - a tensor from a GPU straight into the blocks of a file, and back.
 *
 *     cc gpu-checkpoint.c -lmapdirect -ldl -pthread -o gpu-checkpoint
 *     gpu-checkpoint FILE [MIB [ROUNDS]]
 *
 * FILE, on a mapdirect mount, is made or overwritten; 256 MiB and 5 rounds unless told otherwise. The mapping of the file is
 * registered with the driver (cuMemHostRegister), so that the GPU copies into it by itself. Each way is checked byte by byte,
 * and its rate (median of the rounds, 10^9 bytes per second) is printed beside page-locked memory, which no file is behind, and
 * beside the usual way: page-locked memory, then write(2).
 *
 * Needs no CUDA to be built: libcuda.so.1, which comes with the driver, is loaded when it runs. Exit code 77: there is no GPU;
 * 0: done; 1: failed, or the lease on the file was broken.
 *
 * What matters for others is `let_go`: the device must be told before the memory goes (docs/LEASES.md, "Devices").
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <mapdirect.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define NO_GPU 77
#define MIB ((size_t)1 << 20)

/* ---- the driver's interface, as far as it is used (cuda.h) */

typedef int CUresult; /* 0: success */
typedef int CUdevice;
typedef struct CUctx_st *CUcontext;
typedef unsigned long long CUdeviceptr;
#define CU_MEMHOSTREGISTER_PORTABLE 1u /* for every context, and so for `let_go`'s thread, too */

static struct {
  CUresult (*init)(unsigned flags);
  CUresult (*device_count)(int *count);
  CUresult (*device_get)(CUdevice *device, int ordinal);
  CUresult (*device_name)(char *name, int length, CUdevice device);
  CUresult (*context_retain)(CUcontext *context, CUdevice device);
  CUresult (*context_release)(CUdevice device);
  CUresult (*context_set)(CUcontext context);
  CUresult (*synchronize)(void);
  CUresult (*mem_alloc)(CUdeviceptr *memory, size_t bytes);
  CUresult (*mem_free)(CUdeviceptr memory);
  CUresult (*mem_set)(CUdeviceptr memory, unsigned char value, size_t bytes);
  CUresult (*host_alloc)(void **memory, size_t bytes);
  CUresult (*host_free)(void *memory);
  CUresult (*host_register)(void *memory, size_t bytes, unsigned flags);
  CUresult (*host_unregister)(void *memory);
  CUresult (*to_host)(void *target, CUdeviceptr source, size_t bytes);
  CUresult (*to_device)(CUdeviceptr target, const void *source, size_t bytes);
  CUresult (*error_string)(CUresult error, const char **text);
} cuda;

static const struct {
  const char *name;
  void *place;
} SYMBOLS[] = {
    {"cuInit", &cuda.init},
    {"cuDeviceGetCount", &cuda.device_count},
    {"cuDeviceGet", &cuda.device_get},
    {"cuDeviceGetName", &cuda.device_name},
    {"cuDevicePrimaryCtxRetain", &cuda.context_retain},
    {"cuDevicePrimaryCtxRelease_v2", &cuda.context_release},
    {"cuCtxSetCurrent", &cuda.context_set},
    {"cuCtxSynchronize", &cuda.synchronize},
    {"cuMemAlloc_v2", &cuda.mem_alloc},
    {"cuMemFree_v2", &cuda.mem_free},
    {"cuMemsetD8_v2", &cuda.mem_set},
    {"cuMemAllocHost_v2", &cuda.host_alloc},
    {"cuMemFreeHost", &cuda.host_free},
    {"cuMemHostRegister_v2", &cuda.host_register},
    {"cuMemHostUnregister", &cuda.host_unregister},
    {"cuMemcpyDtoH_v2", &cuda.to_host},
    {"cuMemcpyHtoD_v2", &cuda.to_device},
    {"cuGetErrorString", &cuda.error_string},
};

static const char *text_of(CUresult error) {
  const char *text = NULL;
  return cuda.error_string(error, &text) == 0 && text != NULL ? text : "unknown error";
}

__attribute__((noreturn)) static void give_up(const char *what, const char *why) {
  fprintf(stderr, "gpu-checkpoint: %s: %s\n", what, why);
  exit(1);
}

__attribute__((noreturn)) static void no_gpu(const char *why) {
  fprintf(stderr, "gpu-checkpoint: no GPU: %s\n", why);
  exit(NO_GPU);
}

static void must(CUresult result, const char *what) {
  if (result != 0) give_up(what, text_of(result));
}

static CUdevice load_driver(CUcontext *context) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == NULL) no_gpu(dlerror());
  for (size_t index = 0; index < sizeof SYMBOLS / sizeof *SYMBOLS; index++) {
    void *symbol = dlsym(library, SYMBOLS[index].name);
    if (symbol == NULL) no_gpu(dlerror());
    memcpy(SYMBOLS[index].place, &symbol, sizeof symbol); /* ISO C has no conversion to a function pointer */
  }
  CUresult result = cuda.init(0);
  if (result != 0) no_gpu(text_of(result));
  int count = 0;
  if (cuda.device_count(&count) != 0 || count == 0) no_gpu("the driver knows of none");
  CUdevice device;
  must(cuda.device_get(&device, 0), "cuDeviceGet");
  must(cuda.context_retain(context, device), "cuDevicePrimaryCtxRetain");
  must(cuda.context_set(*context), "cuCtxSetCurrent");
  return device;
}

/* ---- the file */

static struct {
  pthread_mutex_t lock; /* held by whoever has the GPU copy from or to the file */
  CUcontext context;
  char *map;
  size_t bytes;
  bool registered;
  bool gone;
} file = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* The order: no new copies, none under way, the driver forgets the memory, and only then it may go. */
static void *let_go(void *argument) {
  (void)argument;
  must(cuda.context_set(file.context), "cuCtxSetCurrent");
  for (;;) {
    struct mapdirect_break what;
    if (mapdirect_wait_break(&what, -1) != 0) continue;
    pthread_mutex_lock(&file.lock);
    file.gone = true;
    must(cuda.synchronize(), "cuCtxSynchronize");
    if (file.registered) must(cuda.host_unregister(file.map), "cuMemHostUnregister");
    file.registered = false;
    pthread_mutex_unlock(&file.lock);
    mapdirect_answer_break(&what);
  }
  return NULL;
}

static void open_file(const char *path, size_t bytes) {
  int fd = open(path, O_RDWR | O_CREAT, 0644);
  if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) give_up(path, strerror(errno));
  /* UNTIL_ANSWERED: better to be late, and in quarantine, than to have the GPU store into blocks of somebody else. */
  mapdirect_on_break(mapdirect_hand_over, MAPDIRECT_UNTIL_ANSWERED, 0);
  pthread_t thread;
  if (pthread_create(&thread, NULL, let_go, NULL) != 0) give_up("let_go", "no thread");
  pthread_mutex_lock(&file.lock);
  file.bytes = bytes;
  file.map = mapdirect_map(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE, fd, 0,
                           MAPDIRECT_BREAKABLE | MAPDIRECT_PREPARE);
  if (file.map == MAP_FAILED) give_up(path, strerror(errno));
  close(fd);
  CUresult result = cuda.host_register(file.map, bytes, CU_MEMHOSTREGISTER_PORTABLE);
  file.registered = result == 0;
  /* A region that the kernel lets nobody pin for long, a file on a disk for example: the driver copies twice then. */
  if (!file.registered) printf("not registered: %s\n", text_of(result));
  pthread_mutex_unlock(&file.lock);
}

static void close_file(void) {
  pthread_mutex_lock(&file.lock);
  if (file.registered) must(cuda.host_unregister(file.map), "cuMemHostUnregister");
  file.registered = false;
  mapdirect_unmap(file.map, file.bytes);
  pthread_mutex_unlock(&file.lock);
}

/* ---- copies, and how long they take */

struct state {
  CUdeviceptr tensor;
  char *locked;     /* page-locked memory */
  const char *path; /* of the file that is written with write(2) */
  int written_fd;
  size_t bytes;
};

static void lock_file(void) {
  pthread_mutex_lock(&file.lock);
  if (file.gone) give_up("the file", "its lease was broken");
}

static void with_file(void (*copy)(const struct state *state), const struct state *state) {
  lock_file();
  copy(state);
  pthread_mutex_unlock(&file.lock);
}

static void to_locked(const struct state *state) {
  must(cuda.to_host(state->locked, state->tensor, state->bytes), "cuMemcpyDtoH");
}

static void from_locked(const struct state *state) {
  must(cuda.to_device(state->tensor, state->locked, state->bytes), "cuMemcpyHtoD");
}

static void copy_to_map(const struct state *state) {
  must(cuda.to_host(file.map, state->tensor, state->bytes), "cuMemcpyDtoH");
}

static void copy_from_map(const struct state *state) {
  must(cuda.to_device(state->tensor, file.map, state->bytes), "cuMemcpyHtoD");
}

static void persist_map(const struct state *state) {
  if (mapdirect_persist(file.map, state->bytes) != 0) give_up("mapdirect_persist", strerror(errno));
}

static void to_map(const struct state *state) {
  with_file(copy_to_map, state);
}

static void from_map(const struct state *state) {
  with_file(copy_from_map, state);
}

static void persist(const struct state *state) {
  with_file(persist_map, state);
}

static void to_written(const struct state *state) {
  to_locked(state);
  for (size_t done = 0; done < state->bytes;) {
    ssize_t count = pwrite(state->written_fd, state->locked + done, state->bytes - done, (off_t)done);
    if (count < 0) give_up(state->path, strerror(errno));
    done += (size_t)count;
  }
}

static void from_written(const struct state *state) {
  for (size_t done = 0; done < state->bytes;) {
    ssize_t count = pread(state->written_fd, state->locked + done, state->bytes - done, (off_t)done);
    if (count <= 0) give_up(state->path, count < 0 ? strerror(errno) : "it is too short");
    done += (size_t)count;
  }
  from_locked(state);
}

/* Each word tells where it belongs, and of which round it is. */
static uint64_t word_of(size_t index, unsigned round) {
  uint64_t mixed = (index + 1) * 0x9e3779b97f4a7c15u + round * 0xbf58476d1ce4e5b9u;
  return mixed ^ (mixed >> 31);
}

static void fill(char *bytes, size_t length, unsigned round) {
  uint64_t *words = (uint64_t *)(void *)bytes;
  for (size_t index = 0; index < length / sizeof *words; index++)
    words[index] = word_of(index, round);
}

static void verify(const char *bytes, size_t length, unsigned round, const char *what) {
  const uint64_t *words = (const uint64_t *)(const void *)bytes;
  for (size_t index = 0; index < length / sizeof *words; index++)
    if (words[index] != word_of(index, round)) give_up(what, "other bytes than those that were saved");
}

static void verify_file(const char *path, size_t length, unsigned round) {
  char *copy = malloc(length);
  int fd = open(path, O_RDONLY);
  if (copy == NULL || fd < 0) give_up(path, strerror(errno));
  for (size_t done = 0; done < length;) {
    ssize_t count = pread(fd, copy + done, length - done, (off_t)done);
    if (count <= 0) give_up(path, "it cannot be read");
    done += (size_t)count;
  }
  verify(copy, length, round, path);
  free(copy);
  close(fd);
}

static double seconds_of(void (*copy)(const struct state *state), const struct state *state) {
  struct timespec begin;
  struct timespec end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  copy(state);
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9;
}

static int compare(const void *left, const void *right) {
  double difference = *(const double *)left - *(const double *)right;
  return difference < 0 ? -1 : difference > 0;
}

static double median(double *values, unsigned count) {
  qsort(values, count, sizeof *values, compare);
  return values[count / 2];
}

/* Known bytes onto the GPU; nothing of them is left in page-locked memory. */
static void begin_round(const struct state *state, unsigned round) {
  fill(state->locked, state->bytes, round);
  from_locked(state);
  memset(state->locked, 0, state->bytes);
}

enum { ROUNDS_MAX = 100 };

static void measure(const struct state *state, const char *path, unsigned rounds) {
  static const struct {
    const char *name;
    void (*save)(const struct state *state);
    void (*load)(const struct state *state);
  } WAYS[] = {
      {"mapped file", to_map, from_map},
      {"write(2), read(2)", to_written, from_written},
      {"page-locked memory", to_locked, from_locked},
  };
  static double durable[ROUNDS_MAX];
  for (size_t way = 0; way < sizeof WAYS / sizeof *WAYS; way++) {
    static double saves[ROUNDS_MAX];
    static double loads[ROUNDS_MAX];
    bool mapped = WAYS[way].save == to_map;
    bool in_memory = WAYS[way].save == to_locked;
    for (unsigned round = 0; round < rounds; round++) {
      begin_round(state, round);
      saves[round] = seconds_of(WAYS[way].save, state);
      if (mapped) durable[round] = seconds_of(persist, state);
      if (mapped) lock_file(); /* nobody shall cut it meanwhile */
      if (!in_memory) verify_file(mapped ? path : state->path, state->bytes, round);
      if (mapped) pthread_mutex_unlock(&file.lock);
      if (!in_memory) memset(state->locked, 0, state->bytes);
      must(cuda.mem_set(state->tensor, 0, state->bytes), "cuMemsetD8");
      must(cuda.synchronize(), "cuCtxSynchronize");
      loads[round] = seconds_of(WAYS[way].load, state);
      memset(state->locked, 0, state->bytes);
      to_locked(state);
      verify(state->locked, state->bytes, round, WAYS[way].name);
    }
    double giga = (double)state->bytes / 1e9;
    printf("%-20s save %6.2f GB/s, load %6.2f GB/s\n", WAYS[way].name, giga / median(saves, rounds),
           giga / median(loads, rounds));
    if (mapped) printf("%-20s %.3f ms\n", "  then durable in", median(durable, rounds) * 1e3);
    fflush(stdout);
  }
}

int main(int argc, char **argv) {
  size_t bytes = (argc > 2 ? strtoul(argv[2], NULL, 10) : 256) * MIB;
  unsigned rounds = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 5;
  if (argc < 2 || argc > 4 || bytes == 0 || rounds == 0 || rounds > ROUNDS_MAX) {
    fprintf(stderr, "usage: gpu-checkpoint FILE [MIB [ROUNDS]]\n");
    return 2;
  }
  CUdevice device = load_driver(&file.context);
  char name[256] = "GPU";
  cuda.device_name(name, sizeof name, device);
  printf("%s, %zu MiB, %u rounds\n", name, bytes / MIB, rounds);

  char written[4096];
  if (snprintf(written, sizeof written, "%s.written", argv[1]) >= (int)sizeof written)
    give_up(argv[1], strerror(ENAMETOOLONG));
  struct state state = {.path = written, .bytes = bytes};
  state.written_fd = open(written, O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (state.written_fd < 0) give_up(written, strerror(errno));
  must(cuda.mem_alloc(&state.tensor, bytes), "cuMemAlloc");
  void *locked = NULL;
  must(cuda.host_alloc(&locked, bytes), "cuMemAllocHost");
  state.locked = locked;
  open_file(argv[1], bytes);

  measure(&state, argv[1], rounds);
  close_file();
  printf("verified\n");

  close(state.written_fd);
  unlink(written);
  must(cuda.host_free(locked), "cuMemFreeHost");
  must(cuda.mem_free(state.tensor), "cuMemFree");
  must(cuda.context_release(device), "cuDevicePrimaryCtxRelease");
  return 0;
}
