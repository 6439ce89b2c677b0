/*
 * Metadata operations one after the other, each kind timed on its own.
 *
 *   meta FOLDER COUNT DIRECTORIES
 *   meta FOLDER COUNT fsync
 *   meta FOLDER COUNT names
 *
 * Makes DIRECTORIES directories below FOLDER (0: FOLDER itself is used) and spreads COUNT empty files over them in turn;
 * then asks for the attributes of each (statCold: with AT_STATX_FORCE_SYNC, the file system answers; statCached: what
 * the kernel knows), reads the directories, renames each file, unlinks each. With `fsync` each file is created, gets
 * 4 KiB, and is synced before the next. `names` leaves out reading: FOLDER may hold others. Prints operations per second as JSON.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static long directories;

static double seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void path_of(char *path, size_t bytes, const char *prefix, long index) {
  if (directories > 0)
    snprintf(path, bytes, "d%ld/%s%06ld", index % directories, prefix, index);
  else
    snprintf(path, bytes, "%s%06ld", prefix, index);
}

static int create(int folder, const char *path, long index) {
  (void)index;
  int file = openat(folder, path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
  return file < 0 ? -1 : close(file);
}

static int create_synced(int folder, const char *path, long index) {
  static char block[4096];
  (void)index;
  int file = openat(folder, path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
  if (file < 0 || write(file, block, sizeof block) != sizeof block || fsync(file) != 0) return -1;
  return close(file);
}

static int stat_with(int folder, const char *path, int flags) {
  struct statx reply;
  return statx(folder, path, flags | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &reply);
}

static int stat_cold(int folder, const char *path, long index) {
  (void)index;
  return stat_with(folder, path, AT_STATX_FORCE_SYNC);
}

static int stat_cached(int folder, const char *path, long index) {
  (void)index;
  return stat_with(folder, path, AT_STATX_SYNC_AS_STAT);
}

static int change_name(int folder, const char *path, long index) {
  char target[64];
  path_of(target, sizeof target, "renamed-", index);
  return renameat(folder, path, folder, target);
}

static int unlink_renamed(int folder, const char *path, long index) {
  (void)path;
  char target[64];
  path_of(target, sizeof target, "renamed-", index);
  return unlinkat(folder, target, 0);
}

static int unlink_file(int folder, const char *path, long index) {
  (void)index;
  return unlinkat(folder, path, 0);
}

/* Entries that were read, "." and ".." left out; -1 for an error. */
static long read_directory(int folder, const char *path) {
  int fd = openat(folder, path, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
  DIR *stream = fd < 0 ? NULL : fdopendir(fd);
  if (!stream) return -1;
  long count = 0;
  for (struct dirent *entry; (entry = readdir(stream));)
    count += entry->d_name[0] != '.';
  return closedir(stream) == 0 ? count : -1;
}

struct phase {
  const char *name;
  int (*run)(int folder, const char *path, long index); /* NULL: reading the directories */
};
static const struct phase all[] = {{"create", create}, {"statCold", stat_cold}, {"statCached", stat_cached},
                                   {"readdir", NULL},  {"rename", change_name}, {"unlink", unlink_renamed},
                                   {NULL, NULL}};
static const struct phase names[] = {{"create", create},
                                     {"statCold", stat_cold},
                                     {"rename", change_name},
                                     {"unlink", unlink_renamed},
                                     {NULL, NULL}};
static const struct phase synced[] = {{"createSynced", create_synced}, {"unlink", unlink_file}, {NULL, NULL}};

static void fail(const char *phase, const char *path) {
  fprintf(stderr, "meta: %s %s: %s\n", phase, path, strerror(errno));
  exit(1);
}

static void read_all(int folder, long count) {
  long seen = 0;
  for (long index = 0; index < (directories > 0 ? directories : 1); index++) {
    char path[32] = ".";
    if (directories > 0) snprintf(path, sizeof path, "d%ld", index);
    long entries = read_directory(folder, path);
    if (entries < 0) fail("readdir", path);
    seen += entries;
  }
  if (seen == count) return;
  fprintf(stderr, "meta: readdir: %ld entries instead of %ld\n", seen, count);
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: meta FOLDER COUNT DIRECTORIES|fsync|names\n");
    return 2;
  }
  int folder = open(argv[1], O_DIRECTORY | O_RDONLY | O_CLOEXEC);
  long count = strtol(argv[2], NULL, 10);
  const struct phase *phases = strcmp(argv[3], "fsync") == 0   ? synced
                               : strcmp(argv[3], "names") == 0 ? names
                                                               : all;
  directories = strtol(argv[3], NULL, 10);
  if (folder < 0 || count <= 0) {
    fprintf(stderr, "meta: %s: %s\n", argv[1], folder < 0 ? strerror(errno) : "no count");
    return 1;
  }
  for (long index = 0; index < directories; index++) {
    char path[32];
    snprintf(path, sizeof path, "d%ld", index);
    if (mkdirat(folder, path, 0755) != 0) fail("mkdir", path);
  }
  const char *separator = "{";
  for (const struct phase *phase = phases; phase->name; phase++) {
    double begin = seconds();
    if (!phase->run) read_all(folder, count);
    for (long index = 0; phase->run && index < count; index++) {
      char path[64];
      path_of(path, sizeof path, "file-", index);
      if (phase->run(folder, path, index) != 0) fail(phase->name, path);
    }
    printf("%s\"%s\": %.1f", separator, phase->name, (double)count / (seconds() - begin));
    separator = ", ";
  }
  printf("}\n");
  for (long index = 0; index < directories; index++) {
    char path[32];
    snprintf(path, sizeof path, "d%ld", index);
    if (unlinkat(folder, path, AT_REMOVEDIR) != 0) fail("rmdir", path);
  }
  return 0;
}
