/* R9..R11: what the pages are, and what they do. */
#include <sys/uio.h>

#include "tap.h"

int main(int argc, char **argv) {
  begin(argc, argv);
  catch_faults();
  /* 0..3 written, 4..5 hole, 6..7 unwritten, 8 written; the mapping reaches three pages past the end. */
  int fd = make_file("faults", "WWWWHHUUW");
  char *map = map_direct(fd, 0, 12 * PAGE);
  int region = open(region_path, O_RDWR | O_CLOEXEC);
  if (region < 0) give_up("the region is opened");

  struct mapdirect_lease_info info;
  check(mapdirect_query(map + PAGE + 100, &info) == 0 && info.state == MAPDIRECT_WRITTEN &&
            info.offset == PAGE + 100 && info.lease_id != 0 && info.kind == MAPDIRECT_SEAL,
        "R25: an address tells its lease, file offset and physical offset");
  char seen[16] = {0};
  strcpy(map + PAGE + 100, "straight through");
  check(region_read(region, seen, sizeof seen, info.physical) &&
            memcmp(seen, "straight through", sizeof seen) == 0,
        "R9: stored bytes are at the physical offset of the region at once, without msync");
  check(region_write(region, "from the region!", 16, info.physical) &&
            memcmp(map + PAGE + 100, "from the region!", 16) == 0,
        "R9: and bytes written there are in the mapping");
  bool same = true;
  for (size_t page = 0; page < 9; page++) {
    if (page >= 4 && page < 8) continue;
    struct mapdirect_lease_info here;
    char byte = 0;
    map[page * PAGE + 7] = (char)('a' + page);
    same &= mapdirect_query(map + page * PAGE + 7, &here) == 0 &&
            region_read(region, &byte, 1, here.physical) && byte == (char)('a' + page);
  }
  check(same, "R9: for every written page");

  char value = 1;
  struct fault fault = load_fault(map + 4 * PAGE + 5, &value);
  report(fault.signal == 0 && value == 0, "R10: a load from a hole reads zero", "signal %d value %d",
         fault.signal, value);
  value = 1;
  fault = load_fault(map + 7 * PAGE + 4095, &value);
  report(fault.signal == 0 && value == 0, "R10: a load from an unwritten extent reads zero",
         "signal %d value %d", fault.signal, value);
  expect_sigbus("R10: a store to a hole that was read: SIGBUS, BUS_ADRERR, exact address",
                store_fault(map + 4 * PAGE + 5, 1), map + 4 * PAGE + 5);
  expect_sigbus("R10: a store to a hole that was not: the same", store_fault(map + 5 * PAGE + 123, 1),
                map + 5 * PAGE + 123);
  expect_sigbus("R10: a store to an unwritten extent that was not read", store_fault(map + 6 * PAGE + 1, 1),
                map + 6 * PAGE + 1);
  expect_sigbus("R10: a store to an unwritten extent that was", store_fault(map + 7 * PAGE + 4095, 1),
                map + 7 * PAGE + 4095);
  expect_sigbus("R10: and again", store_fault(map + 7 * PAGE + 4095, 1), map + 7 * PAGE + 4095);
  value = 1;
  load_fault(map + 7 * PAGE + 4095, &value);
  report(value == 0, "R10: a refused store changed nothing", "%d", value);
  expect_sigbus("R10: a load past the last block: SIGBUS, exact address",
                load_fault(map + 9 * PAGE + 17, &value), map + 9 * PAGE + 17);
  expect_sigbus("R10: a store past the last block", store_fault(map + 11 * PAGE, 1), map + 11 * PAGE);
  fault = store_fault(map + 8 * PAGE, 'z');
  report(fault.signal == 0, "R10: the last written page before it takes stores", "signal %d", fault.signal);
  fault = load_fault(map + 12 * PAGE, &value);
  report(fault.signal == SIGSEGV, "R10: SIGSEGV is for what is not mapped", "signal %d", fault.signal);

  int pipes[2];
  if (pipe(pipes) != 0) give_up("a pipe");
  errno = 0;
  check(write(pipes[1], map + 9 * PAGE, 1) == -1 && errno == EFAULT,
        "R11: write(2) from past the last block: EFAULT");
  check(write(pipes[1], map + 4 * PAGE, 1) == 1, "R11: write(2) from a hole writes zeros");
  check(write(pipes[1], "xyzzy", 5) == 5, "a pipe takes bytes");
  errno = 0;
  check(read(pipes[0], map + 4 * PAGE, 1) == -1 && errno == EFAULT, "R11: read(2) into a hole: EFAULT");
  errno = 0;
  check(read(pipes[0], map + 6 * PAGE, 1) == -1 && errno == EFAULT,
        "R11: read(2) into an unwritten extent: EFAULT");
  errno = 0;
  check(read(pipes[0], map + 10 * PAGE, 1) == -1 && errno == EFAULT,
        "R11: read(2) past the last block: EFAULT");
  errno = 0;
  check(stat("/", (struct stat *)(void *)(map + 5 * PAGE)) == -1 && errno == EFAULT,
        "R11: stat(2) into a hole: EFAULT");
  check(read(pipes[0], map, 5) > 0, "read(2) into a written page works");
  struct iovec local = {.iov_base = &value, .iov_len = 1};
  struct iovec remote = {.iov_base = map + 4 * PAGE, .iov_len = 1};
  check(process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == -1,
        "R11: process_vm_writev into a hole fails");

  if (!by_library) {
    check(madvise(map + 4 * PAGE, 2 * PAGE, MADV_DONTNEED) == 0, "madvise(MADV_DONTNEED) on a hole succeeds");
    expect_sigbus("and does not take its protection away", store_fault(map + 5 * PAGE, 1), map + 5 * PAGE);
    errno = 0;
    check(madvise(map, PAGE, MADV_REMOVE) == -1 && errno == ETXTBSY,
          "madvise(MADV_REMOVE) would punch the file under its own lease: ETXTBSY");
    check(map[1] == 'x', "and changed nothing");
    check(madvise(map, 12 * PAGE, MADV_WILLNEED) == 0, "madvise over pieces of every kind goes through");
    check(msync(map, 12 * PAGE, MS_SYNC) == 0, "msync over pieces of every kind succeeds");
    errno = 0;
    check(msync(map + 1, PAGE, MS_SYNC) == -1 && errno == EINVAL, "msync of an unaligned address: EINVAL");
    errno = 0;
    check(msync(map, PAGE, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL,
          "msync with MS_SYNC and MS_ASYNC: EINVAL");
  }
  check(mprotect(map + 3 * PAGE, 3 * PAGE, PROT_READ) == 0, "mprotect across pieces");
  fault = store_fault(map + 4 * PAGE, 1);
  report(fault.signal == SIGSEGV, "a store to a read-only hole: SIGSEGV, as anywhere", "signal %d",
         fault.signal);
  check(mprotect(map + 3 * PAGE, 3 * PAGE, READ_WRITE) == 0, "and back");
  expect_sigbus("a hole is still a hole after mprotect", store_fault(map + 4 * PAGE, 1), map + 4 * PAGE);
  map[3 * PAGE] = 'k';
  unmap(map, 12 * PAGE);

  check(punch("faults", 0) == 0, "the lease ended");
  /* Enough holes and pieces to need more than one answer of the daemon. */
  static char layout[1201];
  for (int index = 0; index < 1200; index++)
    layout[index] = index % 2 == 0 ? 'W' : 'H';
  int many = make_file("many", layout);
  map = map_direct(many, 0, 1200 * PAGE);
  bool right = true;
  for (size_t page = 0; page < 1200; page++)
    right &= map[page * PAGE] == (page % 2 == 0 ? 'A' + (char)(page % 26) : 0);
  check(right, "600 written pages among 600 holes are all in their place");
  bool faulted = true;
  for (size_t page = 1; page < 1200; page += 2)
    faulted &= store_fault(map + page * PAGE, 1).signal == SIGBUS;
  check(faulted, "and every hole refuses stores");
  unmap(map, 1200 * PAGE);
  return end();
}
