/*
 * What a file system answers, one line each, with nothing in it that two file systems need not have in common: run on the
 * mount and on tmpfs, the lines have to be the same.
 *
 *   probe FOLDER      (as root)
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096l
#define NOBODY 65534u

/* ---- saying */

static const char *area = "";

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
  va_list list;
  va_start(list, format);
  printf("%s: ", area);
  vprintf(format, list);
  printf("\n");
  va_end(list);
  fflush(stdout);
}

static const char *name_of(int error) {
  return error == 0 ? "ok" : strerrorname_np(error);
}

/* The answer of a call: "ok", a number above 0, or the errno. */
#define SAY(call)                                                                                            \
  do {                                                                                                       \
    errno = 0;                                                                                               \
    long answer = (long)(call);                                                                              \
    if (answer < 0)                                                                                          \
      say("%s = %s", #call, name_of(errno));                                                                 \
    else                                                                                                     \
      say("%s = ok %ld", #call, answer);                                                                     \
  } while (0)

/* The same for calls whose number means nothing (descriptors). */
#define TRY(call)                                                                                            \
  do {                                                                                                       \
    errno = 0;                                                                                               \
    long answer = (long)(call);                                                                              \
    say("%s = %s", #call, answer < 0 ? name_of(errno) : "ok");                                               \
  } while (0)

static void die(const char *what) {
  perror(what);
  exit(1);
}

static int make(const char *path, mode_t mode) {
  unlink(path);
  int fd = open(path, O_RDWR | O_CREAT | O_EXCL, mode);
  if (fd < 0) die(path);
  return fd;
}

static void fill(int fd, char byte, long offset, long length) {
  char block[4096];
  memset(block, byte, sizeof block);
  for (long at = 0; at < length; at += (long)sizeof block) {
    long left = length - at;
    size_t count = (size_t)(left < (long)sizeof block ? left : (long)sizeof block);
    if (pwrite(fd, block, count, offset + at) != (ssize_t)count) die("pwrite");
  }
}

static mode_t mode_of(const char *path) {
  struct stat status;
  return lstat(path, &status) == 0 ? status.st_mode : 0;
}

/* Run it as somebody else, who is in group 9 besides. */
static void as(uid_t uid, gid_t gid, void (*what)(void)) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    if (syscall(SYS_setgroups, 1, (gid_t[]){9}) != 0 || setresgid(gid, gid, gid) != 0 ||
        setresuid(uid, uid, uid) != 0)
      _exit(1);
    what();
    fflush(stdout);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (status != 0) say("child: %#x", (unsigned)status);
}

/* ---- times */

static struct stat before;

static void sleep_tick(void) {
  struct timespec time = {.tv_nsec = 12000000}; /* coarse clocks tick every 10 ms at worst */
  nanosleep(&time, NULL);
}

static bool later(struct timespec a, struct timespec b) {
  return a.tv_sec > b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec > b.tv_nsec);
}

static void watch(const char *path) {
  if (lstat(path, &before) != 0) die(path);
  sleep_tick();
}

static void changed(const char *what, const char *path) {
  struct stat after;
  if (lstat(path, &after) != 0) {
    say("%s: %s is gone", what, path);
    return;
  }
  say("%s: %s%s%s", what, later(after.st_mtim, before.st_mtim) ? " mtime" : "",
      later(after.st_ctim, before.st_ctim) ? " ctime" : "",
      later(after.st_atim, before.st_atim) ? " atime" : "");
}

#define CHANGES(path, call)                                                                                  \
  do {                                                                                                       \
    watch(path);                                                                                             \
    if ((long)(call) < 0) say("%s: %s", #call, name_of(errno));                                              \
    changed(#call, path);                                                                                    \
  } while (0)

static void times(void) {
  area = "times";
  int fd = make("t", 0644);
  fill(fd, 'a', 0, 100);
  CHANGES("t", chmod("t", 0600));
  CHANGES("t", chmod("t", 0600));
  CHANGES("t", chown("t", 1, 1));
  CHANGES("t", chown("t", (uid_t)-1, (gid_t)-1));
  CHANGES("t", link("t", "t2"));
  CHANGES("t", rename("t2", "t3"));
  CHANGES("t", unlink("t3"));
  CHANGES("t", setxattr("t", "user.a", "1", 1, 0));
  CHANGES("t", removexattr("t", "user.a"));
  CHANGES("t", pwrite(fd, "x", 1, 0));
  CHANGES("t", pwrite(fd, "x", 0, 0));
  CHANGES("t", ftruncate(fd, 50));
  CHANGES("t", ftruncate(fd, 50));
  CHANGES("t", truncate("t", 50));
  CHANGES("t", fallocate(fd, 0, 0, 4096));
  CHANGES("t", open("t", O_WRONLY | O_TRUNC));
  CHANGES("t",
          utimensat(AT_FDCWD, "t", (struct timespec[]){{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}}, 0));
  CHANGES("t", utimensat(AT_FDCWD, "t", NULL, 0));
  mkdir("td", 0755);
  CHANGES("td", open("td/new", O_CREAT | O_WRONLY, 0644));
  CHANGES("td", link("td/new", "td/other"));
  CHANGES("td", rename("td/new", "td/moved"));
  CHANGES("td", unlink("td/moved"));
  CHANGES("td", mkdir("td/sub", 0755));
  CHANGES("td", rmdir("td/sub"));
  CHANGES("td", symlink("x", "td/link"));
  CHANGES("td/other", rename("td/other", "td/other"));
  CHANGES("td/link", rename("td/link", "td/link2"));
  static const long seconds[] = {0, -1, -2000000000, 2000000000, 4000000000, 10000000000};
  for (size_t at = 0; at < sizeof seconds / sizeof *seconds; at++) {
    struct timespec wanted[2] = {{.tv_sec = seconds[at], .tv_nsec = 123456789}, {.tv_sec = seconds[at] + 1}};
    struct stat found;
    int error = utimensat(AT_FDCWD, "t", wanted, 0) == 0 && stat("t", &found) == 0 ? 0 : errno;
    say("utimensat %ld: %s %ld.%09ld %ld", seconds[at], name_of(error), (long)found.st_atim.tv_sec,
        found.st_atim.tv_nsec, (long)found.st_mtim.tv_sec);
  }
  struct statx extended;
  if (statx(AT_FDCWD, "t", 0, STATX_BTIME | STATX_BASIC_STATS, &extended) != 0) die("statx");
  say("statx: btime %d, now %d", (extended.stx_mask & STATX_BTIME) != 0,
      llabs((long long)extended.stx_btime.tv_sec - (long long)time(NULL)) < 100);
  close(fd);
}

/* ---- owners and modes */

static void privileges_of_others(void) {
  int fd = open("set", O_WRONLY);
  TRY(pwrite(fd, "y", 1, 0));
  say("after a write by another: %o", mode_of("set"));
  TRY(chmod("set", 06777));
  TRY(unlink("sticky/root's"));
  TRY(rename("sticky/root's", "sticky/mine"));
  TRY(rename("sticky/ours", "sticky/mine"));
  TRY(unlink("sticky/mine"));
  TRY(open("secret", O_RDONLY));
  TRY(open("secret", O_WRONLY | O_TRUNC));
  TRY(truncate("secret", 0));
  TRY(open("closed/inside", O_RDONLY));
  TRY(access("closed", X_OK));
  TRY(chown("nobody's", NOBODY, 0));
  TRY(chown("nobody's", 0, (gid_t)-1));
  TRY(chown("nobody's", (uid_t)-1, NOBODY));
  say("after chown by its owner: %o", mode_of("nobody's"));
  TRY(utimensat(AT_FDCWD, "world", NULL, 0));
  TRY(utimensat(AT_FDCWD, "world", (struct timespec[]){{0}, {0}}, 0));
  TRY(setxattr("world", "user.x", "1", 1, 0));
  TRY(setxattr("secret", "user.x", "1", 1, 0));
  TRY(setxattr("world", "trusted.x", "1", 1, 0));
  TRY(getxattr("set", "trusted.t", NULL, 0));
  TRY(mknod("sticky/device", S_IFCHR | 0600, 0x103));
  TRY(mknod("sticky/pipe", S_IFIFO | 0600, 0));
  int made = open("setgid/file", O_CREAT | O_RDWR, 02755);
  struct stat status;
  fstat(made, &status);
  say("in a setgid directory: %o, group %u", status.st_mode, status.st_gid);
  TRY(fchmod(made, 02711));
  fstat(made, &status);
  say("setgid of a group that is not ours: %o", status.st_mode);
  TRY(mkdir("setgid/sub", 0755));
  say("and below: %o", mode_of("setgid/sub"));
}

/* Setuid and setgid after changes by somebody else, who is in the file's group or not. */
static const mode_t set_modes[] = {06666, 06676, 06766, 06777, 02666, 02676, 04666};
static const char *const set_changes[] = {"write",    "fallocate", "O_TRUNC", "ftruncate",
                                          "truncate", "copy",      "mmap"};
static const gid_t set_groups[] = {NOBODY, 1, 9};
#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *set_name(size_t mode, size_t change, size_t group) {
  static char name[64];
  snprintf(name, sizeof name, "taken/%o %s %u", set_modes[mode], set_changes[change], set_groups[group]);
  return name;
}

/* As somebody in the groups NOBODY and 9. */
static void change_each(void) {
  for (size_t mode = 0; mode < COUNT(set_modes); mode++)
    for (size_t change = 0; change < COUNT(set_changes); change++)
      for (size_t group = 0; group < COUNT(set_groups); group++) {
        const char *name = set_name(mode, change, group);
        int fd = open(name, O_RDWR | (change == 2 ? O_TRUNC : 0));
        int source = open("set-source", O_RDONLY);
        int done = fd < 0 ? -1 : 0;
        if (change == 0) done = (int)pwrite(fd, "other", 5, 0);
        if (change == 1) done = fallocate(fd, 0, 0, 10000);
        if (change == 3) done = ftruncate(fd, 1);
        if (change == 4) done = truncate(name, 1);
        if (change == 5) done = (int)copy_file_range(source, NULL, fd, NULL, 4, 0);
        if (change == 6) {
          char *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
          if (map != MAP_FAILED) map[0] = 'm';
        }
        say("%s: %s, then %o", name, done < 0 ? name_of(errno) : "ok", mode_of(name) & 07777);
        close(fd);
        close(source);
      }
}

static void taken_away(void) {
  area = "taken away";
  umask(0);
  mkdir("taken", 0777);
  int source = make("set-source", 0666);
  fill(source, 's', 0, 100);
  for (size_t mode = 0; mode < COUNT(set_modes); mode++)
    for (size_t change = 0; change < COUNT(set_changes); change++)
      for (size_t group = 0; group < COUNT(set_groups); group++) {
        const char *name = set_name(mode, change, group);
        int fd = make(name, 0666);
        fill(fd, 'f', 0, 100);
        if (fchown(fd, 5, set_groups[group]) != 0 || fchmod(fd, set_modes[mode]) != 0) die(name);
        close(fd);
      }
  as(NOBODY, NOBODY, change_each);
  umask(022);
}

static void owners(void) {
  area = "owners";
  umask(0);
  int fd = make("set", 0777);
  fchmod(fd, 06777);
  setxattr("set", "trusted.t", "1", 1, 0);
  TRY(pwrite(fd, "x", 1, 0));
  say("after a write by root: %o", mode_of("set"));
  TRY(chown("set", 1, 1));
  say("after chown by root: %o", mode_of("set"));
  fchmod(fd, 06777);
  fchmod(fd, 06666);
  TRY(chown("set", 2, 2));
  say("after chown by root, not executable: %o", mode_of("set"));
  fchmod(fd, 06777);
  TRY(ftruncate(fd, 0));
  say("after truncate by root: %o", mode_of("set"));
  mkdir("sticky", 01777);
  close(make("sticky/root's", 0666));
  close(make("sticky/ours", 0666));
  if (chown("sticky/ours", NOBODY, NOBODY) != 0) die("chown");
  close(make("secret", 0600));
  mkdir("closed", 0700);
  close(make("closed/inside", 0666));
  int owned = make("nobody's", 0666);
  if (fchown(owned, NOBODY, 1) != 0 || fchmod(owned, 06775) != 0) die("nobody's");
  close(make("world", 0666));
  mkdir("setgid", 0777);
  if (chown("setgid", 0, 7) != 0 || chmod("setgid", 02777) != 0) die("setgid");
  as(NOBODY, NOBODY, privileges_of_others);
  umask(027);
  close(make("masked", 0777));
  mkdir("masked-dir", 0777);
  mkfifo("masked-fifo", 0777);
  say("umask 027: %o %o %o", mode_of("masked"), mode_of("masked-dir"), mode_of("masked-fifo"));
  umask(022);
  TRY(fchmodat(AT_FDCWD, "set", 0107777, 0));
  say("%o", mode_of("set"));
  TRY(chown("missing", 0, 0));
  symlink("set", "to-set");
  TRY(lchown("to-set", 5, 6));
  say("link %o", mode_of("to-set"));
  TRY(fchmodat(AT_FDCWD, "to-set", 0600, AT_SYMLINK_NOFOLLOW));
  close(fd);
}

/* ---- names */

static void names(void) {
  area = "names";
  char longest[300];
  memset(longest, 'n', sizeof longest);
  longest[255] = 0;
  TRY(mkdir(longest, 0755));
  TRY(rmdir(longest));
  longest[255] = 'n';
  longest[256] = 0;
  TRY(mkdir(longest, 0755));
  TRY(open(longest, O_RDONLY));
  TRY(symlink(longest, "s"));
  static char far_target[5000];
  memset(far_target, 't', 4999);
  TRY(symlink(far_target, "far"));
  far_target[4095] = 0;
  TRY(symlink(far_target, "near"));
  TRY(symlink("", "empty"));
  symlink("loop2", "loop1");
  symlink("loop1", "loop2");
  TRY(open("loop1", O_RDONLY));
  TRY(open("loop1", O_RDONLY | O_CREAT, 0644));
  symlink("loop1", "nofollow");
  TRY(open("nofollow", O_RDONLY | O_NOFOLLOW));
  TRY(open("nofollow", O_PATH | O_NOFOLLOW));
  close(make("file", 0644));
  TRY(open("file/below", O_RDONLY));
  TRY(open("file/", O_RDONLY));
  TRY(mkdir("file", 0755));
  TRY(mkdir("dir", 0755));
  TRY(mkdir("dir/", 0755));
  TRY(mkdir("new/", 0755));
  TRY(rmdir("new/"));
  TRY(unlink("dir"));
  TRY(rmdir("file"));
  TRY(rmdir("dir/."));
  TRY(rmdir("dir/.."));
  TRY(rmdir("."));
  close(make("dir/child", 0644));
  TRY(rmdir("dir"));
  TRY(rename("dir", "dir/below"));
  TRY(rename("dir", "file"));
  TRY(rename("file", "dir"));
  mkdir("empty-dir", 0755);
  TRY(rename("empty-dir", "dir"));
  TRY(rename("dir", "empty-dir"));
  TRY(rename("missing", "file"));
  TRY(rename("file", "file"));
  TRY(link("file", "hard"));
  TRY(rename("file", "hard"));
  say("both are there: %d %d", access("file", F_OK), access("hard", F_OK));
  TRY(link("empty-dir", "hard-dir"));
  TRY(link("file", "hard"));
  TRY(linkat(AT_FDCWD, "loop1", AT_FDCWD, "hard-link-to-link", 0));
  TRY(syscall(SYS_renameat2, AT_FDCWD, "file", AT_FDCWD, "hard", 1));
  TRY(syscall(SYS_renameat2, AT_FDCWD, "file", AT_FDCWD, "empty-dir", 2));
  say("exchanged: %o %o", mode_of("file"), mode_of("empty-dir"));
  TRY(syscall(SYS_renameat2, AT_FDCWD, "file", AT_FDCWD, "missing", 2));
  TRY(syscall(SYS_renameat2, AT_FDCWD, "file", AT_FDCWD, "hard", 3));
  TRY(syscall(SYS_renameat2, AT_FDCWD, "file", AT_FDCWD, "hard", 64));
  TRY(open("file", O_RDONLY | O_DIRECTORY));
  TRY(open("hard", O_RDONLY | O_DIRECTORY));
  TRY(open("file", O_WRONLY));
  TRY(open("hard", O_CREAT | O_EXCL | O_WRONLY, 0644));
  TRY(open("loop1", O_CREAT | O_EXCL | O_WRONLY, 0644));
  struct stat status;
  stat("file", &status);
  say("links of a directory: %lu", status.st_nlink);
  mkdir("file/one", 0755);
  mkdir("file/two", 0755);
  stat("file", &status);
  say("with two below: %lu", status.st_nlink);
  int removed = open("gone", O_CREAT | O_RDWR, 0600);
  unlink("gone");
  fstat(removed, &status);
  say("links of what is gone: %lu", status.st_nlink);
  TRY(write(removed, "still", 5));
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", removed);
  TRY(linkat(AT_FDCWD, path, AT_FDCWD, "back", AT_SYMLINK_FOLLOW));
  int unnamed = open(".", O_TMPFILE | O_RDWR, 0640);
  say("O_TMPFILE: %s", name_of(unnamed < 0 ? errno : 0));
  TRY(write(unnamed, "text", 4));
  snprintf(path, sizeof path, "/proc/self/fd/%d", unnamed);
  TRY(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
  stat("named", &status);
  say("named: %o, %ld bytes, %lu links", status.st_mode, (long)status.st_size, status.st_nlink);
  int exclusive = open(".", O_TMPFILE | O_RDWR | O_EXCL, 0600);
  snprintf(path, sizeof path, "/proc/self/fd/%d", exclusive);
  TRY(linkat(AT_FDCWD, path, AT_FDCWD, "never", AT_SYMLINK_FOLLOW));
  int inside = open("gone-dir", O_RDONLY | mkdir("gone-dir", 0755));
  rmdir("gone-dir");
  TRY(openat(inside, "x", O_CREAT | O_WRONLY, 0644));
  TRY(openat(inside, ".", O_RDONLY));
  TRY(mkdirat(inside, "x", 0755));
}

/* ---- data */

static void data(void) {
  area = "data";
  int fd = make("data", 0644);
  char buffer[8192];
  SAY(pread(fd, buffer, 10, 0));
  SAY(pread(fd, buffer, 10, -1));
  SAY(pwrite(fd, "x", 1, -1));
  SAY(pwrite(fd, "hello", 5, 10));
  SAY(lseek(fd, 0, SEEK_END));
  SAY(lseek(fd, -1, SEEK_SET));
  SAY(lseek(fd, 0, 99));
  SAY(pread(fd, buffer, 100, 0));
  SAY(pread(fd, buffer, 100, 12));
  SAY(pread(fd, buffer, 100, 15));
  struct iovec vectors[3] = {{buffer, 3}, {buffer + 100, 0}, {buffer + 200, 4}};
  SAY(preadv(fd, vectors, 3, 8));
  SAY(pwritev(fd, vectors, 3, 20));
  SAY(pread(fd, buffer, 100, 0));
  SAY(ftruncate(fd, -1));
  SAY(ftruncate(fd, 0x7fffffffffffffff));
  SAY(lseek(fd, 0, SEEK_END));
  SAY(pwrite(fd, "xy", 2, 0x7ffffffffffffffe));
  SAY(ftruncate(fd, 3));
  int append = open("data", O_WRONLY | O_APPEND);
  SAY(pwrite(append, "AA", 2, 0));
  SAY(write(append, "BB", 2));
  SAY(lseek(append, 0, SEEK_CUR));
  SAY(pread(fd, buffer, 100, 0));
  int read_only = open("data", O_RDONLY);
  SAY(write(read_only, "x", 1));
  SAY(ftruncate(read_only, 0));
  SAY(read(append, buffer, 1));
  SAY(fallocate(read_only, 0, 0, 10));
  int folder = open(".", O_RDONLY | O_DIRECTORY);
  SAY(read(folder, buffer, 1));
  TRY(fsync(folder));
  TRY(fdatasync(fd));
  TRY(syncfs(fd));
  TRY(sync_file_range(fd, 0, 0, 7));
  int other = make("other", 0644);
  SAY(sendfile(other, fd, (off_t[]){0}, 5));
  loff_t from = 0;
  loff_t to = 2;
  SAY(copy_file_range(fd, &from, other, &to, 5, 0));
  from = 0;
  to = 3;
  SAY(copy_file_range(fd, &from, fd, &to, 5, 0));
  from = 100;
  SAY(copy_file_range(fd, &from, other, &to, 5, 0));
  from = 0;
  SAY(copy_file_range(fd, &from, other, &to, 5, 1));
  SAY(copy_file_range(fd, &from, append, &to, 5, 0));
  SAY(copy_file_range(fd, &from, folder, &to, 5, 0));
  int pipes[2];
  if (pipe(pipes) != 0) die("pipe");
  from = 0;
  SAY(splice(fd, &from, pipes[1], NULL, 6, 0));
  to = 0;
  SAY(splice(pipes[0], NULL, other, &to, 6, 0));
  SAY(fallocate(fd, 0, -1, 10));
  SAY(fallocate(fd, 0, 0, 0));
  SAY(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 10));
  SAY(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096));
  SAY(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 10000));
  SAY(lseek(fd, 0, SEEK_END));
  SAY(fallocate(fd, 0, 0, 10000));
  SAY(lseek(fd, 0, SEEK_END));
  SAY(fallocate(fd, 0, 0x7ffffffffffff000, 8192));
  SAY(posix_fallocate(fd, 0, 20000));

  int holes = make("holes", 0644);
  ftruncate(holes, 10 * PAGE);
  fill(holes, 'd', 2 * PAGE, PAGE);
  fill(holes, 'd', 5 * PAGE + 100, 50);
  fallocate(holes, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * PAGE, PAGE);
  fill(holes, 'd', 7 * PAGE, 2 * PAGE);
  for (long at = 0; at <= 10 * PAGE; at += PAGE / 2)
    say("from %ld: data %ld hole %ld", at, (long)lseek(holes, at, SEEK_DATA),
        (long)lseek(holes, at, SEEK_HOLE));
  SAY(lseek(holes, 10 * PAGE + 1, SEEK_DATA));
  SAY(lseek(holes, -1, SEEK_HOLE));
  close(fd);
}

/* ---- limits */

static void limits(void) {
  area = "limits";
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &(struct rlimit){1000, RLIM_INFINITY});
  int fd = make("limited", 0644);
  char buffer[2000] = "";
  SAY(write(fd, buffer, 600));
  SAY(write(fd, buffer, 600));
  SAY(write(fd, buffer, 600));
  SAY(ftruncate(fd, 1001));
  SAY(ftruncate(fd, 1000));
  SAY(truncate("limited", 5000));
  SAY(fallocate(fd, 0, 0, 2000));
  SAY(pwrite(fd, buffer, 1, 1000));
  setrlimit(RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY});
  close(fd);
}

/* ---- mappings through the page cache */

static sigjmp_buf jump;
static void on_signal(int signal) {
  siglongjmp(jump, signal);
}

static const char *touch(volatile char *at, bool store) {
  int signal = sigsetjmp(jump, 1);
  if (signal != 0) return signal == SIGBUS ? "SIGBUS" : "SIGSEGV";
  if (store)
    *at = 'm';
  else
    (void)*at;
  return "ok";
}

static void mappings(void) {
  area = "mappings";
  signal(SIGBUS, on_signal);
  signal(SIGSEGV, on_signal);
  int fd = make("mapped", 0644);
  fill(fd, 'a', 0, PAGE + 100);
  char *shared = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  char *private = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  if (shared == MAP_FAILED || private == MAP_FAILED) die("mmap");
  char byte = 0;
  shared[10] = 's';
  pread(fd, &byte, 1, 10);
  say("a store is read: %c", byte);
  pwrite(fd, "w", 1, 20);
  say("a write is loaded: %c %c", shared[20], private[20]);
  private[30] = 'p';
  pread(fd, &byte, 1, 30);
  say("a private store is not: %c %c", byte, shared[30]);
  say("behind the end, in its page: %d", shared[PAGE + 200]);
  shared[PAGE + 200] = 'x';
  ftruncate(fd, PAGE + 300);
  pread(fd, &byte, 1, PAGE + 200);
  say("what was stored there is not in the file: %d", byte);
  say("a page behind the end: %s %s", touch(shared + 2 * PAGE, false), touch(shared + 2 * PAGE, true));
  ftruncate(fd, 3 * PAGE);
  say("the file has grown: %s", touch(shared + 2 * PAGE, true));
  ftruncate(fd, PAGE);
  say("and is cut: %s", touch(shared + PAGE, false));
  TRY(msync(shared, PAGE, MS_SYNC));
  TRY(msync(shared, PAGE, MS_ASYNC | MS_INVALIDATE));
  TRY(munmap(shared, 3 * PAGE));
  int read_only = open("mapped", O_RDONLY);
  TRY(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, read_only, 0) == MAP_FAILED ? -1 : 0);
  TRY(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, read_only, 0) == MAP_FAILED ? -1 : 0);
  int write_only = open("mapped", O_WRONLY);
  TRY(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, write_only, 0) == MAP_FAILED ? -1 : 0);
  /* A program, run from there; while it runs, it may not be written to. */
  int self = open("/proc/self/exe", O_RDONLY);
  int copy = open("program", O_CREAT | O_WRONLY, 0755);
  char buffer[65536];
  for (ssize_t count; (count = read(self, buffer, sizeof buffer)) > 0;)
    if (write(copy, buffer, (size_t)count) != count) die("copy");
  TRY(execl("./program", "program", "--nothing", NULL));
  close(copy);
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    execl("./program", "program", "--wait", NULL);
    _exit(99);
  }
  for (int tries = 0; tries < 200; tries++) { /* until it runs */
    char link[4096] = "";
    snprintf(buffer, sizeof buffer, "/proc/%d/exe", child);
    if (readlink(buffer, link, sizeof link - 1) > 0 && strstr(link, "program") != NULL) break;
    sleep_tick();
  }
  TRY(open("program", O_WRONLY));
  kill(child, SIGTERM);
  int status = 0;
  waitpid(child, &status, 0);
  say("it ended by %d", WTERMSIG(status));
  TRY(open("program", O_WRONLY));
}

/* ---- locks */

static int lock_fd;
static void locks_of_another(void) {
  int fd = open("locked", O_RDWR);
  TRY(flock(fd, LOCK_EX | LOCK_NB));
  TRY(flock(fd, LOCK_SH | LOCK_NB));
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 5, .l_len = 10};
  TRY(fcntl(fd, F_SETLK, &lock));
  TRY(fcntl(fd, F_OFD_SETLK, &(struct flock){.l_type = F_WRLCK, .l_start = 100, .l_len = 1}));
  lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 0};
  fcntl(fd, F_GETLK, &lock);
  say("the lock in the way: %d from %ld, %ld", lock.l_type, (long)lock.l_start, (long)lock.l_len);
  lock = (struct flock){.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 20, .l_len = 10};
  TRY(fcntl(fd, F_SETLK, &lock));
}

static void locks(void) {
  area = "locks";
  lock_fd = make("locked", 0666);
  TRY(flock(lock_fd, LOCK_SH));
  TRY(fcntl(lock_fd, F_SETLK, &(struct flock){.l_type = F_WRLCK, .l_start = 0, .l_len = 10}));
  int second = open("locked", O_RDWR);
  TRY(fcntl(second, F_OFD_SETLK, &(struct flock){.l_type = F_RDLCK, .l_start = 100, .l_len = 10}));
  as(0, 0, locks_of_another);
  TRY(fcntl(second, F_SETLEASE, F_WRLCK));
  close(second);
  as(0, 0, locks_of_another);
  TRY(flock(lock_fd, LOCK_UN));
}

/* ---- special files */

static void special(void) {
  area = "special";
  TRY(mkfifo("fifo", 0644));
  int both = open("fifo", O_RDWR);
  TRY(write(both, "pipe", 4));
  char buffer[16] = "";
  SAY(read(both, buffer, sizeof buffer));
  TRY(open("fifo", O_WRONLY | O_NONBLOCK));
  close(both);
  TRY(open("fifo", O_WRONLY | O_NONBLOCK));
  struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "socket"};
  int server = socket(AF_UNIX, SOCK_STREAM, 0);
  TRY(bind(server, (struct sockaddr *)&address, sizeof address));
  TRY(listen(server, 1));
  int client = socket(AF_UNIX, SOCK_STREAM, 0);
  TRY(connect(client, (struct sockaddr *)&address, sizeof address));
  TRY(open("socket", O_RDONLY));
  say("socket: %o", mode_of("socket") & S_IFMT);
  TRY(mknod("null", S_IFCHR | 0666, (1 << 8) | 3));
  struct stat status;
  stat("null", &status);
  say("device %lx", (unsigned long)status.st_rdev);
  TRY(mknod("regular", S_IFREG | 0600, 0));
  TRY(mknod("folder", S_IFDIR | 0755, 0));
  close(server);
}

/* ---- attributes */

static void attributes(void) {
  area = "attributes";
  close(make("x", 0644));
  symlink("x", "xlink");
  char value[70000];
  memset(value, 'v', sizeof value);
  SAY(getxattr("x", "user.a", value, 10));
  SAY(setxattr("x", "user.a", "12345", 5, XATTR_REPLACE));
  SAY(setxattr("x", "user.a", "12345", 5, XATTR_CREATE));
  SAY(setxattr("x", "user.a", "12345", 5, XATTR_CREATE));
  SAY(setxattr("x", "user.a", "", 0, XATTR_REPLACE));
  SAY(getxattr("x", "user.a", NULL, 0));
  SAY(setxattr("x", "user.a", "123", 3, 0));
  SAY(getxattr("x", "user.a", value, 2));
  SAY(getxattr("x", "user.a", value, 3));
  SAY(setxattr("x", "user.a", "1", 1, 4));
  SAY(setxattr("x", "user.", "1", 1, 0));
  SAY(setxattr("x", "nothing.a", "1", 1, 0));
  SAY(setxattr("x", "a", "1", 1, 0));
  SAY(lsetxattr("xlink", "user.a", "1", 1, 0));
  SAY(lsetxattr("xlink", "trusted.a", "1", 1, 0));
  SAY(setxattr("x", "user.big", value, 65537, 0));
  SAY(removexattr("x", "user.none"));
  SAY(removexattr("x", "user.a"));
  SAY(listxattr("x", value, sizeof value));
  SAY(setxattr("x", "trusted.b", "1", 1, 0));
  SAY(setxattr("x", "security.c", "1", 1, 0));
  SAY(listxattr("x", value, 3));
  SAY(listxattr("x", value, sizeof value) > 0 ? 0 : -1);
  char name[300] = "user.";
  memset(name + 5, 'n', 250);
  name[255] = 0;
  SAY(setxattr("x", name, "1", 1, 0));
  name[255] = 'n';
  name[256] = 0;
  SAY(setxattr("x", name, "1", 1, 0));
}

/* ---- directories */

static void directories(void) {
  area = "directories";
  enum { MANY = 2000 };
  mkdir("many", 0755);
  char path[64];
  for (int at = 0; at < MANY; at++) {
    snprintf(path, sizeof path, "many/%d", at);
    close(make(path, 0644));
  }
  DIR *folder = opendir("many");
  static bool seen[MANY];
  static long place[MANY];
  int count = 0;
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    if (entry->d_name[0] == '.') continue;
    int number = atoi(entry->d_name);
    if (seen[number]) say("%d twice", number);
    seen[number] = true;
    count++;
    place[number] = telldir(folder);
    /* Every second one goes while we read: those that are left come once each. */
    if (number % 2 == 1) {
      snprintf(path, sizeof path, "many/%d", number);
      unlink(path);
    }
  }
  say("%d entries", count);
  rewinddir(folder);
  count = 0;
  while (readdir(folder) != NULL)
    count++;
  say("%d are left", count);
  int wrong = 0;
  for (int number = 0; number < MANY; number += 100) {
    /* Where it was read from goes on behind it: it does not come again. */
    seekdir(folder, place[number]);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
      if (atoi(entry->d_name) == number && entry->d_name[0] != '.') wrong++;
  }
  say("%d came again", wrong);
  /* Who renames what it reads comes to an end. */
  rewinddir(folder);
  count = 0;
  for (struct dirent *entry; (entry = readdir(folder)) != NULL && count < 100000;) {
    if (entry->d_name[0] == '.') continue;
    char other[64];
    snprintf(path, sizeof path, "many/%s", entry->d_name);
    snprintf(other, sizeof other, "many/r%d", count++);
    rename(path, other);
  }
  say("renaming what is read ends: %d", count < 100000);
  closedir(folder);
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "--wait") == 0) {
    pause();
    return 0;
  }
  if (argc != 2 || chdir(argv[1]) != 0) return 2;
  umask(022);
  times();
  owners();
  taken_away();
  names();
  data();
  limits();
  mappings();
  locks();
  special();
  attributes();
  directories();
  return 0;
}
