/*
 * One process of a random schedule: does what it is told over a unix socket, one line each, and answers each with one line
 * that begins with the number of the request.
 *
 *   worker SOCKET TOKEN library|preload
 *
 *   N map SLOT PATH PAGE COUNT KIND      "ok ID" and for each page its state and place: w4096 h b ...
 *   N unmap SLOT | N cut SLOT PAGE | N move SLOT
 *   N load SLOT PAGE | N store SLOT PAGE BYTE        "ok BYTE", "ok", or the name of the signal
 *   N read PATH PAGE WAY | N write PATH PAGE BYTE    write and what follows: "ok" or the errno
 *   N truncate PATH PAGES | N punch PATH PAGE COUNT | N allocate PATH PAGE COUNT | N prepare PATH PAGE COUNT
 *   N sync PATH 0
 *   N copy FROM TO COUNT
 *   N fork TOKEN                         a child, which connects by itself; "ok PID"
 *   N reset                              unmap everything
 * A PATH that begins with '!' is opened with O_NONBLOCK. One that begins with '=', a number and '=' is opened at its first
 * use by this process, and stays open: a descriptor from before whatever came since. With '<' in place of '=' it can only read.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "mapdirect.h"

#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 3
#endif
#define PAGE 4096ul
#define SLOTS 8
#define ARGUMENTS 8
#define KEPT 12

static bool by_library;
static const char *socket_path;
static FILE *line_in;
static int line_out = -1;

static struct slot {
  char *at; /* NULL: free */
  size_t pages;
} slots[SLOTS];

static sigjmp_buf jump;
static volatile sig_atomic_t struck;

static void on_fault(int signal) {
  struck = signal;
  siglongjmp(jump, 1);
}

static void answer(const char *number, const char *text) {
  char line[4096];
  int length = snprintf(line, sizeof line, "%s %s\n", number, text);
  if (write(line_out, line, (size_t)length) != length) _exit(0); /* the test is over */
}

static void answer_result(const char *number, bool good) {
  answer(number, good ? "ok" : strerrorname_np(errno));
}

static const char *signal_name(int signal) {
  return signal == SIGBUS ? "SIGBUS" : "SIGSEGV";
}

static void connect_as(const char *token) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, socket_path, sizeof address.sun_path - 1);
  line_out = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (line_out < 0 || connect(line_out, (struct sockaddr *)&address, sizeof address) != 0) _exit(3);
  line_in = fdopen(dup(line_out), "r");
  if (line_in == NULL) _exit(3);
  char pid[32];
  snprintf(pid, sizeof pid, "%d", (int)getpid());
  answer(token, pid);
}

static struct kept {
  char path[256];
  int fd;
} kept[KEPT];

static int open_path(const char *path) {
  static size_t next;
  if (path[0] != '=' && path[0] != '<') {
    bool nonblocking = path[0] == '!';
    return open(path + nonblocking, O_RDWR | O_CLOEXEC | (nonblocking ? O_NONBLOCK : 0));
  }
  for (struct kept *one = kept; one < kept + KEPT; one++)
    if (strcmp(one->path, path) == 0) return one->fd;
  struct kept *one = &kept[next++ % KEPT];
  if (one->path[0] != '\0') close(one->fd);
  one->path[0] = '\0';
  one->fd = open(strchr(path + 1, path[0]) + 1, (path[0] == '<' ? O_RDONLY : O_RDWR) | O_CLOEXEC);
  if (one->fd >= 0) snprintf(one->path, sizeof one->path, "%s", path);
  return one->fd;
}

static void close_path(const char *path, int fd) {
  int error = errno;
  if (path[0] != '=' && path[0] != '<') close(fd);
  errno = error;
}

static void *map_pages(void *addr, size_t pages, int flags, int fd, off_t offset, unsigned kind) {
  const int prot = PROT_READ | PROT_WRITE;
  if (by_library) return mapdirect_map(addr, pages * PAGE, prot, flags, fd, offset, kind);
  setenv("MAPDIRECT_LEASE", kind == MAPDIRECT_SEAL ? "seal" : "breakable", 1);
  return mmap(addr, pages * PAGE, prot, flags, fd, offset);
}

static int unmap_pages(char *at, size_t pages) {
  return by_library ? mapdirect_unmap(at, pages * PAGE) : munmap(at, pages * PAGE);
}

static void do_map(char **words) {
  struct slot *slot = &slots[atoi(words[2])];
  size_t pages = (size_t)atoi(words[5]);
  int fd = open_path(words[3]);
  if (fd < 0) return answer_result(words[0], false);
  unsigned kind = strcmp(words[6], "seal") == 0 ? MAPDIRECT_SEAL : MAPDIRECT_BREAKABLE;
  char *at = map_pages(NULL, pages, MAP_SHARED_VALIDATE | MAP_DIRECT, fd,
                       (off_t)((size_t)atoi(words[4]) * PAGE), kind);
  close_path(words[3], fd);
  if (at == MAP_FAILED) return answer_result(words[0], false);
  *slot = (struct slot){.at = at, .pages = pages};
  char text[2048];
  struct mapdirect_lease_info info;
  int length = 0;
  for (size_t page = 0; page < pages; page++) {
    if (mapdirect_query(at + page * PAGE, &info) != 0) return answer(words[0], "lost");
    if (page == 0) length = snprintf(text, sizeof text, "ok %llu", (unsigned long long)info.lease_id);
    length += info.state == MAPDIRECT_WRITTEN ? snprintf(text + length, sizeof text - (size_t)length,
                                                         " w%llu", (unsigned long long)info.physical)
                                              : snprintf(text + length, sizeof text - (size_t)length, " %s",
                                                         info.state == MAPDIRECT_HOLE     ? "h"
                                                         : info.state == MAPDIRECT_BEYOND ? "b"
                                                                                          : "revoked");
  }
  answer(words[0], text);
}

static void do_move(char **words) {
  struct slot *slot = &slots[atoi(words[2])];
  size_t bytes = slot->pages * PAGE;
  char *target = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (target == MAP_FAILED) return answer_result(words[0], false);
  const int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
  char *moved = by_library ? mapdirect_remap(slot->at, bytes, bytes, flags, target)
                           : mremap(slot->at, bytes, bytes, flags, target);
  int error = errno;
  if (moved == MAP_FAILED) munmap(target, bytes);
  errno = error;
  if (moved != MAP_FAILED) slot->at = moved;
  answer_result(words[0], moved != MAP_FAILED);
}

static void do_access(char **words, bool store) {
  volatile char *at = slots[atoi(words[2])].at + (size_t)atoi(words[3]) * PAGE + 5;
  char text[16];
  struck = 0;
  if (sigsetjmp(jump, 1) != 0) return answer(words[0], signal_name(struck));
  if (store) {
    *at = (char)atoi(words[4]);
    return answer(words[0], "ok");
  }
  snprintf(text, sizeof text, "ok %d", (unsigned char)*at);
  answer(words[0], text);
}

static ssize_t read_byte(int fd, unsigned char *byte, off_t at, int way) {
  struct iovec part = {byte, 1};
  ssize_t count;
  switch (way) {
    case 1: return lseek(fd, at, SEEK_SET) == at ? read(fd, byte, 1) : -1;
    case 2: return lseek(fd, at, SEEK_SET) == at ? readv(fd, &part, 1) : -1;
    case 3:
      count = preadv2(fd, &part, 1, at, RWF_NOWAIT);
      return count >= 0 || (errno != EAGAIN && errno != EOPNOTSUPP) ? count : pread(fd, byte, 1, at);
    default: return pread(fd, byte, 1, at);
  }
}

static void do_file(char **words) {
  const char *what = words[1];
  int fd = open_path(words[2]);
  if (fd < 0) return answer_result(words[0], false);
  off_t offset = (off_t)((size_t)atoi(words[3]) * PAGE);
  off_t length = words[4] == NULL ? 0 : (off_t)((size_t)atoi(words[4]) * PAGE);
  char text[16] = "ok";
  bool good = false;
  if (strcmp(what, "read") == 0) {
    unsigned char byte = 0;
    ssize_t count = read_byte(fd, &byte, offset + 5, words[4] == NULL ? 0 : atoi(words[4]));
    good = count >= 0;
    snprintf(text, sizeof text, count == 1 ? "ok %d" : "ok end", byte);
  } else if (strcmp(what, "write") == 0) {
    char page[PAGE];
    memset(page, atoi(words[4]), PAGE);
    good = pwrite(fd, page, PAGE, offset) == (ssize_t)PAGE;
  } else if (strcmp(what, "truncate") == 0) {
    good = ftruncate(fd, offset) == 0;
  } else if (strcmp(what, "punch") == 0) {
    good = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) == 0;
  } else if (strcmp(what, "allocate") == 0) {
    good = fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length) == 0;
  } else if (strcmp(what, "prepare") == 0) {
    good = mapdirect_prepare(fd, offset, length) == 0;
  } else if (strcmp(what, "sync") == 0) {
    good = fsync(fd) == 0;
  }
  close_path(words[2], fd);
  answer(words[0], good ? text : strerrorname_np(errno));
}

static void do_copy(char **words) {
  int from = open_path(words[2]);
  int to = open_path(words[3]);
  size_t left = (size_t)atoi(words[4]) * PAGE;
  loff_t from_at = 0;
  loff_t to_at = 0;
  ssize_t count = 1;
  while (left > 0 && count > 0) {
    count = copy_file_range(from, &from_at, to, &to_at, left, 0);
    if (count > 0) left -= (size_t)count;
  }
  int error = errno;
  close(from);
  close(to);
  errno = error;
  answer_result(words[0], count >= 0);
}

static void do_fork(char **words) {
  pid_t child = fork();
  if (child == 0) {
    fclose(line_in);
    close(line_out);
    connect_as(words[2]);
    return;
  }
  char text[32];
  snprintf(text, sizeof text, "ok %d", (int)child);
  answer(words[0], child > 0 ? text : strerrorname_np(errno));
}

static void do_slot(char **words) {
  struct slot *slot = &slots[atoi(words[2])];
  if (strcmp(words[1], "cut") == 0) {
    answer_result(words[0], unmap_pages(slot->at + (size_t)atoi(words[3]) * PAGE, 1) == 0);
  } else {
    answer_result(words[0], unmap_pages(slot->at, slot->pages) == 0);
    slot->at = NULL;
  }
}

static void do_reset(char **words) {
  for (struct slot *slot = slots; slot < slots + SLOTS; slot++) {
    if (slot->at != NULL) unmap_pages(slot->at, slot->pages);
    slot->at = NULL;
  }
  answer(words[0], "ok");
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  socket_path = argv[1];
  by_library = strcmp(argv[3], "library") == 0;
  struct sigaction action = {.sa_handler = on_fault};
  sigaction(SIGBUS, &action, NULL);
  sigaction(SIGSEGV, &action, NULL);
  signal(SIGCHLD, SIG_IGN);
  connect_as(argv[2]);
  static char line[4096];
  while (fgets(line, sizeof line, line_in) != NULL) {
    char *words[ARGUMENTS + 1] = {NULL};
    size_t count = 0;
    for (char *word = strtok(line, " \n"); word != NULL && count < ARGUMENTS; word = strtok(NULL, " \n"))
      words[count++] = word;
    const char *what = words[1];
    if (strcmp(what, "map") == 0)
      do_map(words);
    else if (strcmp(what, "unmap") == 0 || strcmp(what, "cut") == 0)
      do_slot(words);
    else if (strcmp(what, "move") == 0)
      do_move(words);
    else if (strcmp(what, "load") == 0 || strcmp(what, "store") == 0)
      do_access(words, what[0] == 's');
    else if (strcmp(what, "copy") == 0)
      do_copy(words);
    else if (strcmp(what, "fork") == 0)
      do_fork(words);
    else if (strcmp(what, "reset") == 0)
      do_reset(words);
    else
      do_file(words);
  }
  return 0;
}
