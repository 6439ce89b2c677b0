/* R24: one copy of the truth, in every process. R7, R8: prepare, MAP_SYNC, durability. */
#include "tap.h"

int main(int argc, char **argv) {
  begin(argc, argv);
  int fd = make_file("coherence", "WWWW");
  int other = open(path_of("coherence"), O_RDWR);
  char page[PAGE];
  bool right = true;
  /* Put it into whatever cache there is, before the lease. */
  char *cached = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, other, 0);
  bool has_cached = cached != MAP_FAILED && cached[0] == 'A';
  if (pread(other, page, PAGE, 0) != (ssize_t)PAGE) give_up("read");
  if (has_cached) munmap(cached, 4 * PAGE);
  char *map = map_direct(fd, 0, 4 * PAGE);
  for (int round = 0; round < 100; round++) {
    size_t at = (size_t)(round * 137) % (4 * PAGE - 8);
    char text[8];
    memset(text, 'a' + round % 26, sizeof text);
    memcpy(map + at, text, sizeof text);
    char seen[8];
    right &= pread(other, seen, sizeof seen, (off_t)at) == 8 && memcmp(seen, text, sizeof text) == 0;
    text[0] = '!';
    right &= pwrite(other, text, sizeof text, (off_t)at) == 8 && memcmp(map + at, text, sizeof text) == 0;
  }
  check(right, "R24: read(2) sees every store and the mapping sees every write(2), a hundred times");
  /* Nothing but stores: no write(2) of ours tells the kernel that there is something new. */
  right = true;
  for (int round = 0; round < 100; round++) {
    char seen = 0;
    map[PAGE + 1] = (char)round;
    right &= pread(other, &seen, 1, PAGE + 1) == 1 && seen == (char)round;
  }
  check(right, "R24: read(2) sees a hundred stores to one place, each at once");
  int told[2];
  int go[2];
  if (pipe(told) != 0 || pipe(go) != 0) give_up("pipes");
  pid_t child = fork();
  if (child == 0) {
    int mine = open(path_of("coherence"), O_RDWR);
    char byte;
    bool good = true;
    for (int round = 0; round < 50; round++) {
      if (read(go[0], &byte, 1) != 1) _exit(2);
      char seen = 0;
      good &= pread(mine, &seen, 1, 3 * PAGE) == 1 && seen == (char)round;
      good &= pwrite(mine, &byte, 1, 2 * PAGE) == 1;
      if (write(told[1], "x", 1) != 1) _exit(2);
    }
    _exit(good ? 0 : 1);
  }
  right = true;
  for (int round = 0; round < 50; round++) {
    char byte = (char)(round + 60);
    map[3 * PAGE] = (char)round;
    if (write(go[1], &byte, 1) != 1 || read(told[0], &byte, 1) != 1) give_up("the other process answers");
    right &= map[2 * PAGE] == (char)(round + 60);
  }
  report(wait_for(child) == 0 && right, "R24: in another process, too", "a stale byte");
  char *second = map_direct(other, PAGE, 2 * PAGE);
  second[0] = '2';
  check(map[PAGE] == '2', "R24: two direct mappings are one");
  check(persist(map + 10, 3 * PAGE) == 0, "a range of any alignment is made durable");
  unmap(second, 2 * PAGE);
  check(pwrite(other, "tail", 4, 4 * PAGE) == 4, "the file grows under the lease");
  unmap(map, 4 * PAGE);
  check(pread(other, page, 1, PAGE) == 1 && page[0] == '2',
        "what was stored is in the file after the mapping");

  /* R7 */
  int holes = make_file("prepared", "WHUWH");
  struct mapdirect_extent extents[16];
  struct mapdirect_map_info info;
  ssize_t count = mapdirect_extents(holes, 0, 5 * PAGE, extents, 16, &info);
  uint32_t states[5] = {9, 9, 9, 9, 9};
  for (ssize_t index = 0; index < count; index++) {
    for (uint64_t at = extents[index].offset;
         at < extents[index].offset + extents[index].length && at < 5 * PAGE; at += PAGE) {
      states[at / PAGE] = extents[index].state;
    }
  }
  for (int index = 0; index < 5; index++)
    if (states[index] == 9) states[index] = MAPDIRECT_HOLE;
  report(states[0] == MAPDIRECT_WRITTEN && states[1] == MAPDIRECT_HOLE && states[2] == MAPDIRECT_UNWRITTEN &&
             states[3] == MAPDIRECT_WRITTEN && states[4] == MAPDIRECT_HOLE,
         "the block map of a file can be read", "%u %u %u %u %u (%zd)", states[0], states[1], states[2],
         states[3], states[4], count);
  check(count >= 4 && info.file_bytes == 5 * PAGE && info.map_bytes >= 4 * PAGE,
        "with the file's size and the end of its last block");
  count = mapdirect_extents(holes, 0, 5 * PAGE, extents, 2, &info);
  check(count == 2 && info.next_offset == 2 * PAGE, "in parts, with the place to continue");
  struct stat before;
  struct stat after;
  fstat(holes, &before);
  map = map_direct(holes, 0, 5 * PAGE);
  fstat(holes, &after);
  check(before.st_blocks == after.st_blocks, "R7: mapping allocates nothing");
  errno = 0;
  check(mapdirect_prepare(holes, 0, 5 * PAGE) == -1 && errno == ETXTBSY,
        "R7: prepare of a leased range that is not ready: ETXTBSY");
  unmap(map, 5 * PAGE);
  check(mapdirect_prepare(holes, 0, 5 * PAGE) == 0, "R7: prepare makes a range ready");
  fstat(holes, &after);
  check(after.st_size == before.st_size, "R7: and leaves the size alone");
  map = map_direct(holes, 0, 5 * PAGE);
  catch_faults();
  check(map[0] == 'A' && map[PAGE] == 0 && map[2 * PAGE] == 0 && map[3 * PAGE] == 'D' && map[4 * PAGE] == 0,
        "R7: what was written stays, the rest is zeros");
  bool stores = true;
  for (size_t at = 0; at < 5; at++)
    stores &= store_fault(map + at * PAGE + 1, 'p').signal == 0;
  check(stores, "R7: every page takes stores");
  check(pread(holes, page, 2, 4 * PAGE) == 2 && page[1] == 'p', "R9: which are in the file");
  unmap(map, 5 * PAGE);
  check(mapdirect_prepare(holes, 0, 0) == 0, "R7: prepare up to the end of the file");
  errno = 0;
  int memory = memfd_create("elsewhere", 0);
  check(mapdirect_prepare(memory, 0, PAGE) == -1 && errno == EOPNOTSUPP,
        "prepare of another file: EOPNOTSUPP");
  check(mapdirect_prepare(-1, 0, PAGE) == -1 && errno == EBADF, "prepare of a closed descriptor: EBADF");
  check(mapdirect_extents(memory, 0, PAGE, extents, 16, NULL) == -1 && errno == EOPNOTSUPP,
        "the block map of another file: EOPNOTSUPP");
  if (by_library) {
    int holey = make_file("holey", "HHH");
    map = mapdirect_map(NULL, 3 * PAGE, READ_WRITE, DIRECT, holey, 0, MAPDIRECT_SEAL | MAPDIRECT_PREPARE);
    check(map != MAP_FAILED && store_fault(map + 2 * PAGE, 'q').signal == 0,
          "R7: one call may prepare and map");
    if (map != MAP_FAILED) unmap(map, 3 * PAGE);
    errno = 0;
    check(mapdirect_persist(page, 10) == -1 && errno == ENOMEM, "persist of other memory: ENOMEM");
  }

  /* What an ordinary mapping has stored in holes is written back before the blocks are pinned. */
  for (int kind = 0; kind < 2; kind++) {
    setenv("MAPDIRECT_LEASE", kind == 0 ? "seal" : "breakable", 1);
    int dirty = make_file("dirty", "WHHW");
    char *plain = mmap(NULL, 4 * PAGE, READ_WRITE, MAP_SHARED, dirty, 0);
    if (plain == MAP_FAILED) give_up("an ordinary mapping");
    plain[PAGE + 1] = 'd';
    plain[3 * PAGE + 1] = 'e';
    map = map_direct(dirty, 0, 4 * PAGE);
    check(map[PAGE + 1] == 'd' && map[3 * PAGE + 1] == 'e' && map[2 * PAGE] == 0,
          kind == 0 ? "R8: a seal waits for what is dirty, in holes, too"
                    : "R8: and so does a breakable lease");
    check(pread(dirty, page, 2, PAGE) == 2 && page[1] == 'd', "R24: and nothing of it is lost");
    check(msync(plain, 4 * PAGE, MS_SYNC) == 0, "nor is anything left to write back");
    unmap(map, 4 * PAGE);
    munmap(plain, 4 * PAGE);
    close(dirty);
  }
  setenv("MAPDIRECT_LEASE", "seal", 1);

  /* R8: MAP_SYNC exactly where a CPU flush is enough. */
  map = map_direct(holes, 0, PAGE);
  struct mapdirect_lease_info lease;
  check(mapdirect_query(map, &lease) == 0 && lease.inode != 0, "a lease tells its granularity");
  errno = 0;
  char *synced = map_any(NULL, PAGE, READ_WRITE, DIRECT | MAP_SYNC, holes, 0);
  report(lease.cacheline ? synced != MAP_FAILED : synced == MAP_FAILED && errno == EOPNOTSUPP,
         lease.cacheline ? "R8: MAP_SYNC is honoured on a cache-line region"
                         : "R8: MAP_SYNC on a page-cached region: EOPNOTSUPP",
         "%s", strerrorname_np(errno));
  if (synced != MAP_FAILED) unmap(synced, PAGE);
  unmap(map, PAGE);
  return end();
}
