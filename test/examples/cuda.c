/*
 * A libcuda.so.1 for tests: a GPU whose memory is ordinary memory. It keeps to the driver's rules that matter here, and ends the
 * program where they are broken: nothing is registered twice, or unregistered that is not; memory that is registered is mapped;
 * a context is current in the calling thread.
 *
 * FAKE_CUDA=broken: cuInit fails; none: no device; unpinnable: cuMemHostRegister fails; wrong: copies to the host lose a byte;
 * slow: a copy to registered memory takes half a second, and tells standard error when it begins and ends.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define PAGE 4096ul

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *registered;
static size_t registered_bytes;
static _Thread_local int current;
static int context;

static int is(const char *word) {
  const char *wanted = getenv("FAKE_CUDA");
  return wanted != NULL && strcmp(wanted, word) == 0;
}

static void rule(int good, const char *text) {
  if (good) return;
  fprintf(stderr, "cuda: broken rule: %s\n", text);
  _exit(99);
}

static int is_mapped(char *at, size_t bytes) {
  static unsigned char vector[1 << 20];
  return bytes / PAGE <= sizeof vector && mincore(at, bytes, vector) == 0;
}

API int cuInit(unsigned flags) {
  return flags != 0 || is("broken") ? 100 : 0;
}
API int cuDeviceGetCount(int *count) {
  return *count = !is("none"), 0;
}
API int cuDeviceGet(int *device, int ordinal) {
  return *device = ordinal, 0;
}
API int cuDeviceGetName(char *name, int length, int device) {
  return snprintf(name, (size_t)length, "Fake %d", device), 0;
}
API int cuDevicePrimaryCtxRetain(int **made, int device) {
  return *made = &context, device;
}
API int cuDevicePrimaryCtxRelease_v2(int device) {
  rule(registered == NULL, "released with memory registered");
  return device;
}
API int cuCtxSetCurrent(int *wanted) {
  return current = wanted == &context, 0;
}
API int cuCtxSynchronize(void) {
  rule(current, "no context");
  return 0;
}
API int cuMemAlloc_v2(unsigned long long *memory, size_t bytes) {
  return *memory = (unsigned long long)malloc(bytes), 0;
}
API int cuMemFree_v2(unsigned long long memory) {
  free((void *)memory);
  return 0;
}
API int cuMemsetD8_v2(unsigned long long memory, unsigned char value, size_t bytes) {
  memset((void *)memory, value, bytes);
  return 0;
}
API int cuMemAllocHost_v2(void **memory, size_t bytes) {
  return *memory = malloc(bytes), 0;
}
API int cuMemFreeHost(void *memory) {
  free(memory);
  return 0;
}
API int cuGetErrorString(int error, const char **text) {
  return *text = error == 100 ? "no CUDA-capable device is detected" : "operation not supported", 0;
}

API int cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags) {
  rule(current && flags == 1, "no context");
  if (is("unpinnable")) return 801;
  pthread_mutex_lock(&lock);
  rule(registered == NULL, "registered twice");
  rule(is_mapped(memory, bytes), "registered memory is not mapped");
  registered = memory;
  registered_bytes = bytes;
  pthread_mutex_unlock(&lock);
  return 0;
}

API int cuMemHostUnregister(void *memory) {
  rule(current, "no context");
  pthread_mutex_lock(&lock);
  rule(registered == memory && memory != NULL, "unregistered what is not registered");
  rule(is_mapped(registered, registered_bytes), "unmapped before it was unregistered");
  registered = NULL;
  fprintf(stderr, "cuda: unregistered\n");
  pthread_mutex_unlock(&lock);
  return 0;
}

API int cuMemcpyDtoH_v2(void *target, unsigned long long source, size_t bytes) {
  rule(current, "no context");
  int slow = is("slow") && target == registered;
  if (slow) fprintf(stderr, "cuda: copy begins\n");
  if (slow) usleep(500000);
  memcpy(target, (void *)source, bytes);
  if (is("wrong")) ((char *)target)[bytes / 2] ^= 1;
  if (slow) fprintf(stderr, "cuda: copy ends\n");
  return 0;
}

API int cuMemcpyHtoD_v2(unsigned long long target, const void *source, size_t bytes) {
  rule(current, "no context");
  memcpy((void *)target, source, bytes);
  return 0;
}
