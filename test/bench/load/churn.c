/*
 * Changes of metadata that write much log: extended attributes of 16 KiB, set again and again.
 *
 *   churn FILE SECONDS
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static double seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: churn FILE SECONDS\n");
    return 2;
  }
  static char value[16384];
  int fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  double end = seconds() + strtod(argv[2], NULL);
  long count = 0;
  while (fd >= 0 && seconds() < end) {
    memset(value, 'a' + (int)(count++ % 26), sizeof value);
    if (fsetxattr(fd, "user.churn", value, sizeof value, 0) != 0) {
      fprintf(stderr, "churn: %s: %s\n", argv[1], strerror(errno));
      return 1;
    }
  }
  if (fd < 0) fprintf(stderr, "churn: %s: %s\n", argv[1], strerror(errno));
  printf("%ld\n", count);
  return fd < 0;
}
