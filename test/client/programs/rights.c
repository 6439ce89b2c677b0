/* R5, R6: who may have what. Runs as root, and as another user in children. */
#include <dirent.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>

#include "tap.h"

enum { STRANGER = 65534, OWNER = 65533 };

/* Run `act` as uid in a child; its exit status. */
static int as_user(uid_t uid, int (*act)(void)) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    if (setgroups(0, NULL) != 0 || setgid(uid) != 0 || setuid(uid) != 0) _exit(99);
    _exit(act());
  }
  int status = wait_for(child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* 0, or the errno of a mapping of the given kind. */
static int try_kind(const char *kind) {
  setenv("MAPDIRECT_LEASE", kind, 1);
  int fd = open(path_of("rights"), O_RDWR);
  if (fd < 0) return 100;
  char *map = map_any(NULL, PAGE, READ_WRITE, DIRECT, fd, 0);
  if (map == MAP_FAILED) return errno;
  struct mapdirect_lease_info info;
  int result = mapdirect_query(map, &info) == 0 && map[0] == 'A' ? 0 : 101;
  if (strcmp(kind, "breakable") == 0 && info.kind != MAPDIRECT_BREAKABLE) result = 102;
  if (strcmp(kind, "seal") == 0 && info.kind != MAPDIRECT_SEAL) result = 103;
  return unmap(map, PAGE) == 0 ? result : 104;
}

static int seal(void) {
  return try_kind("seal");
}
static int breakable(void) {
  return try_kind("breakable");
}

static void expect(const char *sentence, int seen, int wanted) {
  report(seen == wanted, sentence, "%d (%s)", seen, seen < 100 ? strerrorname_np(seen) : "own failure");
}

/* A program that gives up its rights must not keep threads that have them. */
static int drops_rights(void) {
  int fd = open(path_of("rights"), O_RDWR);
  char *map = map_direct(fd, 0, PAGE);
  if (setgroups(0, NULL) != 0 || setgid(STRANGER) != 0 || setuid(STRANGER) != 0) return 1;
  DIR *tasks = opendir("/proc/self/task");
  int seen = 0;
  for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
    if (task->d_name[0] == '.') continue;
    char path[300];
    char line[200];
    snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
    FILE *status = fopen(path, "r");
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
      unsigned uid[4];
      if (sscanf(line, "Uid: %u %u %u %u", &uid[0], &uid[1], &uid[2], &uid[3]) != 4) continue;
      for (int index = 0; index < 4; index++)
        if (uid[index] != STRANGER) return 2;
      seen++;
    }
    if (status != NULL) fclose(status);
  }
  return seen == 3 && map[0] == 'A' && unmap(map, PAGE) == 0 ? 0 : 3;
}

/* The thread's own file-system identity counts, not that of the process. */
static void *map_as_owner(void *unused) {
  (void)unused;
  syscall(SYS_setfsgid, STRANGER);
  syscall(SYS_setfsuid, STRANGER);
  return (void *)(intptr_t)seal();
}

/* Capabilities are the thread's own, too. */
static void *map_without_capabilities(void *unused) {
  (void)unused;
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct none[2] = {{0}};
  int fd = open(path_of("rights"), O_RDWR);
  if (fd < 0 || syscall(SYS_capset, &header, none) != 0) return (void *)(intptr_t)100;
  char *map = map_any(NULL, PAGE, READ_WRITE, DIRECT, fd, 0);
  if (map == MAP_FAILED) return (void *)(intptr_t)errno;
  unmap(map, PAGE);
  return NULL;
}

/* A new PID namespace, with the /proc of the old one. */
static int in_new_namespace(void) {
  if (unshare(CLONE_NEWPID) != 0) return 105;
  pid_t child = fork();
  if (child == 0) _exit(seal());
  int status = wait_for(child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 106;
}

int main(int argc, char **argv) {
  begin(argc, argv);
  if (geteuid() != 0) {
    skip("R5: rights", "needs root");
    checks++;
    return end();
  }
  int fd = make_file("rights", "WW");
  if (fchmod(fd, 0666) != 0 || fchown(fd, OWNER, OWNER) != 0) give_up("a file gets an owner");
  /* Whoever maps must be trusted by the region's own permissions. */
  struct stat region;
  if (stat(region_path, &region) != 0 || chmod(region_path, 0666) != 0)
    give_up("the region is opened to all");
  if (as_user(STRANGER, breakable) == 100) {
    skip("R5: rights of other users", "the mount is not for them (allow_other)");
  } else {
    expect("R5: root gets a seal on anybody's file", seal(), 0);
    expect("R5: the owner gets a seal", as_user(OWNER, seal), 0);
    expect("R5: somebody else asking for a seal: EACCES", as_user(STRANGER, seal), EACCES);
    expect("R5: somebody else gets a breakable lease", as_user(STRANGER, breakable), 0);
    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, map_as_owner, NULL);
    pthread_join(thread, &result);
    expect("R5: a thread with another file-system identity (setfsuid) is judged by it", (int)(intptr_t)result,
           EACCES);
    expect("and the next thread by its own", seal(), 0);
    expect("setuid(2) reaches the library's threads", as_user(0, drops_rights), 0);
    chmod(region_path, 0600);
    if (chown(region_path, OWNER, OWNER) != 0) give_up("the region gets an owner");
    char *held = map_direct(fd, PAGE, PAGE); /* the library's threads are older than what follows */
    pthread_create(&thread, NULL, map_without_capabilities, NULL);
    pthread_join(thread, &result);
    expect("a thread that has dropped the capability to open the region: EACCES", (int)(intptr_t)result,
           EACCES);
    unmap(held, PAGE);
    if (chown(region_path, region.st_uid, region.st_gid) != 0) give_up("the region gets its owner back");
    expect("a process in a PID namespace without a /proc of its own maps as others do",
           as_user(0, in_new_namespace), 0);
    expect("a user who may not open the region: EACCES", as_user(OWNER, seal), EACCES);
  }
  chmod(region_path, region.st_mode & 07777);

  /* R6: shared extents. */
  int source = make_file("shared-source", "WWWW");
  int target = make_file("shared-target", "HHHH");
  off_t in = 0;
  off_t out = 0;
  struct mapdirect_extent extents[8];
  bool shared = copy_file_range(source, &in, target, &out, 4 * PAGE, 0) == (ssize_t)(4 * PAGE) &&
                mapdirect_extents(source, 0, 4 * PAGE, extents, 8, NULL) >= 1 &&
                extents[0].state == MAPDIRECT_SHARED;
  if (!shared) {
    skip("R6: a range with shared extents: EPERM", "copy_file_range does not share here");
  } else {
    refuses("R6: a range with shared extents: EPERM", EPERM, NULL, 4 * PAGE, READ_WRITE, DIRECT, source, 0);
    check(mapdirect_prepare(source, 0, 4 * PAGE) == 0, "R6: prepare unshares it");
    char *map = map_direct(source, 0, 4 * PAGE);
    map[0] = 'S';
    char byte = 0;
    check(pread(target, &byte, 1, 0) == 1 && byte == 'A', "R6: and the other file keeps its bytes");
    unmap(map, 4 * PAGE);
  }
  return end();
}
