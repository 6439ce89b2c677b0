/*
 * Metadata operations one after the other, each kind timed on its own.
 *
 *   meta FOLDER COUNT
 *
 * Creates COUNT empty files in FOLDER, asks for the attributes of each (with AT_STATX_FORCE_SYNC: the file
 * system answers, not the kernel's cache), renames each, unlinks each. Prints operations per second as JSON.
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

static double seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int create(int folder, const char *name) {
  int file = openat(folder, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
  return file < 0 ? -1 : close(file);
}

static int get_attributes(int folder, const char *name) {
  struct statx reply;
  return statx(folder, name, AT_STATX_FORCE_SYNC | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &reply);
}

static int change_name(int folder, const char *name) {
  char target[64];
  snprintf(target, sizeof target, "renamed-%s", name);
  return renameat(folder, name, folder, target);
}

static int unlink_renamed(int folder, const char *name) {
  char target[64];
  snprintf(target, sizeof target, "renamed-%s", name);
  return unlinkat(folder, target, 0);
}

static const struct {
  const char *name;
  int (*run)(int folder, const char *name);
} phases[] = {
    {"create", create}, {"stat", get_attributes}, {"rename", change_name}, {"unlink", unlink_renamed}};

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: meta FOLDER COUNT\n");
    return 2;
  }
  int folder = open(argv[1], O_DIRECTORY | O_RDONLY | O_CLOEXEC);
  long count = strtol(argv[2], NULL, 10);
  if (folder < 0 || count <= 0) {
    fprintf(stderr, "meta: %s: %s\n", argv[1], folder < 0 ? strerror(errno) : "no count");
    return 1;
  }
  const char *separator = "{";
  for (size_t phase = 0; phase < sizeof phases / sizeof phases[0]; phase++) {
    double begin = seconds();
    for (long index = 0; index < count; index++) {
      char name[32];
      snprintf(name, sizeof name, "file-%06ld", index);
      if (phases[phase].run(folder, name) != 0) {
        fprintf(stderr, "meta: %s %s: %s\n", phases[phase].name, name, strerror(errno));
        return 1;
      }
    }
    printf("%s\"%s\": %.1f", separator, phases[phase].name, (double)count / (seconds() - begin));
    separator = ", ";
  }
  printf("}\n");
  return 0;
}
