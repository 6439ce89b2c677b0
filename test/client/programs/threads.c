/* Many threads map, store, unmap, fork and map over at a time; afterwards nothing is left. */
#include <dirent.h>
#include <sched.h>
#include <sys/time.h>

#include "tap.h"

/* The address sanitizer's own locks do not survive a fork among threads. */
#ifdef __SANITIZE_ADDRESS__
#define FORKS 0
#else
#define FORKS 1
#endif

enum { THREADS = 6, ROUNDS = 60 };
static _Atomic int wrong;
static _Atomic bool stop;

static void *work(void *argument) {
  unsigned seed = (unsigned)(uintptr_t)argument;
  char name[32];
  snprintf(name, sizeof name, "thread-%u", seed);
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  char page[PAGE];
  memset(page, 'A', sizeof page);
  if (fd < 0 || ftruncate(fd, 8 * PAGE) != 0) wrong++;
  for (int index = 0; index < 8; index++) {
    if (index != 3 && pwrite(fd, page, PAGE, (off_t)(index * (int)PAGE)) != (ssize_t)PAGE) wrong++;
  }
  for (int round = 0; round < ROUNDS; round++) {
    size_t first = (size_t)rand_r(&seed) % 4;
    size_t pages = 1 + (size_t)rand_r(&seed) % (8 - first);
    char *map = map_any(NULL, pages * PAGE, READ_WRITE, DIRECT, fd, (off_t)(first * PAGE));
    if (map == MAP_FAILED) {
      printf("# %s\n", strerrorname_np(errno));
      wrong++;
      continue;
    }
    for (size_t at = 0; at < pages; at++) {
      char expected = first + at == 3 ? 0 : 'A';
      if (map[at * PAGE] != expected) wrong++;
      if (expected != 0) map[at * PAGE + 1] = (char)round;
      struct mapdirect_lease_info info;
      if (mapdirect_query(map + at * PAGE, &info) != 0 || info.offset != (first + at) * PAGE) wrong++;
    }
    if (FORKS && rand_r(&seed) % 4 == 0) {
      pid_t child = fork();
      if (child == 0) {
        char expected = first == 3 ? 0 : 'A';
        _exit(map[0] == expected ? 0 : 1);
      }
      if (wait_for(child) != 0) wrong++;
    }
    size_t cut = (size_t)rand_r(&seed) % pages;
    if (unmap(map + cut * PAGE, PAGE) != 0) wrong++;
    /* Not over the gap: it may be another thread's by now. */
    if (cut > 0 && unmap(map, cut * PAGE) != 0) wrong++;
    if (cut + 1 < pages && unmap(map + (cut + 1) * PAGE, (pages - cut - 1) * PAGE) != 0) wrong++;
  }
  /* Its children have exited and its mappings are gone. */
  if (punch_soon(name, 0) != 0) wrong++;
  close(fd);
  return NULL;
}

/* Other memory near the direct mappings, all the time. */
static void *disturb(void *unused) {
  (void)unused;
  while (!stop) {
    char *memory = mmap(NULL, 3 * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory[PAGE] = 1;
    /* Page by page, and never over a gap: what is in it by then belongs to another thread. */
    for (size_t at = 0; at < 3; at++)
      if (munmap(memory + at * PAGE, PAGE) != 0) wrong++;
    void *block = malloc(300000);
    free(block);
  }
  return NULL;
}

/* A handler that interrupts the library anywhere may unmap and map. */
static char *_Atomic spare;
static int spare_fd;
static _Atomic int handled;
enum { HANDLED_MAX = 300 };

/* One at a time: however long a handler takes, the program gets its turn between two. */
static void alarm_soon(void) {
  setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {.tv_usec = 700}}, NULL);
}

static void on_alarm(int signal) {
  (void)signal;
  char *map = atomic_exchange(&spare, NULL);
  if (map != NULL && unmap(map, 3 * PAGE) != 0) wrong++;
  map = map_any(NULL, 3 * PAGE, READ_WRITE, DIRECT, spare_fd, 0);
  if (map == MAP_FAILED || map[0] != 'A')
    wrong++;
  else
    spare = map;
  if (++handled < HANDLED_MAX) alarm_soon();
}

static void interrupted(void) {
  spare_fd = make_file("spare", "WHW");
  int fd = make_file("interrupted", "WHW");
  struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
  sigaction(SIGALRM, &action, NULL);
  alarm_soon();
  for (int round = 0; round < 4000 && handled < HANDLED_MAX; round++) {
    char *map = map_direct(fd, 0, 3 * PAGE);
    struct mapdirect_lease_info info;
    if (mapdirect_query(map + PAGE, &info) != 0 || info.state != MAPDIRECT_HOLE) wrong++;
    if (unmap(map, 3 * PAGE) != 0) wrong++;
  }
  setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
  sleep_ms(5);
  if (spare != NULL) unmap(spare, 3 * PAGE);
  report(wrong == 0 && handled > 0, "a signal handler maps and unmaps wherever it interrupts the library",
         "%d times wrong, %d handled", wrong, handled);
  report(punch_soon("spare", 0) == 0 && punch_soon("interrupted", 0) == 0, "and leaves no lease", "ETXTBSY");
}

/* Who maps may be a poller that never gives up its processor. */

static int count_of(const cpu_set_t *set) {
  return CPU_COUNT(set);
}

static void *map_pinned(void *argument) {
  int fd = *(int *)argument;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  struct sched_param realtime = {.sched_priority = 1};
  if (sched_setaffinity(0, sizeof one, &one) != 0) return NULL;
  sched_setscheduler(0, SCHED_FIFO, &realtime); /* if it may */
  return map_any(NULL, PAGE, READ_WRITE, DIRECT, fd, 0);
}

static void scheduled(void) {
  cpu_set_t before;
  sched_getaffinity(0, sizeof before, &before);
  int fd = make_file("scheduled", "W");
  pthread_t thread;
  void *map;
  pthread_create(&thread, NULL, map_pinned, &fd);
  pthread_join(thread, &map);
  if (map == NULL || map == MAP_FAILED) give_up("a pinned thread maps");
  sleep_ms(50);
  int seen = 0;
  bool usual = true;
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
    char path[300];
    char name[32] = "";
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
    FILE *file = fopen(path, "r");
    if (file == NULL || fgets(name, sizeof name, file) == NULL || strncmp(name, "mapdirect", 9) != 0) {
      if (file != NULL) fclose(file);
      continue;
    }
    fclose(file);
    pid_t id = (pid_t)atoi(task->d_name);
    cpu_set_t now;
    seen++;
    usual &= sched_getscheduler(id) == SCHED_OTHER && sched_getaffinity(id, sizeof now, &now) == 0 &&
             count_of(&now) >= count_of(&before);
  }
  closedir(tasks);
  report(seen == 2 && usual,
         "the library's threads have neither the priority nor the processor of the thread that maps",
         "%d threads", seen);
  unmap(map, PAGE);
  close(fd);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  scheduled();
  interrupted();
  pthread_t threads[THREADS + 1];
  for (uintptr_t index = 0; index < THREADS; index++)
    pthread_create(&threads[index], NULL, work, (void *)(index + 1));
  pthread_create(&threads[THREADS], NULL, disturb, NULL);
  for (int index = 0; index < THREADS; index++)
    pthread_join(threads[index], NULL);
  stop = true;
  pthread_join(threads[THREADS], NULL);
  report(wrong == 0, "six threads map, store, fork, unmap for a while and nothing goes wrong", "%d times",
         wrong);
  return end();
}
