/*
 * MAPDIRECT=io: pread(2) and pwrite(2) without a system call give what the system calls give. Needs the preload library and
 * that environment, and a mount whose break time is 5 s.
 *
 * That a call is none of the kernel's is seen by a filter of system calls, which answers pread64 and pwrite64 with ENOTBLK
 * in the thread that asks for it.
 */
#include "tap.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/time.h>

static char page[PAGE];
static char other[PAGE];

/* ---- is it served? */

struct attempt {
  int fd;
  off_t offset;
  bool writes;
  int error; /* 0: it succeeded */
};

static void *attempt(void *argument) {
  struct attempt *call = argument;
  const uint32_t answer = SECCOMP_RET_ERRNO | ENOTBLK;
  struct sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pread64, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwrite64, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, answer),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog filter = {.len = sizeof program / sizeof *program, .filter = program};
  char buffer[PAGE];
  memset(buffer, 's', sizeof buffer);
  call->error = EINVAL;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return NULL;
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) != 0) return NULL;
  ssize_t count = call->writes ? pwrite(call->fd, buffer, PAGE, call->offset)
                               : pread(call->fd, buffer, PAGE, call->offset);
  call->error = count == (ssize_t)PAGE ? 0 : errno;
  return NULL;
}

static int error_without_kernel(int fd, off_t offset, bool writes) {
  struct attempt call = {.fd = fd, .offset = offset, .writes = writes};
  pthread_t thread;
  if (pthread_create(&thread, NULL, attempt, &call) != 0) give_up("a thread");
  pthread_join(thread, NULL);
  return call.error;
}

static bool is_served(int fd) {
  return error_without_kernel(fd, 0, false) == 0;
}

/* Ask until it is, for two seconds at most. */
static bool warm_up(int fd) {
  for (int tries = 0; tries < 400; tries++) {
    for (int calls = 0; calls < 64; calls++)
      if (pread(fd, other, PAGE, 0) < 0) return false;
    if (is_served(fd)) return true;
    sleep_ms(5);
  }
  return false;
}

static int served_file(const char *name, const char *layout) {
  int fd = make_file(name, layout);
  if (!warm_up(fd)) give_up("a file is served");
  return fd;
}

/* The kernel's view of the byte at `at`. */
static char byte_of(const char *name, off_t at) {
  char byte = 0;
  int fd = open(path_of(name), O_RDONLY | O_CLOEXEC);
  if (syscall(SYS_pread64, fd, &byte, 1, at) != 1) byte = 0;
  syscall(SYS_close, fd);
  return byte;
}

static bool is_all(const char *bytes, size_t length, char value) {
  for (size_t at = 0; at < length; at++)
    if (bytes[at] != value) return false;
  return true;
}

/* ---- the properties */

static void elsewhere(void) {
  int fd = memfd_create("elsewhere", MFD_CLOEXEC);
  if (pwrite(fd, page, PAGE, 0) != (ssize_t)PAGE) give_up("a memfd");
  int again = dup(fd);
  for (int calls = 0; calls < 100; calls++)
    if (pread(again, other, PAGE, 0) != (ssize_t)PAGE) give_up("pread");
  struct sigaction action;
  check(sigaction(SIGSEGV, NULL, &action) == 0 && action.sa_handler == SIG_DFL &&
            sigaction(SIGBUS, NULL, &action) == 0 && action.sa_handler == SIG_DFL,
        "signals are not handled for a file that is elsewhere");
  close(again);
  close(fd);
}

static void which(void) {
  int fd = make_file("which", "WWWW");
  check(error_without_kernel(fd, 0, false) == ENOTBLK, "a file that was hardly asked is read by the kernel");
  check(warm_up(fd), "one that is read again and again is served without a system call");
  check(error_without_kernel(fd, (off_t)PAGE, true) == 0, "writes, too");
  check(error_without_kernel(fd, (off_t)(3 * PAGE + 1), false) == ENOTBLK, "but not across the end");
  check(byte_of("which", (off_t)PAGE) == 's', "what was written so the kernel reads at once");
  int writer = open(path_of("which"), O_WRONLY | O_CLOEXEC);
  memset(page, 'k', PAGE);
  check(write(writer, page, PAGE) == (ssize_t)PAGE && pread(fd, other, PAGE, 0) == (ssize_t)PAGE &&
            is_all(other, PAGE, 'k') && is_served(fd),
        "what the kernel writes is read at once");
  close(writer);
  close(fd);

  int reader = open(path_of("which"), O_RDONLY | O_CLOEXEC);
  for (int calls = 0; calls < 100; calls++)
    if (pread(reader, other, PAGE, 0) != (ssize_t)PAGE) give_up("pread");
  check(!is_served(reader), "a descriptor that may not write is the kernel's");
  close(reader);
  fd = make_file("sparse", "WHW");
  for (int calls = 0; calls < 100; calls++)
    if (pread(fd, other, PAGE, 0) != (ssize_t)PAGE) give_up("pread");
  check(!is_served(fd) && pwrite(fd, page, PAGE, (off_t)PAGE) == (ssize_t)PAGE, "a file with holes, too");
  close(fd);
  fd = make_file("setuid", "W");
  fchmod(fd, 04755);
  for (int calls = 0; calls < 100; calls++)
    if (pread(fd, other, PAGE, 0) != (ssize_t)PAGE) give_up("pread");
  check(!is_served(fd), "and one that a write takes privileges from");
  close(fd);
}

static void ends(void) {
  int fd = served_file("ends", "WW");
  struct stat status;
  check(pread(fd, other, PAGE, (off_t)(2 * PAGE - 100)) == 100, "a read across the end is short");
  check(pread(fd, other, PAGE, (off_t)(2 * PAGE)) == 0, "one behind it gives nothing");
  errno = 0;
  check(pread(fd, other, PAGE, -1) == -1 && errno == EINVAL, "a negative offset is EINVAL");
  check(pread(fd, other, 0, 0) == 0, "no bytes are no bytes");
  memset(page, 'e', PAGE);
  check(pwrite(fd, page, PAGE, (off_t)(2 * PAGE)) == (ssize_t)PAGE && fstat(fd, &status) == 0 &&
            status.st_size == (off_t)(3 * PAGE) && byte_of("ends", (off_t)(2 * PAGE)) == 'e',
        "a write behind it makes the file larger");
  check(warm_up(fd) && pread(fd, other, PAGE, (off_t)(2 * PAGE)) == (ssize_t)PAGE && is_all(other, PAGE, 'e'),
        "and is served afterwards");
  pid_t child = fork();
  if (child == 0) _exit(truncate(path_of("ends"), 100) == 0 ? 0 : 1);
  check(wait_for(child) == 0 && pread(fd, other, PAGE, 0) == 100,
        "somebody else makes it shorter: seen at once");
  close(fd);
}

static char *volatile nowhere = (char *)8;
#if defined(__x86_64__)
static char *volatile impossible = (char *)(1ul << 62);
#else
static char *volatile impossible = (char *)8;
#endif

static void addresses(bool sanitized) {
  int fd = served_file("addresses", "WW");
  if (sanitized) {
    skip("bad buffers are EFAULT", "the sanitizer handles faults itself");
  } else {
    errno = 0;
    check(pread(fd, nowhere, PAGE, 0) == -1 && errno == EFAULT, "a bad buffer to read into is EFAULT");
    errno = 0;
    check(pwrite(fd, nowhere, PAGE, 0) == -1 && errno == EFAULT && byte_of("addresses", 0) == 'A',
          "one to write from, too");
    errno = 0;
    check(pread(fd, impossible, PAGE, 0) == -1 && errno == EFAULT,
          "an address that no page can have is EFAULT");
    errno = 0;
    check(pwrite(fd, impossible, PAGE, 0) == -1 && errno == EFAULT && byte_of("addresses", 0) == 'A',
          "to write from, too");
    char *two = mmap(NULL, 2 * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(two + PAGE, PAGE, PROT_NONE);
    long by_kernel = syscall(SYS_pread64, fd, two + PAGE - 16, 32, 0);
    int error = errno;
    errno = 0;
    check(pread(fd, two + PAGE - 16, 32, 0) == by_kernel && (by_kernel >= 0 || errno == error),
          "one that ends in a bad page gives what the kernel gives");
    check(is_served(fd), "and the file is served as before");
    munmap(two, 2 * PAGE);
  }
  close(fd);
}

static void numbers(void) {
  int fd = served_file("numbers", "WW");
  int second = make_file("numbers-2", "W");
  memset(page, '2', PAGE);
  if (pwrite(second, page, PAGE, 0) != (ssize_t)PAGE) give_up("pwrite");
  close(fd);
  int again = open(path_of("numbers-2"), O_RDWR | O_CLOEXEC);
  check(again == fd && pread(again, other, 1, 0) == 1 && other[0] == '2',
        "close: the number is another file");
  close(again);
  fd = served_file("numbers", "WW");
  check(dup2(second, fd) == fd && pread(fd, other, 1, 0) == 1 && other[0] == '2', "dup2, too");
  close(fd);
  fd = served_file("numbers", "WW");
  check(dup3(second, fd, O_CLOEXEC) == fd && pread(fd, other, 1, 0) == 1 && other[0] == '2', "dup3");
  close(fd);
  fd = served_file("numbers", "WW");
  close_range((unsigned)fd, (unsigned)fd, 0);
  errno = 0;
  check(pread(fd, other, 1, 0) == -1 && errno == EBADF, "close_range");
  fd = served_file("numbers", "WW");
  FILE *file = fdopen(fd, "r+");
  fclose(file);
  file = fopen(path_of("numbers-2"), "r+");
  check(fileno(file) == fd && pread(fd, other, 1, 0) == 1 && other[0] == '2', "fclose and fopen");
  fclose(file);
  fd = served_file("numbers", "WW");
  syscall(SYS_dup3, second, fd, 0);
  sleep_ms(20);
  check(pread(fd, other, 1, 0) == 1 && other[0] == '2', "past the library: seen within a tick of the clock");
  close(fd);
  fd = served_file("numbers", "WW");
  int copy = dup(fd);
  close(fd);
  check(pread(copy, other, 1, 0) == 1 && other[0] == 'A' && warm_up(copy), "a duplicate goes on by itself");
  int third = dup(copy);
  if (!warm_up(copy) || !warm_up(third)) give_up("two numbers of an open file are served");
  int wrong = 0;
  fcntl(third, F_SETFL, O_APPEND);
  for (int calls = 0; calls < 20; calls++)
    wrong += pwrite(copy, page, 10, 0) != 10 || byte_of("numbers", 0) != 'A';
  report(wrong == 0, "O_APPEND that is set by another number of the open file is seen",
         "%d of 20 writes at 0", wrong);
  fcntl(third, F_SETFL, 0);
  close(third);
  if (ftruncate(copy, (off_t)(2 * PAGE)) != 0 || !warm_up(copy)) give_up("the file is served again");
  check(fcntl(copy, F_SETFL, O_APPEND) == 0 && pwrite(copy, page, 10, 0) == 10 &&
            byte_of("numbers", 0) == 'A' && byte_of("numbers", (off_t)(2 * PAGE)) == '2',
        "O_APPEND from one call to the next");
  close(copy);
  close(second);
}

/* Streams are closed by libc without a call of close(): their numbers must never be served. */

static FILE *stream_by_fopen(void) {
  return fopen(path_of("owned"), "r+");
}

static FILE *stream_by_freopen(void) {
  FILE *file = fopen("/dev/null", "r+");
  return file == NULL ? NULL : freopen(path_of("owned"), "r+", file);
}

static FILE *stream_by_fdopen(void) {
  int fd = open(path_of("owned"), O_RDWR | O_CLOEXEC);
  return fd < 0 ? NULL : fdopen(fd, "r+");
}

static void warm_up_blindly(int fd) {
  for (int tries = 0; tries < 20; tries++) {
    for (int calls = 0; calls < 64; calls++)
      if (pread(fd, other, 1, 0) != 1) give_up("pread");
    sleep_ms(1);
  }
}

static void streams(void) {
  static FILE *(*const ways[])(void) = {stream_by_fopen, stream_by_freopen, stream_by_fdopen};
  static const char *const names[] = {"fopen", "freopen", "fdopen"};
  close(make_file("owned", "W"));
  int second = make_file("owned-2", "W");
  memset(page, '2', PAGE);
  if (pwrite(second, page, PAGE, 0) != (ssize_t)PAGE) give_up("pwrite");
  close(second);
  for (int way = 0; way < 3; way++) {
    int reads = 0;
    int writes = 0;
    int reused = 0;
    for (int round = 0; round < 10; round++) {
      FILE *file = ways[way]();
      if (file == NULL) give_up("a stream");
      int fd = fileno(file);
      warm_up_blindly(fd);
      if (round % 2 == 0) {
        fclose(file);
        second = open(path_of("owned-2"), O_RDWR | O_CLOEXEC);
      } else {
        file = freopen(path_of("owned-2"), "r+", file);
        second = fileno(file);
      }
      reused += second == fd;
      reads += pread(second, other, 1, 0) != 1 || other[0] != '2';
      writes += pwrite(second, "w", 1, 1) != 1 || byte_of("owned", 1) != 'A';
      if (round % 2 == 0)
        close(second);
      else
        fclose(file);
    }
    char sentence[128];
    snprintf(sentence, sizeof sentence,
             "the number of a stream by %s, closed or reopened by libc, leads to the file that it is now",
             names[way]);
    report(reads == 0 && writes == 0 && reused > 0, sentence,
           "%d reads and %d writes of 10 went to the one before", reads, writes);
  }
}

/* A thread may have descriptors of its own. */

static struct {
  int fd;
  int second;
  pthread_barrier_t barrier;
  char seen;
} apart;

static void *with_own_descriptors(void *unused) {
  (void)unused;
  if (unshare(CLONE_FILES) != 0 || dup2(apart.second, apart.fd) != apart.fd) give_up("unshare");
  pthread_barrier_wait(&apart.barrier);
  pthread_barrier_wait(&apart.barrier); /* the other has had its number served */
  if (pread(apart.fd, &apart.seen, 1, 0) != 1) apart.seen = '?';
  return NULL;
}

static void tables(void) {
  int fd = served_file("tables", "W");
  int second = make_file("tables-2", "W");
  memset(page, '2', PAGE);
  if (pwrite(second, page, PAGE, 0) != (ssize_t)PAGE) give_up("pwrite");
  pid_t child = vfork();
  if (child == 0) {
    dup2(second, fd);
    close(second);
    _exit(0);
  }
  check(wait_for(child) == 0 && is_served(fd) && pread(fd, other, 1, 0) == 1 && other[0] == 'A',
        "what a vfork child does to its descriptors is its own affair");
  child = fork();
  if (child == 0) {
    apart.fd = fd;
    apart.second = second;
    pthread_barrier_init(&apart.barrier, NULL, 2);
    pthread_t thread;
    if (pthread_create(&thread, NULL, with_own_descriptors, NULL) != 0) give_up("a thread");
    pthread_barrier_wait(&apart.barrier);
    warm_up_blindly(fd);
    bool good = pread(fd, other, 1, 0) == 1 && other[0] == 'A';
    pthread_barrier_wait(&apart.barrier);
    pthread_join(thread, NULL);
    _exit(!good ? 1 : apart.seen != '2' ? 2 : 0);
  }
  int status = wait_for(child);
  report(status == 0, "where threads have descriptors of their own, each reads its own file", "status %#x",
         status);
  close(fd);
  close(second);
}

static struct timespec mtime_of(const char *name) {
  struct stat status;
  if (stat(path_of(name), &status) != 0) give_up("stat");
  return status.st_mtim;
}

static bool is_later(struct timespec a, struct timespec b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

static void times(void) {
  int fd = served_file("times", "WW");
  struct timespec before = mtime_of("times");
  sleep_ms(20);
  close(fd);
  sleep_ms(20);
  check(!is_later(mtime_of("times"), before), "who only reads leaves the time of modification alone");
  fd = open(path_of("times"), O_RDWR | O_CLOEXEC);
  if (!warm_up(fd)) give_up("a file is served");
  check(error_without_kernel(fd, 0, true) == 0 && fsync(fd) == 0 && is_later(mtime_of("times"), before),
        "fsync after a write moves it");
  before = mtime_of("times");
  sleep_ms(20);
  check(error_without_kernel(fd, 0, true) == 0 && close(fd) == 0, "a write, and the end");
  sleep_ms(20);
  check(is_later(mtime_of("times"), before), "close moves it, too");
}

static void copies(void) {
  int fd = served_file("copies", "WWWW");
  pid_t child = fork();
  if (child == 0) {
    memset(page, 'c', PAGE);
    bool good = pwrite(fd, page, PAGE, 0) == (ssize_t)PAGE && warm_up(fd) &&
                pwrite(fd, page, PAGE, (off_t)PAGE) == (ssize_t)PAGE && close(fd) == 0;
    _exit(good ? 0 : 1);
  }
  check(wait_for(child) == 0, "a child reads and writes, and is served by itself");
  check(pread(fd, other, PAGE, (off_t)PAGE) == (ssize_t)PAGE && is_all(other, PAGE, 'c'),
        "the parent sees it");
  check(is_served(fd), "and is served as before");
  char *map = mmap(NULL, PAGE, READ_WRITE, MAP_SHARED, fd, 0);
  check(map != MAP_FAILED && map[0] == 'c', "an ordinary mapping shows the same bytes");
  map[1] = 'm';
  check(pread(fd, other, PAGE, 0) == (ssize_t)PAGE && other[1] == 'm', "and what it stores is read");
  memset(page, 'w', PAGE);
  check(pwrite(fd, page, PAGE, 0) == (ssize_t)PAGE && map[1] == 'w', "what is written it shows");
  munmap(map, PAGE);
  close(fd);
  check(punch("copies", 0) == 0, "afterwards nothing is leased");
}

/* ---- many at a time */

static _Atomic bool over;
static _Atomic long wrong;
static _Atomic int busy_round; /* from 1; 0: what make_file wrote */
static int busy_fd;

static char letter_of(int round) {
  return (char)('a' + round % 26);
}

/*
 * A read beside a write may see a part of it, as on ext4 and tmpfs, but no byte may be older than the round before the one in
 * which the read began, or newer than that in which it ended. The upper half of the file is made shorter and longer, and is
 * zero until it is written.
 */
static bool is_of(const char *bytes, size_t length, int page_index, int first, int last) {
  for (size_t at = 0; at < length; at++) {
    bool good = bytes[at] == 0 && page_index >= 2;
    for (int round = first - 1; !good && round <= last; round++)
      good = bytes[at] == (round < 1 ? (char)('A' + page_index) : letter_of(round));
    if (!good) return false;
  }
  return true;
}

static void *read_busily(void *unused) {
  (void)unused;
  static _Thread_local char bytes[PAGE];
  for (int turn = 0; !atomic_load(&over); turn++) {
    int first = atomic_load(&busy_round);
    ssize_t count = pread(busy_fd, bytes, PAGE, (off_t)(turn % 4) * (off_t)PAGE);
    int last = atomic_load(&busy_round);
    bool whole = count == (ssize_t)PAGE || (count == 0 && turn % 4 >= 2);
    if (!whole || !is_of(bytes, (size_t)count, turn % 4, first, last)) atomic_fetch_add(&wrong, 1);
  }
  return NULL;
}

static void on_alarm(int number) {
  (void)number;
  char byte;
  int errno_before = errno;
  if (pread(busy_fd, &byte, 1, 0) < 0) atomic_fetch_add(&wrong, 1);
  errno = errno_before;
}

static void many(void) {
  busy_fd = served_file("many", "WWWW");
  pthread_t threads[3];
  struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
  sigaction(SIGALRM, &action, NULL);
  struct itimerval often = {.it_interval = {.tv_usec = 1000}, .it_value = {.tv_usec = 1000}};
  for (int index = 0; index < 3; index++)
    pthread_create(&threads[index], NULL, read_busily, NULL);
  setitimer(ITIMER_REAL, &often, NULL);
  bool good = true;
  for (int round = 1; round <= 40; round++) {
    off_t size = round % 2 == 1 ? (off_t)(2 * PAGE) : (off_t)(4 * PAGE);
    atomic_store(&busy_round, round);
    while (truncate(path_of("many"), size) != 0)
      if (errno != EINTR) {
        good = false;
        break;
      }
    memset(page, letter_of(round), PAGE);
    for (int at = 0; at < 4 && good; at++)
      good = pwrite(busy_fd, page, PAGE, (off_t)at * (off_t)PAGE) == (ssize_t)PAGE;
    sleep_ms(5);
  }
  often = (struct itimerval){0};
  setitimer(ITIMER_REAL, &often, NULL);
  atomic_store(&over, true);
  for (int index = 0; index < 3; index++)
    pthread_join(threads[index], NULL);
  check(good, "a file that is made shorter and longer under its readers");
  report(atomic_load(&wrong) == 0, "each of them, and a signal handler, sees what is there", "%ld times not",
         atomic_load(&wrong));
  close(busy_fd);
}

/* The deadline of a break passes while its holder is stopped. */
static void stopped(void) {
  int answer[2];
  int go[2];
  if (pipe(answer) != 0 || pipe(go) != 0) give_up("pipe");
  int fd = make_file("stopped", "WW");
  pid_t child = fork();
  if (child == 0) {
    bool good = warm_up(fd);
    if (write(answer[1], &good, 1) != 1 || read(go[0], &good, 1) != 1) _exit(2);
    ssize_t count = pread(fd, other, PAGE, (off_t)PAGE);
    _exit(count == 0 ? 0 : 1);
  }
  bool good = false;
  if (read(answer[0], &good, 1) != 1 || !good) give_up("a child is served");
  kill(child, SIGSTOP);
  check(truncate(path_of("stopped"), (off_t)PAGE) == 0, "who is stopped holds nobody up for ever");
  good = write(go[1], &good, 1) == 1;
  kill(child, SIGCONT);
  check(wait_for(child) == 0, "and asks the kernel when it goes on");
  close(fd);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  bool sanitized = argc > 4;
  elsewhere();
  which();
  ends();
  addresses(sanitized);
  numbers();
  streams();
  tables();
  times();
  copies();
  many();
  stopped();
  return end();
}
