/*
 * Memory that is registered with a device, here buffers of io_uring, and what has to come first: docs/LEASES.md, "Devices".
 * On a mount with break_time=2.
 */
#include <poll.h>
#include <sys/statvfs.h>
#include <sys/uio.h>

#include "ring.h"
#include "tap.h"

static const char *NAME = "registered";
#define PAGES 16ul
#define LENGTH (PAGES * PAGE)

static int source; /* what is read into the mapping: a file of one letter */

static bool register_buffer(char *map) {
  struct iovec buffer = {.iov_base = map, .iov_len = LENGTH};
  return syscall(SYS_io_uring_register, ring_fd, IORING_REGISTER_BUFFERS, &buffer, 1) == 0;
}

static bool unregister_buffer(void) {
  return syscall(SYS_io_uring_register, ring_fd, IORING_UNREGISTER_BUFFERS, NULL, 0) == 0;
}

static bool device_stores(char *to, char letter) {
  static char page[PAGE];
  memset(page, letter, PAGE);
  if (pwrite(source, page, PAGE, 0) != (ssize_t)PAGE) give_up("the source is filled");
  return ring_transfer(IORING_OP_READ_FIXED, source, to, PAGE, 0) == (ssize_t)PAGE;
}

static char *map_breakable(int fd) {
  char *map = mapdirect_map(NULL, LENGTH, READ_WRITE, MAP_SHARED_VALIDATE, fd, 0, MAPDIRECT_BREAKABLE);
  if (map == MAP_FAILED) give_up("a mapping that can be broken is made");
  return map;
}

static int make(const char *name) {
  char layout[PAGES + 1];
  memset(layout, 'W', PAGES);
  layout[PAGES] = 0;
  return make_file(name, layout);
}

static char byte_at(int fd, off_t at) {
  char byte = 0;
  if (pread(fd, &byte, 1, at) != 1) give_up("a byte is read");
  return byte;
}

static pid_t begin_truncate(void) {
  pid_t child = fork();
  if (child != 0) return child;
  /* Its copy of the mapping goes by itself: nobody listens here. */
  _exit(truncate(path_of(NAME), 0) == 0 ? 0 : errno);
}

static bool has_ended(pid_t child) {
  int status;
  pid_t ended = waitpid(child, &status, WNOHANG);
  if (ended == child && status != 0) give_up("the truncate succeeds");
  return ended == child;
}

/* As the document has it. */
static _Atomic int step;
static _Atomic bool answers;

static void *let_go(void *argument) {
  char *map = argument;
  struct mapdirect_break what;
  while (mapdirect_wait_break(&what, -1) != 0)
    continue;
  atomic_store(&step, 1); /* heard; the device may be at work still */
  while (!atomic_load(&answers))
    sleep_ms(1);
  if (!unregister_buffer() || what.address != map) give_up("the buffer is unregistered");
  mapdirect_answer_break(&what);
  return NULL;
}

static pthread_t listen_to_breaks(char *map) {
  pthread_t thread;
  mapdirect_on_break(mapdirect_hand_over, MAPDIRECT_UNTIL_ANSWERED, 0);
  atomic_store(&step, 0);
  atomic_store(&answers, false);
  if (pthread_create(&thread, NULL, let_go, map) != 0) give_up("a thread");
  return thread;
}

static void wait_until_heard(void) {
  while (atomic_load(&step) != 1)
    sleep_ms(1);
}

static void in_time(void) {
  int fd = make(NAME);
  char *map = map_breakable(fd);
  if (!register_buffer(map)) {
    skip("a direct mapping is registered as a buffer", strerrorname_np(errno));
    mapdirect_unmap(map, LENGTH);
    close(fd);
    return;
  }
  check(device_stores(map + PAGE, 'k') && byte_at(fd, (off_t)PAGE) == 'k',
        "what the kernel stores is the file's at once");
  pthread_t listener = listen_to_breaks(map);
  pid_t child = begin_truncate();
  wait_until_heard();
  sleep_ms(50);
  bool waits = !has_ended(child);
  check(device_stores(map, 'l') && byte_at(fd, 0) == 'l' && waits,
        "until the answer the device stores into the file, and the truncate waits");
  atomic_store(&answers, true);
  report(wait_for(child) == 0, "unregistered, then answered: the truncate goes on", " ");
  pthread_join(listener, NULL);
  char value = 0;
  expect_sigbus("and the memory is gone", load_fault(map, &value), map);
  mapdirect_unmap(map, LENGTH);
  close(fd);
}

/* Every block of the volume that is free belongs to this file. */
static int take_all_space(void) {
  int fd = open(path_of("registered-all"), O_RDWR | O_CREAT | O_TRUNC, 0644);
  static char block[1 << 16];
  memset(block, 'n', sizeof block);
  for (size_t bytes = sizeof block; bytes >= PAGE; bytes /= 2)
    while (write(fd, block, bytes) == (ssize_t)bytes)
      continue;
  if (errno != ENOSPC) give_up("the volume is filled");
  return fd;
}

static bool is_all(int fd, char letter) {
  static char block[1 << 16];
  ssize_t count;
  for (off_t at = 0; (count = pread(fd, block, sizeof block, at)) > 0; at += count)
    for (ssize_t index = 0; index < count; index++)
      if (block[index] != letter) return false;
  return count == 0;
}

static unsigned long free_blocks(void) {
  struct statvfs volume;
  if (statvfs(directory, &volume) != 0) give_up("statvfs");
  return volume.f_bfree;
}

static void too_late(void) {
  int fd = make(NAME);
  char *map = map_breakable(fd);
  if (!register_buffer(map)) {
    mapdirect_unmap(map, LENGTH);
    close(fd);
    return;
  }
  pthread_t listener = listen_to_breaks(map);
  pid_t child = begin_truncate();
  wait_until_heard();
  report(wait_for(child) == 0, "the deadline comes: the truncate goes on though nobody has answered", " ");
  int all = take_all_space();
  check(device_stores(map + 2 * PAGE, 'q') && device_stores(map, 'q'),
        "the device still stores, from then on into quarantine");
  check(is_all(all, 'n'), "no block that it reaches is another file's");
  unsigned long before = free_blocks();
  atomic_store(&answers, true);
  pthread_join(listener, NULL);
  bool returned = false;
  for (int tries = 0; tries < 500 && !returned; tries++) {
    sleep_ms(10);
    returned = free_blocks() >= before + PAGES;
  }
  report(returned, "after the answer the blocks are free", "%lu and %lu", before, free_blocks());
  check(is_all(all, 'n'), "and the other file is whole");
  close(all);
  unlink(path_of("registered-all"));
  mapdirect_unmap(map, LENGTH);
  close(fd);
}

static void ended_by_the_program(void) {
  int fd = make(NAME);
  char *map = map_direct(fd, 0, LENGTH);
  if (!register_buffer(map)) {
    unmap(map, LENGTH);
    close(fd);
    return;
  }
  check(punch(NAME, 0) == ETXTBSY, "a seal holds while it is registered and mapped");
  check(unregister_buffer() && unmap(map, LENGTH) == 0 && punch(NAME, 0) == 0,
        "unregistered first, then unmapped");
  map = map_direct(fd, 0, LENGTH);
  check(!register_buffer(map) && errno == EFAULT, "a range with a hole is refused: prepare it first");
  unmap(map, LENGTH);
  close(fd);
  fd = make(NAME);
  map = map_direct(fd, 0, LENGTH);
  if (!register_buffer(map)) give_up("registered once more");
  unmap(map, LENGTH);
  check(punch_soon(NAME, 0) == 0, "a registration alone holds no lease: unmapped first is the wrong order");
  check(unregister_buffer(), "it is unregistered");
  close(fd);
}

/* As the document has it. */
static pid_t guard(void) {
  int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
  if (self < 0) return -1;
  pid_t child = fork();
  if (child == 0) {
    struct pollfd gone = {.fd = self, .events = POLLIN};
    while (poll(&gone, 1, -1) != 1)
      continue;
    _exit(0);
  }
  close(self);
  return child;
}

static void guarded(void) {
  int fd = make(NAME);
  int pids[2];
  if (pipe(pids) != 0) give_up("a pipe");
  pid_t process = fork();
  if (process == 0) {
    char *map = mapdirect_map(NULL, LENGTH, READ_WRITE, MAP_SHARED_VALIDATE, fd, 0, MAPDIRECT_SEAL);
    pid_t of_guard = map == MAP_FAILED ? -1 : guard();
    if (write(pids[1], &of_guard, sizeof of_guard) != (ssize_t)sizeof of_guard) _exit(1);
    for (;;)
      pause();
  }
  pid_t of_guard = -1;
  if (read(pids[0], &of_guard, sizeof of_guard) != (ssize_t)sizeof of_guard || of_guard < 0)
    give_up("a guard");
  kill(of_guard, SIGSTOP);
  kill(process, SIGKILL);
  wait_for(process);
  bool held = true;
  for (int tries = 0; tries < 20 && held; tries++) {
    sleep_ms(10);
    held = punch(NAME, 0) == ETXTBSY;
  }
  report(held, "after kill -9 the lease lasts as long as the guard", " ");
  kill(of_guard, SIGCONT);
  check(punch_soon(NAME, 0) == 0, "and the guard ends with the process that it guards");
  close(fd);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  catch_faults();
  if (!open_ring()) {
    skip("io_uring", strerrorname_np(errno));
    return 0;
  }
  source = memfd_create("source", 0);
  in_time();
  too_late();
  in_time();
  ended_by_the_program();
  guarded();
  return checks == 0 ? 0 : end();
}
