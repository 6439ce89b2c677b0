/*
 * An unprivileged process that does with leases whatever may hold up others. It speaks to the daemon itself, without
 * the client library: no goodwill is to be expected of it.
 *
 *   attacker HOW PATH [seal]     prints one line when it has begun (or the errno of what it tried), and goes on
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wire.h"

#define PAGE 4096u

static struct mapdirect_wire_map_full map;
static struct mapdirect_wire_region region;

static void say(const char *text) {
  printf("%s\n", text);
  fflush(stdout);
}

/* A lease on an open file description of its own; -1 and errno. */
static int grant(const char *path, uint32_t kind, uint64_t length) {
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return -1;
  memset(&map, 0, sizeof map);
  map.map.version = MAPDIRECT_WIRE_VERSION;
  map.map.kind = kind;
  map.map.length = length;
  if (ioctl(fd, (unsigned long)MAPDIRECT_IOCTL_GRANT, &map) == 0) return fd;
  int error = errno;
  close(fd);
  errno = error;
  return -1;
}

/* The first extent of the grant, mapped from the region; stores go on for ever in a child. */
static volatile char *reach(int fd) {
  if (ioctl(fd, (unsigned long)MAPDIRECT_IOCTL_REGION, &region) != 0) return NULL;
  int memory = open((const char *)region.path, O_RDWR | O_CLOEXEC);
  if (memory < 0) return NULL;
  void *address = mmap(NULL, (size_t)map.extents[0].length, PROT_READ | PROT_WRITE, MAP_SHARED, memory,
                       (off_t)map.extents[0].physical);
  close(memory);
  return address == MAP_FAILED ? NULL : address;
}

static void forever(void) {
  for (;;)
    pause();
}

static int hoard(const char *path) {
  int count = 0;
  while (grant(path, MAPDIRECT_WIRE_LEASE_KIND_BREAKABLE, 16 * PAGE) >= 0)
    count++;
  say(count > 0 ? "begun" : strerrorname_np(errno));
  forever();
  return 0;
}

static int again(const char *path) {
  for (int child = 0; child < 8; child++) {
    if (fork() != 0) continue;
    for (;;) {
      int fd = grant(path, MAPDIRECT_WIRE_LEASE_KIND_BREAKABLE, 4 * PAGE);
      if (fd < 0) usleep(1000);
    }
  }
  usleep(300000);
  say("begun");
  forever();
  return 0;
}

static int stopped(const char *path) {
  pid_t child = fork();
  if (child == 0) {
    int fd = grant(path, MAPDIRECT_WIRE_LEASE_KIND_BREAKABLE, 16 * PAGE);
    volatile char *memory = fd < 0 ? NULL : reach(fd);
    if (memory == NULL) _exit(1);
    memory[0] = 'a';
    raise(SIGSTOP);
    for (;;)
      memory[0]++;
  }
  int status;
  if (waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status)) return 1;
  say("begun");
  forever();
  return 0;
}

static void end_lease(int fd) {
  struct mapdirect_wire_lease lease = {.version = MAPDIRECT_WIRE_VERSION, .lease_id = map.map.lease_id};
  ioctl(fd, (unsigned long)MAPDIRECT_IOCTL_END, &lease);
}

static int liar(const char *path) {
  int fd = grant(path, MAPDIRECT_WIRE_LEASE_KIND_BREAKABLE, 16 * PAGE);
  volatile char *memory = fd < 0 ? NULL : reach(fd);
  if (memory == NULL) return 1;
  end_lease(fd);
  say("begun");
  for (;;)
    memory[0]++;
}

/* Files of 256 KiB: mapped, every second lease ended in words alone, truncated. Until the daemon has enough of it. */
static int hold_space(const char *folder) {
  static char data[64 * PAGE];
  for (int index = 0; index < 4096; index++) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%d", folder, index);
    int writer = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (writer < 0 || write(writer, data, sizeof data) != (ssize_t)sizeof data) break;
    int fd = grant(path, MAPDIRECT_WIRE_LEASE_KIND_SEAL, sizeof data);
    if (fd < 0) {
      close(writer);
      break;
    }
    if (reach(fd) == NULL) return 1;
    end_lease(fd);
    if (ftruncate(writer, 0) != 0) return 1;
    close(writer);
  }
  say(strerrorname_np(errno));
  forever();
  return 0;
}

static int prepare_all(const char *folder) {
  char path[4096];
  snprintf(path, sizeof path, "%s/all", folder);
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  struct mapdirect_wire_range range = {.version = MAPDIRECT_WIRE_VERSION, .length = 1ull << 60};
  int result = fd < 0 ? -1 : ioctl(fd, (unsigned long)MAPDIRECT_IOCTL_PREPARE, &range);
  say(result == 0 ? "0" : strerrorname_np(errno));
  forever();
  return 0;
}

static int storm(const char *path) {
  for (int child = 0; child < 3; child++) {
    if (fork() != 0) continue;
    unsigned random = (unsigned)getpid();
    for (;;) {
      int fd = grant(path, MAPDIRECT_WIRE_LEASE_KIND_BREAKABLE, (1 + rand_r(&random) % 16) * PAGE);
      struct mapdirect_wire_lease lease = {.version = MAPDIRECT_WIRE_VERSION,
                                           .lease_id = rand_r(&random) % 64};
      int other = open(path, O_RDWR | O_CLOEXEC);
      static struct mapdirect_wire_control control;
      struct mapdirect_wire_status status;
      control.version = MAPDIRECT_WIRE_VERSION;
      control.question = MAPDIRECT_WIRE_QUESTION_LEASES;
      control.token = 0;
      ioctl(other, (unsigned long)MAPDIRECT_IOCTL_WATCH, &lease);
      ioctl(other, (unsigned long)MAPDIRECT_IOCTL_STATUS, &status);
      ioctl(other, (unsigned long)MAPDIRECT_IOCTL_CONTROL, &control);
      struct pollfd watched = {.fd = other, .events = POLLPRI};
      poll(&watched, 1, 0);
      if (rand_r(&random) % 4 != 0) close(fd);
      close(other);
    }
  }
  say("begun");
  forever();
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  if (strcmp(argv[1], "grant") == 0) {
    uint32_t kind = argc > 3 ? MAPDIRECT_WIRE_LEASE_KIND_SEAL : MAPDIRECT_WIRE_LEASE_KIND_BREAKABLE;
    int fd = grant(argv[2], kind, PAGE);
    say(fd >= 0 ? "0" : strerrorname_np(errno));
    forever();
  }
  if (strcmp(argv[1], "hoard") == 0) return hoard(argv[2]);
  if (strcmp(argv[1], "again") == 0) return again(argv[2]);
  if (strcmp(argv[1], "stop") == 0) return stopped(argv[2]);
  if (strcmp(argv[1], "liar") == 0) return liar(argv[2]);
  if (strcmp(argv[1], "hold-space") == 0) return hold_space(argv[2]);
  if (strcmp(argv[1], "prepare-all") == 0) return prepare_all(argv[2]);
  if (strcmp(argv[1], "storm") == 0) return storm(argv[2]);
  return 2;
}
