/*
 * R21, R22: every way in which a process comes by a copy of the mapping or by a descriptor of the file, and what is done
 * to memory besides: the lease counts it, and the bytes are what they were.
 */
#include <spawn.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "tap.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif

extern char **environ;

static const char *NAME = "processes";

static void leased(const char *sentence, off_t offset) {
  int error = punch(NAME, offset);
  report(error == ETXTBSY, sentence, "punch: %s", strerrorname_np(error));
}

static void ended(const char *sentence, off_t offset) {
  int error = punch_soon(NAME, offset);
  report(error == 0, sentence, "punch: %s", strerrorname_np(error));
}

static void end_child(pid_t child) {
  kill(child, SIGKILL);
  wait_for(child);
}

/* ---- other programs, started from a holder */

static char *idle[] = {NULL, "", "", "", "idle", NULL};

static void vforked(void) {
  int fd = make_file(NAME, "WW");
  char *map = map_direct(fd, 0, 2 * PAGE);
  pid_t child = vfork();
  if (child == 0) {
    map[0] = 'v';
    _exit(map[PAGE] == 'B' ? 0 : 1);
  }
  report(wait_for(child) == 0 && map[0] == 'v', "R22: a vfork child stores through its parent's mapping",
         "%c", map[0]);
  leased("R22: its exit does not end its parent's lease", 0);
  child = vfork();
  if (child == 0) {
    execv(idle[0], idle);
    _exit(1);
  }
  check(child > 0, "vfork and exec from a holder");
  leased("R22: nor does its exec", 0);
  check(unmap(map, 2 * PAGE) == 0, "the parent unmaps");
  ended("R21: the program that the child runs holds nothing", 0);
  report(waitpid(child, NULL, WNOHANG) == 0, "and goes on", "it ended");
  end_child(child);
}

static void spawned(void) {
  int fd = make_file(NAME, "WHW");
  char *map = map_direct(fd, 0, 3 * PAGE);
  pid_t child;
  int error = posix_spawn(&child, idle[0], NULL, NULL, idle, environ);
  if (error != 0) give_up("posix_spawn");
  leased("R22: posix_spawn leaves the lease", 0);
  expect_sigbus("and the hole", store_fault(map + PAGE, 1), map + PAGE);
  char answer[8] = "";
  FILE *shell = popen("echo fine", "r");
  report(shell != NULL && fgets(answer, sizeof answer, shell) != NULL && pclose(shell) == 0 &&
             answer[0] == 'f',
         "popen works in a holder", "%s", answer);
  report(system("exit 3") == 3 << 8, "so does system", "it did not");
  check(unmap(map, 3 * PAGE) == 0, "the holder unmaps");
  ended("R21: the spawned program holds nothing", 0);
  end_child(child);
}

/* What daemon(3) and its successors do: two forks, a session of its own, no descriptor left. */
static void daemonized(void) {
  int fd = make_file(NAME, "WWHW");
  char *map = map_direct(fd, 0, 4 * PAGE);
  _Atomic char *flag = (_Atomic char *)map;
  pid_t child = fork();
  if (child == 0) {
    if (setsid() < 0) _exit(1);
    if (fork() != 0) _exit(0);
    if (syscall(436 /* close_range */, 0u, ~0u, 0u) != 0)
      for (int other = 0; other < 65536; other++)
        close(other);
    flag[1] = 'd';
    while (flag[2] != 'g')
      sleep_ms(1);
    bool good = store_fault(map + 2 * PAGE, 1).signal == SIGBUS && map[3 * PAGE] == 'D';
    flag[3] = good ? 'y' : 'n';
    while (flag[4] != 'e')
      sleep_ms(1);
    _exit(0);
  }
  report(wait_for(child) == 0, "a holder becomes a daemon", "it could not");
  while (flag[1] != 'd')
    sleep_ms(1);
  char *ours = map_direct(fd, 0, PAGE); /* to speak with it */
  _Atomic char *speak = (_Atomic char *)ours;
  unmap(map, 4 * PAGE);
  sleep_ms(100);
  leased("R22: a daemon that has closed every descriptor holds the lease", 3 * PAGE);
  speak[2] = 'g';
  while (speak[3] != 'y' && speak[3] != 'n')
    sleep_ms(1);
  report(speak[3] == 'y', "and has the mapping as it was, holes too", "it has not");
  speak[4] = 'e';
  ended("R21: its exit ends the lease", 3 * PAGE);
  unmap(ours, PAGE);
  ended("and ours ends ours", 0);
}

/* ---- descriptors that travel */

union control {
  char bytes[CMSG_SPACE(sizeof(int))];
  struct cmsghdr header;
};

static void send_descriptor(int socket, int fd) {
  char byte = 'f';
  struct iovec data = {.iov_base = &byte, .iov_len = 1};
  union control control = {0};
  struct msghdr message = {
      .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  control.header =
      (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
  memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
  if (sendmsg(socket, &message, 0) != 1) give_up("a descriptor is sent");
}

static int receive_descriptor(int socket) {
  char byte;
  struct iovec data = {.iov_base = &byte, .iov_len = 1};
  union control control = {0};
  struct msghdr message = {
      .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  int fd = -1;
  if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1 && control.header.cmsg_type == SCM_RIGHTS)
    memcpy(&fd, CMSG_DATA(&control.header), sizeof fd);
  return fd;
}

static void handed_over(void) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) give_up("a socket pair");
  pid_t other = fork(); /* before there is a file: it has no descriptor but the one it is sent */
  if (other == 0) {
    close(pair[0]);
    int fd = receive_descriptor(pair[1]);
    char *map = map_any(NULL, 2 * PAGE, READ_WRITE, DIRECT, fd, 0);
    bool good = map != MAP_FAILED && map[PAGE] == 'B';
    if (good) map[0] = 's';
    close(fd);
    if (write(pair[1], good ? "y" : "n", 1) != 1) _exit(1);
    pause();
    _exit(0);
  }
  int fd = make_file(NAME, "WW");
  char *map = map_direct(fd, 0, 2 * PAGE);
  send_descriptor(pair[0], fd);
  close(fd);
  char answer = 0;
  if (read(pair[0], &answer, 1) != 1) give_up("the other process answers");
  report(answer == 'y' && map[0] == 's', "R21: a process maps the file by a descriptor that it was sent",
         "%c", answer);
  check(unmap(map, 2 * PAGE) == 0, "the sender unmaps");
  sleep_ms(100);
  leased("R21: the receiver's lease is its own", 0);
  end_child(other);
  ended("R21: and ends with it", 0);

  fd = make_file(NAME, "WW");
  map = map_direct(fd, 0, 2 * PAGE);
  int again = dup(fd);
  send_descriptor(pair[1], fd); /* nobody receives it */
  close(fd);
  leased("R21: a dup and a descriptor on its way", 0);
  unmap(map, 2 * PAGE);
  ended("R21: hold no lease: the mapping did", 0);
  close(again);
  close(pair[0]);
  close(pair[1]);
}

/* ---- memory */

static void advised(void) {
  catch_faults();
  int fd = make_file(NAME, "WWHUW");
  char *map = map_direct(fd, 0, 5 * PAGE);
  memset(map, 'm', 2 * PAGE);
  static const int harmless[] = {MADV_NORMAL, MADV_RANDOM,   MADV_SEQUENTIAL, MADV_WILLNEED,
                                 MADV_COLD,   MADV_DONTDUMP, MADV_DODUMP,     MADV_DONTNEED};
  bool good = true;
  for (size_t index = 0; index < sizeof harmless / sizeof *harmless; index++) {
    /* The library's users have the kernel's madvise, which takes a hole's protection away with its pages. */
    size_t pages = by_library && harmless[index] == MADV_DONTNEED ? 2 : 5;
    if (madvise(map, pages * PAGE, harmless[index]) != 0) good = false;
    if (map[0] != 'm' || map[2 * PAGE - 1] != 'm' || map[4 * PAGE] != 'E') good = false;
  }
  check(good, "R22: advice of every harmless kind is taken, and changes no byte");
  expect_sigbus("nor a hole", store_fault(map + 2 * PAGE, 1), map + 2 * PAGE);
  expect_sigbus("nor an unwritten extent", store_fault(map + 3 * PAGE, 1), map + 3 * PAGE);
  if (!by_library) {
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    struct iovec whole = {.iov_base = map, .iov_len = 5 * PAGE};
    process_madvise(self, &whole, 1, MADV_DONTNEED, 0);
    expect_sigbus("process_madvise(MADV_DONTNEED) does no harm to a hole", store_fault(map + 2 * PAGE, 1),
                  map + 2 * PAGE);
    close(self);
    errno = 0;
    check(madvise(map, 5 * PAGE, 102 /* MADV_GUARD_INSTALL */) == -1 && errno == EINVAL,
          "a direct mapping takes no guard pages: EINVAL");
    madvise(map, 5 * PAGE, 103 /* MADV_GUARD_REMOVE */);
    expect_sigbus("and to remove them changes nothing", store_fault(map + 2 * PAGE, 1), map + 2 * PAGE);
  }
  madvise(map, 2 * PAGE, MADV_PAGEOUT); /* may not be possible, but must not harm */
  check(map[0] == 'm' && map[2 * PAGE - 1] == 'm', "pages that are reclaimed come back");
  errno = 0;
  check(madvise(map, PAGE, MADV_FREE) == -1 && errno == EINVAL, "MADV_FREE is not for shared memory: EINVAL");
  if (madvise(map, PAGE, MADV_POPULATE_WRITE) == 0)
    check(madvise(map, 5 * PAGE, MADV_POPULATE_WRITE) == -1,
          "MADV_POPULATE_WRITE fails where there is a hole");
  char value = 1;
  report(load_fault(map + 2 * PAGE, &value).signal == 0 && value == 0, "and leaves it one", "%d", value);
  expect_sigbus("which refuses stores", store_fault(map + 2 * PAGE, 1), map + 2 * PAGE);

  check(madvise(map + PAGE, PAGE, MADV_DONTFORK) == 0, "MADV_DONTFORK on a page");
  pid_t child = fork();
  if (child == 0) {
    bool as_asked = load_fault(map + PAGE, &value).signal == SIGSEGV && map[0] == 'm';
    unmap(map, PAGE);
    _exit(as_asked && store_fault(map + 2 * PAGE, 1).signal == SIGBUS ? 0 : 1);
  }
  report(wait_for(child) == 0, "R22: the child has all but that page, and unmaps some", "it has not");
  check(map[PAGE] == 'm', "the parent has it all");
  leased("R22: and the lease", PAGE);
  unmap(map, 5 * PAGE);
  ended("which ends with it", 0);
}

static void locked(void) {
  catch_faults();
  int fd = make_file(NAME, "WWHUW");
  char *map = map_direct(fd, 0, 6 * PAGE); /* the last page is past the end */
  check(mlock(map, 2 * PAGE) == 0, "written pages are locked");
  if (by_library) {
    /* The kernel's own mlock stops where it cannot put a page in place for writing. */
    check(mlock(map, 5 * PAGE) == 0 || errno == ENOMEM, "mlock over a hole says ENOMEM at worst");
  } else {
    check(mlock(map, 5 * PAGE) == 0, "so are ranges with holes");
    check(mlock2(map, 5 * PAGE, MLOCK_ONFAULT) == 0, "MLOCK_ONFAULT too");
    errno = 0;
    check(mlock(map, 6 * PAGE) == -1 && errno == ENOMEM, "past the end there is nothing to lock: ENOMEM");
    errno = 0;
    check(mlock2(map, PAGE, 0x100) == -1 && errno == EINVAL, "an unknown flag: EINVAL");
  }
  map[0] = 'l';
  char value = 1;
  report(load_fault(map + 2 * PAGE, &value).signal == 0 && value == 0, "R10: a locked hole reads zeros", "%d",
         value);
  expect_sigbus("R10: and refuses stores", store_fault(map + 3 * PAGE, 1), map + 3 * PAGE);
  check(munlock(map, 2 * PAGE) == 0, "munlock splits pieces");
  check(unmap(map + PAGE, PAGE) == 0, "a page is unmapped");
  leased("R22: the lease stays", PAGE);
  check(unmap(map, 6 * PAGE) == 0, "the rest is");
  ended("R21: locked memory ends like any other", 0);

  pid_t child = fork();
  if (child == 0) {
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) _exit(errno == ENOMEM || errno == EPERM ? 9 : 1);
    int mine = open(path_of(NAME), O_RDWR);
    char *own = map_any(NULL, 6 * PAGE, READ_WRITE, DIRECT, mine, 0);
    if (own == MAP_FAILED) _exit(2);
    if (own[4 * PAGE] != 'E') _exit(3);
    if (store_fault(own + 2 * PAGE, 1).signal != SIGBUS) _exit(4);
    if (load_fault(own + 5 * PAGE, &value).signal != SIGBUS) _exit(5);
    _exit(unmap(own, 6 * PAGE) == 0 ? 0 : 6);
  }
  int status = wait_for(child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 9)
    skip("mappings of a process that locks all of its memory", "mlockall is not allowed here");
  else
    report(status == 0, "a process that locks all of its memory maps directly", "status %#x", status);
}

/* ---- death with a core */

/* Does the file hold `text`? */
static bool holds(const char *path, const char *text) {
  FILE *file = fopen(path, "r");
  if (file == NULL) return false;
  static char block[1 << 20];
  size_t size = strlen(text);
  size_t kept = 0;
  bool found = false;
  for (size_t got; !found && (got = fread(block + kept, 1, sizeof block - kept, file)) > 0;) {
    found = memmem(block, kept + got, text, size) != NULL;
    kept = kept + got < size - 1 ? kept + got : size - 1;
    memmove(block, block + sizeof block - kept, kept);
  }
  fclose(file);
  return found;
}

static void dumped(void) {
  char pattern[128] = "";
  int setting = open("/proc/sys/kernel/core_pattern", O_RDONLY);
  if (setting >= 0 && read(setting, pattern, sizeof pattern - 1) < 0) pattern[0] = 0;
  close(setting);
  bool here = strcmp(pattern, "core\n") == 0;

  static const char marker[] = "stored before the core was dumped";
  int fd = make_file(NAME, "WHUW");
  pid_t child = fork();
  if (child == 0) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY});
    /* Shared mappings of files too: the dumper then reads holes, and what is past the end. */
    int filter = open("/proc/self/coredump_filter", O_WRONLY);
    if (filter < 0 || write(filter, "0xff", 4) != 4) _exit(1);
    close(filter);
    if (chdir(directory) != 0) _exit(1); /* the core goes through the very daemon that holds the lease */
    char *map = map_direct(fd, 0, 5 * PAGE);
    for (size_t index = 0; index < sizeof marker - 1; index++)
      map[100 + index] = marker[index];
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
    _exit(1);
  }
  int status = wait_for(child);
  report(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "a holder dies of a fault of its own",
         "status %#x", status);
  ended("R21: and its lease with it, core or not", 0);
  char path[4200];
  snprintf(path, sizeof path, "%s/core", directory);
  struct stat found;
  if (here && stat(path, &found) != 0) snprintf(path, sizeof path, "%s/core.%d", directory, child);
  if (!here || !WCOREDUMP(status))
    skip("its core holds what it stored",
         here ? "no core was written" : "cores go elsewhere on this machine");
  else
    report(holds(path, marker), "its core, a file of the same mount, holds what it stored", "%s", path);
  unlink(path);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  if (argc > 4) {
    sleep(30);
    return 0;
  }
  catch_faults();
  idle[0] = argv[0];
  idle[1] = argv[1];
  idle[2] = argv[2];
  idle[3] = argv[3];
  vforked();
  spawned();
  daemonized();
  handed_over();
  advised();
  locked();
  dumped();
  return end();
}
