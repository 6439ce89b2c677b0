/* R21, R22: the lease lives exactly as long as somebody's copy of the mapping. */
#include <sys/prctl.h>
#include <sys/resource.h>

#include "tap.h"

static const char *NAME = "lifetime";

static void leased(const char *sentence, off_t offset) {
  int error = punch(NAME, offset);
  report(error == ETXTBSY, sentence, "punch: %s", strerrorname_np(error));
}

static void ended(const char *sentence, off_t offset) {
  int error = punch_soon(NAME, offset);
  report(error == 0, sentence, "punch: %s", strerrorname_np(error));
}

static void ended_at_once(const char *sentence, off_t offset) {
  int error = punch(NAME, offset);
  report(error == 0, sentence, "punch: %s", strerrorname_np(error));
}

static int fresh(const char *layout) {
  return make_file(NAME, layout);
}

static void in_one_process(void) {
  int fd = fresh("WWWWWW");
  char *map = map_direct(fd, 0, 6 * PAGE);
  close(fd);
  leased("R21: closing the descriptor does not end the lease", 0);
  map[0] = 'x';
  check(unmap(map, PAGE) == 0, "R22: the first page is unmapped");
  leased("R22: the lease stays, also for that page", 0);
  check(unmap(map + 2 * PAGE, PAGE) == 0, "R22: a page in the middle is unmapped");
  check(map[PAGE] == 'B' && map[3 * PAGE] == 'D', "R22: its neighbours stay");
  leased("R22: the lease stays", 2 * PAGE);
  check(mprotect(map + 3 * PAGE, PAGE, PROT_READ) == 0, "R22: mprotect splits a piece");
  check(unmap(map + 3 * PAGE, 3 * PAGE) == 0, "R22: what it split is unmapped");
  leased("R22: the last page holds the lease", 5 * PAGE);
  check(unmap(map, 6 * PAGE) == 0, "R22: unmapping a range with gaps takes the last piece");
  ended_at_once("R21: the last munmap ends the lease, at once", 0);
}

static void moved(void) {
  catch_faults();
  /* written, hole, written, past the end */
  int fd = fresh("WWHHWW");
  char *map = map_direct(fd, 0, 8 * PAGE);
  char *place = mmap(NULL, 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  map[0] = 'm';
  errno = 0;
  check(remap(map, 8 * PAGE, 9 * PAGE, MREMAP_MAYMOVE, NULL) == MAP_FAILED && errno == EINVAL,
        "R22: mremap does not grow: EINVAL");
  errno = 0;
  check(remap(map, 8 * PAGE, 0, MREMAP_MAYMOVE, NULL) == MAP_FAILED && errno == EINVAL,
        "mremap to nothing: EINVAL");
  errno = 0;
  check(remap(map, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, map + PAGE) == MAP_FAILED &&
            errno == EINVAL,
        "mremap onto itself: EINVAL");
  errno = 0;
  check(remap(map, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */, NULL) == MAP_FAILED &&
            errno == EINVAL,
        "MREMAP_DONTUNMAP: EINVAL");
  check(remap(map, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE, NULL) == map,
        "mremap to the same size stays in place");
  check(mprotect(map + PAGE, PAGE, PROT_READ) == 0, "R22: mprotect splits the first piece");
  char *there = remap(map, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place + 2 * PAGE);
  check(there == place + 2 * PAGE, "R22: mremap moves a mapping of several pieces");
  check(there == MAP_FAILED || (there[0] == 'm' && there[PAGE] == 'B' && there[4 * PAGE] == 'E'),
        "its written pages came along");
  if (there == MAP_FAILED) return;
  struct mapdirect_lease_info info;
  check(mapdirect_query(there + 5 * PAGE, &info) == 0 && info.offset == 5 * PAGE,
        "the library knows where they are");
  check(mapdirect_query(map, &info) == -1 && errno == EFAULT, "and where they are not");
  expect_sigbus("its hole refuses stores there", store_fault(there + 2 * PAGE + 9, 1), there + 2 * PAGE + 9);
  char value = 1;
  report(load_fault(there + 3 * PAGE, &value).signal == 0 && value == 0, "and reads zeros", "%d", value);
  expect_sigbus("past the end is past the end there", load_fault(there + 7 * PAGE, &value), there + 7 * PAGE);
  report(load_fault(map, &value).signal == SIGSEGV, "nothing is left at the old place", "no SIGSEGV");
  leased("R22: the lease came along", 0);
  char *part = remap(there + PAGE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place + 11 * PAGE);
  check(part == place + 11 * PAGE, "R22: a part that begins and ends within pieces moves");
  check(part == MAP_FAILED ||
            (part[0] == 'B' && part[3 * PAGE] == 'E' && there[0] == 'm' && there[5 * PAGE] == 'F'),
        "both parts hold what they should");
  check(remap(there + 5 * PAGE, 3 * PAGE, PAGE, 0, NULL) == there + 5 * PAGE, "mremap shrinks");
  report(load_fault(there + 6 * PAGE, &value).signal == SIGSEGV, "what it cut off is gone", "no SIGSEGV");
  check(unmap(there, 6 * PAGE) == 0, "one part is unmapped");
  leased("R22: the other part holds the lease", 0);
  check(unmap(part, 4 * PAGE) == 0, "and the other");
  ended_at_once("R22: the last part ends it", 0);
  errno = 0;
  check(remap(part, PAGE, PAGE, MREMAP_MAYMOVE, NULL) == MAP_FAILED && errno == EFAULT,
        "mremap of what is not mapped: EFAULT");
}

static void replaced(void) {
  int fd = fresh("WWWW");
  char *map = map_direct(fd, 0, 4 * PAGE);
  if (by_library) {
    char *again = map_any(map, 4 * PAGE, READ_WRITE, DIRECT | MAP_FIXED, fd, 0);
    check(again == map && again[0] == 'A', "a direct mapping on top of a direct mapping");
    leased("the new one holds the lease", 0);
    check(unmap(map, 4 * PAGE) == 0, "and is unmapped");
    ended_at_once("R22: and then there is none", 0);
    return;
  }
  check(mmap(map + PAGE, 2 * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == map + PAGE,
        "R22: other memory is mapped on top of the middle");
  map[PAGE] = 1;
  leased("the lease stays", 0);
  struct mapdirect_lease_info info;
  check(mapdirect_query(map + PAGE, &info) == -1 && errno == EFAULT, "what is on top is not direct");
  char *elsewhere = mmap(NULL, 4 * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  elsewhere[0] = 'e';
  check(mremap(elsewhere, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, map) == map && map[0] == 'e',
        "R22: mremap of other memory on top of the rest");
  ended_at_once("R22: mapping over the last piece ends the lease", 0);
  munmap(map, 4 * PAGE);

  /* The anchor is a page that the program does not know of; it may use the address. */
  fd = fresh("WW");
  char *arena = mmap(NULL, 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  munmap(arena, 16 * PAGE);
  map = map_any(arena + 6 * PAGE, 2 * PAGE, READ_WRITE, DIRECT, fd, 0);
  if (map != arena + 6 * PAGE) give_up("a hint is taken");
  for (char *at = arena + 4 * PAGE; at < arena + 10 * PAGE; at += PAGE) {
    if (at == map || at == map + PAGE) continue;
    if (mmap(at, PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at)
      give_up("mmap on a neighbour");
  }
  leased("mapping over every neighbouring page does not end the lease", 0);
  check(map[0] == 'A' && map[PAGE] == 'B', "nor harm the mapping");
  check(munmap(map - 2 * PAGE, 6 * PAGE) == 0, "a munmap of everything around and in it");
  ended_at_once("ends it", 0);
}

static void forked(void) {
  catch_faults();
  int fd = fresh("WWHW");
  char *map = map_direct(fd, 0, 5 * PAGE);
  int go[2];
  int told[2];
  if (pipe(go) != 0 || pipe(told) != 0) give_up("pipes");
  pid_t child = fork();
  if (child == 0) {
    char result[8] = "-------";
    char value = 1;
    map[0] = 'c';
    result[0] = load_fault(map + 2 * PAGE, &value).signal == 0 && value == 0 ? 'z' : '!';
    struct fault fault = store_fault(map + 2 * PAGE + 3, 1);
    result[1] = fault.signal == SIGBUS && fault.address == map + 2 * PAGE + 3 ? 'b' : '!';
    fault = load_fault(map + 4 * PAGE, &value);
    result[2] = fault.signal == SIGBUS && fault.address == map + 4 * PAGE ? 'e' : '!';
    pid_t grandchild = fork();
    if (grandchild == 0) {
      fault = store_fault(map + 2 * PAGE, 1);
      _exit(fault.signal == SIGBUS ? 0 : 1);
    }
    result[3] = wait_for(grandchild) == 0 ? 'g' : '!';
    if (write(told[1], result, 4) != 4) _exit(1);
    if (read(go[0], &value, 1) != 1) _exit(1);
    _exit(unmap(map, 5 * PAGE) == 0 ? 0 : 1);
  }
  char result[5] = {0};
  if (read(told[0], result, 4) != 4) give_up("the child tells");
  report(strcmp(result, "zbeg") == 0,
         "R22: in the child and the grandchild holes read zeros and refuse stores", "%s", result);
  check(map[0] == 'c', "the child's stores are the parent's");
  expect_sigbus("R22: the parent's hole is as it was", store_fault(map + 2 * PAGE, 1), map + 2 * PAGE);
  check(unmap(map, 5 * PAGE) == 0, "the parent unmaps");
  sleep_ms(100);
  leased("R22: the child's copy holds the lease", 0);
  if (write(go[1], "x", 1) != 1) give_up("a pipe");
  report(wait_for(child) == 0, "the child unmaps", "it failed");
  ended("R22: the child's munmap ends the lease", 0);

  fd = fresh("WW");
  map = map_direct(fd, 0, 2 * PAGE);
  child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  unmap(map, 2 * PAGE);
  leased("R22: a child that only exists holds the lease", 0);
  kill(child, SIGKILL);
  wait_for(child);
  ended("R21: kill -9 ends it", 0);

  fd = fresh("WW");
  map = map_direct(fd, 0, 2 * PAGE);
  child = fork();
  if (child == 0) {
    int mine = open(path_of(NAME), O_RDWR);
    char *other = map_direct(mine, PAGE, PAGE);
    other[0] = 'y';
    _exit(map[PAGE] == 'y' && unmap(other, PAGE) == 0 ? 0 : 1);
  }
  report(wait_for(child) == 0 && map[PAGE] == 'y', "a child makes mappings of its own", "it failed");
  unmap(map, 2 * PAGE);
  ended("R22: after the child's exit nothing is left", 0);
}

static void executed(const char *self) {
  int fd = fresh("WWHH");
  int told[2];
  if (pipe(told) != 0) give_up("a pipe");
  pid_t child = fork();
  if (child == 0) {
    char *map = map_direct(fd, 0, 4 * PAGE);
    map[0] = 'p';
    if (write(told[1], "m", 1) != 1) _exit(1);
    sleep_ms(300);
    execl(self, self, directory, region_path, by_library ? "library" : "preload", "idle", NULL);
    _exit(1);
  }
  char byte;
  if (read(told[0], &byte, 1) != 1) give_up("the child maps");
  leased("a child has a lease", 0);
  sleep_ms(600);
  report(waitpid(child, NULL, WNOHANG) == 0, "the child runs another program now", "it ended");
  ended("R21: exec ended the lease", 0);
  kill(child, SIGKILL);
  wait_for(child);

  fd = fresh("WWHH");
  child = fork();
  if (child == 0) {
    map_direct(fd, 0, 4 * PAGE);
    if (write(told[1], "m", 1) != 1) _exit(1);
    for (;;)
      pause();
  }
  if (read(told[0], &byte, 1) != 1) give_up("the child maps");
  leased("a child has a lease again", 0);
  kill(child, SIGKILL);
  wait_for(child);
  ended("R21: kill -9 of the only holder ends it", 0);

  fd = fresh("WWHH");
  child = fork();
  if (child == 0) {
    map_direct(fd, 0, 4 * PAGE);
    exit(0);
  }
  report(wait_for(child) == 0, "a holder exits without unmapping", "it failed");
  ended("R21: exit ends the lease", 0);

  /* A child that was not made by fork(): its holes are not there rather than lossy, and the lease counts it.
   */
  catch_faults();
  fd = fresh("WHW");
  char *map = map_direct(fd, 0, 3 * PAGE);
  child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0);
  if (child == 0) {
    fault_seen = store_fault(map + PAGE, 1);
    if (fault_seen.signal != SIGSEGV || map[0] != 'A') _exit(1);
    char *mine = map_any(NULL, 3 * PAGE, READ_WRITE, DIRECT, fd, 0); /* has a keeper of its own */
    if (mine == MAP_FAILED || store_fault(mine + PAGE, 1).signal != SIGBUS) _exit(2);
    if (unmap(mine, 3 * PAGE) != 0 || unmap(map, 3 * PAGE) != 0) _exit(3);
    _exit(0);
  }
  int status = wait_for(child);
  report(status == 0, "in a bare clone a hole is not mapped (SIGSEGV), and the library goes on working",
         "status %#x", status);
  leased("R22: the bare clone's end did not end the lease", 0);
  unmap(map, 3 * PAGE);
  ended("the last munmap did", 0);
}

/* What mprotect(2) has made of a page goes where the page goes, and to the child. */
static void protected(void) {
  catch_faults();
  int fd = fresh("WHHHW");
  char *map = map_direct(fd, 0, 5 * PAGE);
  if (mprotect(map + PAGE, PAGE, PROT_NONE) != 0 || mprotect(map + 2 * PAGE, PAGE, PROT_READ) != 0)
    give_up("mprotect");
  char value = 1;
  pid_t child = fork();
  if (child == 0) {
    if (load_fault(map + PAGE, &value).signal != SIGSEGV) _exit(1);
    if (load_fault(map + 2 * PAGE, &value).signal != 0 || value != 0) _exit(2);
    if (store_fault(map + 2 * PAGE, 1).signal != SIGSEGV) _exit(3);
    pid_t grandchild = fork();
    if (grandchild == 0) _exit(load_fault(map + PAGE, &value).signal == SIGSEGV ? 0 : 1);
    if (wait_for(grandchild) != 0) _exit(4);
    _exit(store_fault(map + 3 * PAGE, 1).signal == SIGBUS ? 0 : 5);
  }
  int status = wait_for(child);
  report(status == 0, "R22: a hole has the same rights in the child", "status %#x", status);
  char *place = mmap(NULL, 5 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char *moved = remap(map, 5 * PAGE, 5 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
  report(moved == place && load_fault(moved + PAGE, &value).signal == SIGSEGV &&
             load_fault(moved + 2 * PAGE, &value).signal == 0 &&
             store_fault(moved + 2 * PAGE, 1).signal == SIGSEGV &&
             store_fault(moved + 3 * PAGE, 1).signal == SIGBUS,
         "R22: and where it is moved to", "at %p", (void *)moved);
  unmap(moved, 5 * PAGE);
  close(fd);
}

/* ---- the first thread has ended, and the others go on */

static char *of_first_thread;
static int file_of_first_thread;

static void *outlive_first_thread(void *argument) {
  pthread_join(*(pthread_t *)argument, NULL);
  sleep_ms(2600); /* the library looks every two seconds what is still mapped */
  if (punch(NAME, 0) != ETXTBSY) _exit(1);
  of_first_thread[0] = 'f';
  char *again = map_any(NULL, PAGE, READ_WRITE, DIRECT, file_of_first_thread, 0);
  if (again == MAP_FAILED || again[0] != 'f') _exit(2);
  if (unmap(again, PAGE) != 0 || unmap(of_first_thread, 2 * PAGE) != 0) _exit(3);
  _exit(punch(NAME, 0) == 0 ? 0 : 4);
}

static void without_first_thread(void) {
  static pthread_t first;
  pid_t child = fork();
  if (child == 0) {
    pthread_t other;
    file_of_first_thread = fresh("WW");
    of_first_thread = map_direct(file_of_first_thread, 0, 2 * PAGE);
    first = pthread_self();
    if (pthread_create(&other, NULL, outlive_first_thread, &first) != 0) _exit(5);
    pthread_exit(NULL); /* /proc/self is a zombie from here on: its maps read empty */
  }
  int status = wait_for(child);
  report(status == 0,
         "R21: a process whose first thread has ended keeps its lease, and can map, and unmap, as before",
         "status %#x", status);
}

int main(int argc, char **argv) {
  begin(argc, argv);
  if (argc > 4) {
    sleep(30);
    return 0;
  }
  in_one_process();
  moved();
  replaced();
  forked();
  executed(argv[0]);
  protected();
  without_first_thread();
  return end();
}
