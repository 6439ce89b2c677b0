/* R1..R4, R6: what is asked for must be right, and each mistake has its errno. */
#include "tap.h"

int main(int argc, char **argv) {
  begin(argc, argv);
  int fd = make_file("arguments", "WWWW");
  int direct = DIRECT;
  int rw = READ_WRITE;

  char *map = map_any(NULL, PAGE, rw, direct, fd, 0);
  check(map != MAP_FAILED, "R1: MAP_SHARED_VALIDATE | MAP_DIRECT makes a mapping");
  check(map != MAP_FAILED && unmap(map, PAGE) == 0, "R1: and it is unmapped");
  report(MAP_DIRECT == 0x200000 && MAP_DIRECT != MAP_SYNC, "R1: the flag is 0x200000, not MAP_SYNC", "%#x",
         MAP_DIRECT);
  errno = 0;
  long raw = syscall(SYS_mmap, NULL, PAGE, rw, direct, fd, 0);
  report(raw == -1 && errno == EOPNOTSUPP, "R1: the kernel by itself answers EOPNOTSUPP", "%ld errno %s", raw,
         strerrorname_np(errno));

  const int unknown[] = {MAP_GROWSDOWN, MAP_HUGETLB, MAP_STACK, 0x1000000, 0x40, 0x800, 0x1000};
  for (size_t index = 0; index < sizeof unknown / sizeof unknown[0]; index++) {
    char sentence[100];
    snprintf(sentence, sizeof sentence, "R2: flag %#x is not ignored: EOPNOTSUPP", unknown[index]);
    refuses(sentence, EOPNOTSUPP, NULL, PAGE, rw, direct | unknown[index], fd, 0);
  }
  int elsewhere = open("/tmp", O_TMPFILE | O_RDWR, 0600);
  if (elsewhere < 0 || ftruncate(elsewhere, PAGE) != 0) give_up("a file elsewhere");
  refuses("R2: a file on another file system: EOPNOTSUPP", EOPNOTSUPP, NULL, PAGE, rw, direct, elsewhere, 0);
  int memory = memfd_create("elsewhere", 0);
  refuses("R2: a memfd: EOPNOTSUPP", EOPNOTSUPP, NULL, PAGE, rw, direct, memory, 0);
  int folder = open(directory, O_RDONLY | O_DIRECTORY);
  refuses("R2: a directory of the mount: EOPNOTSUPP", EOPNOTSUPP, NULL, PAGE, rw, direct, folder, 0);
  int pipes[2];
  if (pipe(pipes) != 0) give_up("a pipe");
  refuses("R2: a pipe: EOPNOTSUPP", EOPNOTSUPP, NULL, PAGE, rw, direct, pipes[1], 0);

  refuses("R3: MAP_PRIVATE: EINVAL", EINVAL, NULL, PAGE, rw, MAP_PRIVATE | MAP_DIRECT, fd, 0);
  refuses("R3: MAP_PRIVATE on a file elsewhere: EINVAL", EINVAL, NULL, PAGE, rw, MAP_PRIVATE | MAP_DIRECT,
          elsewhere, 0);
  refuses("R3: MAP_PRIVATE without a file: EINVAL", EINVAL, NULL, PAGE, rw,
          MAP_PRIVATE | MAP_DIRECT | MAP_ANONYMOUS, -1, 0);
  refuses("R3: MAP_ANONYMOUS: EINVAL", EINVAL, NULL, PAGE, rw, direct | MAP_ANONYMOUS, -1, 0);
  refuses("R3: plain MAP_SHARED: EINVAL", EINVAL, NULL, PAGE, rw, MAP_SHARED | MAP_DIRECT, fd, 0);
  refuses("R3: plain MAP_SHARED on a file elsewhere: EINVAL", EINVAL, NULL, PAGE, rw, MAP_SHARED | MAP_DIRECT,
          elsewhere, 0);
  refuses("R3: no type at all: EINVAL", EINVAL, NULL, PAGE, rw, MAP_DIRECT, fd, 0);

  refuses("R4: PROT_READ alone: EACCES", EACCES, NULL, PAGE, PROT_READ, direct, fd, 0);
  refuses("R4: PROT_NONE: EACCES", EACCES, NULL, PAGE, PROT_NONE, direct, fd, 0);
  refuses("R4: PROT_READ | PROT_EXEC: EACCES", EACCES, NULL, PAGE, PROT_READ | PROT_EXEC, direct, fd, 0);
  int readable = open(path_of("arguments"), O_RDONLY);
  int writable = open(path_of("arguments"), O_WRONLY);
  int path_only = open(path_of("arguments"), O_PATH);
  refuses("R4: a descriptor open for reading only: EACCES", EACCES, NULL, PAGE, rw, direct, readable, 0);
  refuses("R4: a descriptor open for writing only: EACCES", EACCES, NULL, PAGE, rw, direct, writable, 0);
  refuses("an O_PATH descriptor: EBADF", EBADF, NULL, PAGE, rw, direct, path_only, 0);
  refuses("a closed descriptor: EBADF", EBADF, NULL, PAGE, rw, direct, 1000, 0);
  refuses("descriptor -1: EBADF", EBADF, NULL, PAGE, rw, direct, -1, 0);

  refuses("R6: zero length: EINVAL", EINVAL, NULL, 0, rw, direct, fd, 0);
  refuses("R6: an offset within a page: EINVAL", EINVAL, NULL, PAGE, rw, direct, fd, 512);
  refuses("R6: a negative offset: EINVAL", EINVAL, NULL, PAGE, rw, direct, fd, -(off_t)PAGE);
  refuses("R6: MAP_FIXED at an address within a page: EINVAL", EINVAL, (void *)0x10000100, PAGE, rw,
          direct | MAP_FIXED, fd, 0);
  refuses("unknown bits in prot: EINVAL", EINVAL, NULL, PAGE, rw | 0x100, direct, fd, 0);
  refuses("offset + length past the largest offset: EOVERFLOW", EOVERFLOW, NULL, 2 * PAGE, rw, direct, fd,
          INT64_MAX - (off_t)PAGE + 1);
  refuses("a length that no address space has: ENOMEM", ENOMEM, NULL, SIZE_MAX / 2, rw, direct, fd, 0);

  if (by_library) {
    errno = 0;
    check(mapdirect_map(NULL, PAGE, rw, direct, fd, 0, 3) == MAP_FAILED && errno == EINVAL,
          "an unknown kind of lease: EINVAL");
    check(mapdirect_map(NULL, PAGE, rw, direct, fd, 0, 0x400) == MAP_FAILED && errno == EINVAL,
          "an unknown option: EINVAL");
    map = mapdirect_map(NULL, PAGE, rw, MAP_SHARED_VALIDATE, fd, 0, MAPDIRECT_SEAL);
    check(map != MAP_FAILED && unmap(map, PAGE) == 0, "the library's own call implies MAP_DIRECT");
    report(strcmp(mapdirect_version(), "0.1.0") == 0, "the library tells its version", "%s",
           mapdirect_version());
  } else {
    setenv("MAPDIRECT_LEASE", "sael", 1);
    refuses("a misspelt MAPDIRECT_LEASE: EINVAL", EINVAL, NULL, PAGE, rw, direct, fd, 0);
    setenv("MAPDIRECT_LEASE", "seal", 1);
    map = mmap(NULL, PAGE, rw, MAP_SHARED, elsewhere, 0);
    check(map != MAP_FAILED && munmap(map, PAGE) == 0, "mappings of other files go on as ever");
    refuses("a plain mmap of other memory keeps its errors: EBADF", EBADF, NULL, PAGE, rw, MAP_SHARED, -1, 0);
  }

  const int companions[] = {MAP_POPULATE, MAP_NORESERVE, MAP_LOCKED, MAP_NONBLOCK | MAP_POPULATE};
  for (size_t index = 0; index < sizeof companions / sizeof companions[0]; index++) {
    map = map_any(NULL, 4 * PAGE, rw, direct | companions[index], fd, 0);
    char sentence[100];
    snprintf(sentence, sizeof sentence, "flag %#x may be combined", companions[index]);
    check(map != MAP_FAILED && map[PAGE] == 'B' && unmap(map, 4 * PAGE) == 0, sentence);
  }
  map = map_any(NULL, PAGE, PROT_WRITE, direct, fd, 0);
  check(map != MAP_FAILED && unmap(map, PAGE) == 0, "PROT_WRITE alone is enough");

  char *place = mmap(NULL, 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  map = map_any(place + 4 * PAGE, 2 * PAGE, rw, direct | MAP_FIXED, fd, 0);
  check(map == place + 4 * PAGE && map[0] == 'A' && map[PAGE] == 'B', "MAP_FIXED maps at the address");
  refuses("MAP_FIXED_NOREPLACE where something is: EEXIST", EEXIST, place, PAGE, rw,
          direct | MAP_FIXED_NOREPLACE, fd, 0);
  check(map[0] == 'A', "and what was there stays");
  unmap(place, 16 * PAGE);
  map = map_any(place, 2 * PAGE, rw, direct | MAP_FIXED_NOREPLACE, fd, 0);
  check(map == place && map[PAGE] == 'B', "MAP_FIXED_NOREPLACE maps where nothing is");
  char *hinted = map_any(place + 8 * PAGE, PAGE, rw, direct, fd, 0);
  check(hinted == place + 8 * PAGE, "a free hint is taken");
  char *other = map_any(place + 8 * PAGE, PAGE, rw, direct, fd, 0);
  check(other != MAP_FAILED && other != hinted && other[0] == 'A' && hinted[0] == 'A', "a taken hint is not");
  unmap(map, 2 * PAGE);
  unmap(hinted, PAGE);
  unmap(other, PAGE);
  report(punch("arguments", 0) == 0, "no refused or ended mapping left a lease", "ETXTBSY");
  return end();
}
