/*
 * Pages without blocks behind them.
 *
 * A hole or an unwritten extent is anonymous memory, write-protected by userfaultfd with UFFD_FEATURE_SIGBUS:
 * loads read the kernel's zero page, stores raise SIGBUS (BUS_ADRERR, exact address), system calls get
 * EFAULT. No handler thread is involved. UFFD_USER_MODE_ONLY needs no privilege and makes no difference here:
 * with UFFD_FEATURE_SIGBUS faults from kernel mode fail the same way with and without it.
 *
 * UFFD_FEATURE_WP_UNPOPULATED (Linux 6.4) protects pages that do not exist yet. Before, zero pages are put in
 * place first.
 *
 * fork(2) drops the userfaultfd registration in the child: there a store would go into the child's anonymous
 * memory and be lost without a word. Hence MADV_DONTFORK: a child that was not made by fork() gets SIGSEGV;
 * one that was gets the pages made again by our fork handler.
 *
 * Past the end of the file's last block: a shared mapping of an empty memfd. Every access is past its end:
 * SIGBUS.
 *
 * Inert pages, of what was detached or withdrawn, are anonymous memory like any other.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>

#include "syscall.h"

/* Newer than the headers of the build machine. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define FEATURE_WP_UNPOPULATED (1u << 13)
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1u
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

/* The keeper's alone. A child writes it too, in its fork handler, before it has a keeper. */
static struct {
  bool open;
  struct keeper_fd fd;
  bool protects_unpopulated;
} uffd;

/* The empty memfd, kept so that revocation needs no new descriptor. The same rules. */
static struct {
  bool open;
  struct keeper_fd fd;
} beyond;

static int open_with(uint64_t features) {
  long fd = raw_syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY, 0, 0, 0, 0, 0);
  if (fd == -EINVAL) fd = raw_syscall(SYS_userfaultfd, O_CLOEXEC, 0, 0, 0, 0, 0); /* before 5.11 */
  if (fd < 0) return (int)fd;
  struct uffdio_api api = {.api = UFFD_API, .features = features};
  if (ioctl((int)fd, UFFDIO_API, &api) != 0) {
    int error = -errno;
    raw_close((int)fd);
    return error;
  }
  return (int)fd;
}

static int open_once(void) {
  if (uffd.open) return 0;
  const uint64_t needed = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_PAGEFAULT_FLAG_WP;
  uffd.protects_unpopulated = true;
  int fd = open_with(needed | FEATURE_WP_UNPOPULATED);
  if (fd == -EINVAL) {
    uffd.protects_unpopulated = false;
    fd = open_with(needed);
  }
  if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM) return fd;
  if (fd < 0) return -EOPNOTSUPP; /* no userfaultfd, or not for us */
  uffd.fd = keeper_fd_of(fd);
  uffd.open = true;
  return 0;
}

void hole_close(void) {
  if (uffd.open) raw_close(keeper_fd_number(uffd.fd));
  if (beyond.open) raw_close(keeper_fd_number(beyond.fd));
  hole_forget();
}

void hole_forget(void) {
  uffd.open = false;
  beyond.open = false;
}

/* Write-protecting succeeds only on what is registered; that it is protected already changes nothing. */
bool hole_is_at(uintptr_t at) {
  struct uffdio_writeprotect protection = {
      .range = {.start = at, .len = page_bytes()},
      .mode = UFFDIO_WRITEPROTECT_MODE_WP,
  };
  if (!uffd.open) return false;
  return ioctl(keeper_fd_number(uffd.fd), UFFDIO_WRITEPROTECT, &protection) == 0 || errno != ENOENT;
}

/* Put a zero page everywhere, for kernels that protect only what is there. */
static int populate(uintptr_t start, size_t length) {
  int error = raw_madvise(start, length, MADV_POPULATE_READ); /* 5.14 */
  if (error != -EINVAL) return error;
  for (size_t at = 0; at < length; at += page_bytes())
    (void)*(volatile const char *)(start + at);
  return 0;
}

int hole_place(uintptr_t start, size_t length, int prot, int how) {
  int error = open_once();
  if (error != 0) return error;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | how;
  /* Readable in any case: a program that asked for PROT_WRITE alone can read on every architecture that we
   * know. */
  long mapped = raw_mmap(start, length, prot | PROT_READ, flags, -1, 0);
  if (raw_failed(mapped)) return (int)mapped;
  if ((uintptr_t)mapped != start) { /* a kernel that does not know MAP_FIXED_NOREPLACE takes it for a hint */
    raw_munmap((uintptr_t)mapped, length);
    return -EEXIST;
  }
  struct uffdio_register registration = {
      .range = {.start = start, .len = length},
      .mode = UFFDIO_REGISTER_MODE_WP,
  };
  struct uffdio_writeprotect protection = {
      .range = {.start = start, .len = length},
      .mode = UFFDIO_WRITEPROTECT_MODE_WP,
  };
  const int fd = keeper_fd_number(uffd.fd);
  error = raw_madvise(start, length, MADV_DONTFORK);
  if (error == 0 && ioctl(fd, UFFDIO_REGISTER, &registration) != 0) error = -errno;
  if (error == 0 && !uffd.protects_unpopulated) error = populate(start, length);
  if (error == 0 && ioctl(fd, UFFDIO_WRITEPROTECT, &protection) != 0) error = -errno;
  if (error == 0) return 0;
  /* Leave the reservation: it is the caller's to unmap as a whole. */
  if (how == MAP_FIXED)
    raw_mmap(start, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  else
    raw_munmap(start, length);
  return error == -ENOMEM || error == -EAGAIN ? -ENOMEM : -EOPNOTSUPP;
}

int beyond_open(void) {
  if (beyond.open) return 0;
  /* NOEXEC_SEAL keeps a kernel with vm.memfd_noexec quiet; older ones do not know it. */
  long fd = raw_syscall(SYS_memfd_create, (long)BEYOND_NAME, MFD_CLOEXEC | MFD_NOEXEC_SEAL, 0, 0, 0, 0);
  if (fd == -EINVAL) fd = raw_syscall(SYS_memfd_create, (long)BEYOND_NAME, MFD_CLOEXEC, 0, 0, 0, 0);
  if (fd < 0) return (int)fd;
  beyond.fd = keeper_fd_of((int)fd);
  beyond.open = true;
  return 0;
}

int beyond_place(uintptr_t start, size_t length, int prot) {
  int error = beyond_open();
  if (error != 0) return error;
  long mapped = raw_mmap(start, length, prot & ~PROT_EXEC, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
                         keeper_fd_number(beyond.fd), 0);
  return raw_failed(mapped) ? (int)mapped : 0;
}

/* A system that promises no more memory than it has counts what can be stored to: there loads alone work. */
int inert_place(uintptr_t start, size_t length) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  long mapped = raw_mmap(start, length, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (mapped == -ENOMEM) mapped = raw_mmap(start, length, PROT_READ, flags, -1, 0);
  return raw_failed(mapped) ? (int)mapped : 0;
}

/* ---- in a forked child */

/* Take every hole piece out of the table that `keep` does not want. */
static void rebuild(bool (*keep)(const struct piece *piece)) {
  struct mapping *dead = NULL;
  sigset_t mask;
  core_lock(&mask);
  size_t index = 0;
  while (index < table_count()) {
    struct piece piece = *table_at(index);
    if (piece.state == PIECE_HOLE && !keep(&piece))
      table_cut(piece.start, piece.end, &dead);
    else
      index++;
  }
  change_bury(dead);
  core_unlock(&mask);
  change_mourn(dead); /* descriptors of the parent's keeper are not ours: nothing to wait for */
}

/* What the holes had before the fork: in the child there is nothing to look it up from. Guarded by the lock. */
static struct spans fork_rights;

struct rights_request {
  struct request base;
  struct spans rights;
};

static void run_look_up(struct request *base) {
  struct rights_request *look = (struct rights_request *)(void *)base;
  sigset_t mask;
  core_lock(&mask);
  rights_look_up(&look->rights);
  core_unlock(&mask);
  base->error = 0;
}

static bool any_hole(void) {
  for (size_t index = 0; index < table_count(); index++)
    if (table_at(index)->state == PIECE_HOLE) return true;
  return false;
}

void hole_before_fork(sigset_t *mask) {
  if (!any_hole()) return;
  struct rights_request look = {.base.run = run_look_up};
  core_unlock(mask);
  int error = keeper_run(&look.base);
  core_lock(mask);
  spans_free(&fork_rights); /* of another thread that forks */
  if (error == 0) fork_rights = look.rights;
}

void hole_after_fork(void) {
  spans_free(&fork_rights);
}

static bool place_again(const struct piece *piece) {
  size_t length = piece->end - piece->start;
  int prot = piece->mapping->prot;
  return hole_place(piece->start, length, prot, MAP_FIXED_NOREPLACE) == 0 &&
         rights_apply(&fork_rights, piece->start, piece->start, length, prot | PROT_READ) == 0;
}

static bool give_up(const struct piece *piece) {
  (void)piece;
  return false;
}

static void run_rebuild(struct request *request) {
  rebuild(place_again);
  request->error = 0;
}

/* What cannot be made again is left unmapped: SIGSEGV says so, rather than memory that loses stores. */
void hole_rebuild_all(void) {
  sigset_t mask;
  core_lock(&mask);
  bool any = any_hole();
  core_unlock(&mask);
  if (!any) return;
  struct request request = {.run = run_rebuild};
  if (keeper_run(&request) != 0) rebuild(give_up); /* no thread could be started */
  core_lock(&mask);
  spans_free(&fork_rights);
  core_unlock(&mask);
}
