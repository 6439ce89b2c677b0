/* The library leaves no trace in the program: descriptors, locks, signals, threads. */
#include <dirent.h>

#include "tap.h"

static int count_entries(const char *path) {
  DIR *folder = opendir(path);
  int count = 0;
  if (folder == NULL) return -1;
  while (readdir(folder) != NULL)
    count++;
  closedir(folder);
  return count;
}

static int lowest_free(void) {
  int fd = open("/dev/null", O_RDONLY);
  close(fd);
  return fd;
}

static _Atomic int handled;
static void on_signal(int signal) {
  (void)signal;
  handled++;
}

int main(int argc, char **argv) {
  begin(argc, argv);
  catch_faults();
  int fd = make_file("descriptors", "WWHU");
  int before = count_entries("/proc/self/fd");
  int lowest = lowest_free();
  int threads = count_entries("/proc/self/task");

  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 100};
  if (fcntl(fd, F_SETLK, &lock) != 0) give_up("a record lock");
  errno = 123;
  char *map = map_direct(fd, 0, 6 * PAGE);
  report(errno == 123, "a successful mapping leaves errno alone", "%d", errno);
  report(count_entries("/proc/self/fd") == before, "a mapping with holes adds no descriptor", "%d, was %d",
         count_entries("/proc/self/fd"), before);
  report(lowest_free() == lowest, "the lowest free descriptor is what it was", "%d, was %d", lowest_free(),
         lowest);
  report(count_entries("/proc/self/task") == threads + 2, "two threads were added", "%d, was %d",
         count_entries("/proc/self/task"), threads);
  pid_t child = fork();
  if (child == 0) {
    int mine = open(path_of("descriptors"), O_RDWR);
    _exit(fcntl(mine, F_SETLK, &lock) == -1 && (errno == EAGAIN || errno == EACCES) ? 0 : 1);
  }
  report(wait_for(child) == 0, "the program's record lock on the file outlives the making of the mapping",
         "it is gone");

  signal(SIGUSR1, on_signal);
  for (int round = 0; round < 100; round++)
    kill(getpid(), SIGUSR1);
  check(handled == 100, "signals for the process reach the program's thread");

  child = fork();
  if (child == 0) { /* what daemons do */
    for (int other = 0; other < 1024; other++)
      close(other);
    struct fault fault = store_fault(map + 2 * PAGE, 1);
    char value = 1;
    bool good = fault.signal == SIGBUS && load_fault(map + 3 * PAGE, &value).signal == 0 && value == 0;
    map[0] = 'd';
    _exit(good ? 0 : 1);
  }
  report(wait_for(child) == 0 && map[0] == 'd', "closing every descriptor does not change the mapping",
         "it did");

  /* A stopped or busy keeper must not be in the way of a signal handler that unmaps: done in the handler
   * itself. */
  check(unmap(map, 6 * PAGE) == 0, "unmap");
  report(count_entries("/proc/self/fd") == before, "no descriptor is left", "%d, was %d",
         count_entries("/proc/self/fd"), before);
  sleep_ms(1500);
  report(count_entries("/proc/self/task") == threads, "they end a while after the last mapping", "%d, was %d",
         count_entries("/proc/self/task"), threads);
  map = map_direct(fd, 0, 6 * PAGE);
  expect_sigbus("a new one takes its place", store_fault(map + 2 * PAGE, 1), map + 2 * PAGE);
  unmap(map, 6 * PAGE);

  fcntl(fd, F_SETLK, &(struct flock){.l_type = F_UNLCK, .l_whence = SEEK_SET});
  /* More mappings than descriptors may be open. */
  enum { MANY = 1500 };
  static char *maps[MANY];
  int made = 0;
  for (; made < MANY; made++) {
    maps[made] = map_any(NULL, 4 * PAGE, READ_WRITE, DIRECT, fd, 0);
    if (maps[made] == MAP_FAILED) break;
  }
  int error = errno;
  report(made == MANY || error == EAGAIN, "1500 mappings are made, or a limit says EAGAIN", "%d, %s", made,
         strerrorname_np(error));
  for (int index = 0; index < made; index++)
    unmap(maps[index], 4 * PAGE);
  report(punch_soon("descriptors", 0) == 0, "and all end", "one did not");
  return end();
}
