/*
 * mapdirect.h - map a file so that stores go straight into the file's physical blocks.
 *
 * SYNOPSIS
 *     #include <mapdirect.h>
 *     cc program.c -lmapdirect
 *
 * DESCRIPTION
 *     A direct mapping behaves like MAP_SHARED and in addition:
 *       - the block map (file offset -> physical block) of the range is pinned while the mapping lives: whoever
 *         tries to change it is refused with ETXTBSY (a seal) or waits a bounded time (a breakable lease);
 *       - stores bypass every kernel indirection: they land in the file's physical blocks, modulo CPU caches,
 *         and mapdirect_persist() makes them durable;
 *       - read(2) and write(2) see what the mapping stores and the mapping sees what they wrote, at once.
 *
 *     There are two doors to it with the same behaviour: this library, and mmap(2) with
 *     MAP_SHARED_VALIDATE | MAP_DIRECT in a program that runs under libmapdirect_preload.so. A program that
 *     uses this library without the preload library should unmap with mapdirect_unmap() and must move with
 *     mapdirect_remap(). Of a munmap(2) the library learns when it looks next, every two seconds or later, and
 *     until then the lease stays; what mremap(2) moved is lost to it, and the lease with it.
 *
 *     The mapping, not a file descriptor, holds the lease: it ends with the last munmap, exit, exec or death of
 *     every process that has a copy (a forked child has one), or when it is broken: see mapdirect_on_break().
 *     No descriptor of the library ever appears in the program's descriptor table: two threads of the library,
 *     with every signal blocked and a descriptor table of their own, hold what has to live. They exist while
 *     the process has direct mappings and for a second after.
 *
 * ERRORS
 *     Functions return -1, or MAP_FAILED, and set errno. Functions that succeed leave errno alone.
 *
 * UNITS
 *     Every offset, length and size is in bytes. "Page" is sysconf(_SC_PAGESIZE).
 *
 * THREADS AND SIGNALS
 *     Every function may be called by several threads at a time. mapdirect_persist() and mapdirect_query() take
 *     no lock and may be called in a signal handler.
 */
#ifndef MAPDIRECT_H
#define MAPDIRECT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MAPDIRECT_VERSION_MAJOR 0
#define MAPDIRECT_VERSION_MINOR 1
#define MAPDIRECT_VERSION_PATCH 0

#if defined(__GNUC__)
#define MAPDIRECT_API __attribute__((visibility("default")))
#else
#define MAPDIRECT_API
#endif

/*
 * The mmap(2) flag. Only together with MAP_SHARED_VALIDATE. A kernel without the preload library answers
 * EOPNOTSUPP. It is not the value of the 2017 patches (0x80000), which has been MAP_SYNC since Linux 4.15.
 */
#ifndef MAP_DIRECT
#define MAP_DIRECT 0x200000
#endif

/* Which lease: the low bits of the argument `lease` of mapdirect_map(). */
#define MAPDIRECT_DEFAULT 0u /* what the mount hands out by default */
#define MAPDIRECT_SEAL 1u /* conflicting operations fail with ETXTBSY; for the file's owner and root only */
#define MAPDIRECT_BREAKABLE 2u /* conflicting operations wait, bounded, and then succeed */

/* Options, to be combined with one of the above. */
#define MAPDIRECT_WHOLE_FILE 0x100u /* any size change of the file is a conflict, not only of the range */
#define MAPDIRECT_PREPARE 0x200u    /* do mapdirect_prepare() on the range first */

/* States of an extent. */
#define MAPDIRECT_HOLE 0u      /* no blocks: loads give zeros, stores SIGBUS */
#define MAPDIRECT_UNWRITTEN 1u /* allocated, no content yet: loads give zeros, stores SIGBUS */
#define MAPDIRECT_WRITTEN 2u   /* the page is the physical block itself */
#define MAPDIRECT_SHARED 3u    /* shared with another file: cannot be mapped; mapdirect_prepare() unshares */
/* Only in mapdirect_query(): */
#define MAPDIRECT_BEYOND 4u  /* past the file's last block: every access SIGBUS */
#define MAPDIRECT_REVOKED 5u /* the lease was broken: every access SIGBUS */
#define MAPDIRECT_CACHED 6u  /* the lease was broken; now an ordinary shared mapping (MAPDIRECT_REMAP) */

/*
 * mapdirect_map - map a range of a file directly.
 *
 *   addr    NULL, a hint, or with MAP_FIXED / MAP_FIXED_NOREPLACE the address. Without either the library
 *           chooses an address that is congruent with the physical blocks modulo 2 MiB, so that the kernel can
 *           use huge pages.
 *   length  bytes, > 0; rounded up to whole pages.
 *   prot    PROT_WRITE, as a rule with PROT_READ; PROT_EXEC may be added.
 *   flags   MAP_SHARED_VALIDATE (MAP_DIRECT is implied, and may be given). May be combined with MAP_SYNC,
 *           MAP_POPULATE, MAP_NONBLOCK, MAP_NORESERVE, MAP_LOCKED, MAP_FIXED and MAP_FIXED_NOREPLACE. Nothing
 *           else.
 *   fd      open for reading and writing. May be closed afterwards.
 *   offset  bytes from the start of the file; a multiple of the page size.
 *   lease   MAPDIRECT_DEFAULT, MAPDIRECT_SEAL or MAPDIRECT_BREAKABLE, and options.
 *
 * The range may reach into holes, unwritten extents and past the end of the file: see the states above for what
 * such pages do. They stay so for the life of the mapping, also when the file grows: map again to reach new
 * blocks. A system call that is handed an address which would raise SIGBUS answers EFAULT.
 *
 * Mapping never allocates, zeroes or unshares (without MAPDIRECT_PREPARE). When it returns, the metadata that
 * locates the blocks is durable.
 *
 * The mapping lasts until it is unmapped, or until its lease is broken: a breakable one by any conflicting
 * operation, either kind by the administrator. After that only a new mapping gives access again, and for about
 * a second it is refused with EAGAIN, so that the operation that waited comes first.
 *
 * MAP_SYNC is honoured exactly where a CPU cache flush alone makes stores durable, and refused elsewhere.
 *
 * Returns the address, or MAP_FAILED and errno:
 *   EACCES      without PROT_WRITE; fd not open for reading and writing; a seal asked for by somebody who is
 *               neither the file's owner nor root; the region (the storage behind the mount) cannot be opened
 *               by the caller, or is named by a mount of neither root, the caller, nor the region's owner
 *   EAGAIN      a limit on leases (`mapdirect leases` names it); a break of the range is under way, or ended
 *               less than a second ago; memory cannot be locked (MAP_LOCKED); no thread could be started
 *   EBADF       not an open descriptor
 *   EEXIST      MAP_FIXED_NOREPLACE and something is mapped there
 *   EINVAL      MAP_PRIVATE, MAP_ANONYMOUS or plain MAP_SHARED; zero length; offset or address not aligned to
 *               pages or to what the backing needs (device-dax: often 2 MiB); unknown bits in prot or lease
 *   EMFILE, ENFILE  too many open files (the library's own table has the limit RLIMIT_NOFILE, too)
 *   ENOMEM      no address space; the range is in more than 16,384 pieces or would exceed vm.max_map_count; more
 *               than 64 GiB of it are holes
 *   EOPNOTSUPP  unknown flags; not a regular file of a mapdirect mount; the region is not the one that the
 *               mount names; MAP_SYNC where it would not be true; /proc is not mounted; the kernel lacks
 *               userfaultfd and the range has holes
 *   EOVERFLOW   offset + length exceeds the largest file offset
 *   EPERM       the range has shared extents
 *   ETXTBSY     MAPDIRECT_PREPARE would change the block map of a range that somebody holds a seal on
 * With MAP_FIXED, what was mapped there may be gone also when the call fails late, as with mmap(2).
 */
MAPDIRECT_API void *mapdirect_map(void *addr, size_t length, int prot, int flags, int fd, off_t offset,
                                  unsigned lease);

/*
 * mapdirect_unmap - like munmap(2), for direct mappings and anything else in the range.
 *
 * Part of a mapping may go; the lease, which covers the whole range that was asked for, ends with the last
 * piece. When the call returns and the process never forked with the mapping, the lease has ended: a truncate
 * that follows is not refused because of it.
 *
 * Errors: EINVAL (addr not page aligned, zero length), ENOMEM.
 */
MAPDIRECT_API int mapdirect_unmap(void *addr, size_t length);

/*
 * mapdirect_detach - like mapdirect_unmap(), but the addresses stay: in the same step, zeros take their place that
 * belong to nobody (inert pages; what is stored there is lost). For a program that cannot be sure that nothing points
 * there any more. munmap(2) gives the addresses back.
 *
 * Under vm.overcommit_memory=2, where there is no memory for them, a store to inert pages raises SIGSEGV.
 *
 * Errors: EINVAL (addr not page aligned, zero length), ENOMEM.
 */
MAPDIRECT_API int mapdirect_detach(void *addr, size_t length);

/*
 * mapdirect_remap - like mremap(2): move (MREMAP_MAYMOVE | MREMAP_FIXED with new_addr) or shrink.
 *
 * Growing is refused, also back to the size before a shrink: map again. Pages that move are in neither place
 * for a moment, as with mremap(2); the lease stays.
 *
 * Returns the new address, or MAP_FAILED and errno: EFAULT (the old range is not wholly inside one direct
 * mapping), EINVAL (growth, zero length, MREMAP_DONTUNMAP, overlapping or unaligned ranges), ENOMEM.
 */
MAPDIRECT_API void *mapdirect_remap(void *old_addr, size_t old_length, size_t new_length, int flags,
                                    void *new_addr);

/*
 * mapdirect_persist - make the stores to [addr, addr + length) durable. No alignment is needed.
 *
 * Where the region has cache-line granularity: flushes the CPU's cache lines and fences, no system call.
 * Elsewhere: msync(MS_SYNC) of the pages.
 *
 * Errors: ENOMEM (the range is not wholly in direct mappings), EIO (from msync; or part of the range has been
 * revoked, and what was stored there before may not be durable).
 */
MAPDIRECT_API int mapdirect_persist(const void *addr, size_t length);

/*
 * mapdirect_prepare - make [offset, offset + length) of the file ready to be mapped and stored to: holes and
 * unwritten extents become written zeros, shared extents are unshared, durably. length 0 means up to the end
 * of the file. The file's size does not change.
 *
 * Errors: EBADF (also: not open for writing), EINVAL, ENOSPC, ETXTBSY (somebody holds a lease on the range
 * and it is not ready yet), EOPNOTSUPP (not a file of a mapdirect mount).
 */
MAPDIRECT_API int mapdirect_prepare(int fd, off_t offset, off_t length);

/* One piece of a file's block map. */
struct mapdirect_extent {
  uint64_t offset;   /* in the file */
  uint64_t physical; /* in the region; 0 for a hole. Valid only while a lease covers it. */
  uint64_t length;
  uint32_t state; /* MAPDIRECT_HOLE ... MAPDIRECT_SHARED */
  uint32_t reserved;
};

/* About the whole answer of mapdirect_extents(). */
struct mapdirect_map_info {
  uint64_t generation;  /* of the block map that was read: the same number, the same map */
  uint64_t next_offset; /* where to continue; 0 when the answer is complete */
  uint64_t file_bytes;  /* size of the file */
  uint64_t map_bytes;   /* offset of the first byte past the file's last block */
  uint64_t inode;
};

/*
 * mapdirect_extents - read the block map of [offset, offset + length) into extents[0 .. capacity). `info` may
 * be NULL.
 *
 * Without a lease the physical offsets are a snapshot which may be wrong by the time it is read: take them
 * from mapdirect_query() on a mapping, or compare generations under one.
 *
 * Returns the number of extents, or -1 and errno: EBADF, EINVAL, EOPNOTSUPP (not a file of a mapdirect
 * mount).
 */
MAPDIRECT_API ssize_t mapdirect_extents(int fd, off_t offset, off_t length, struct mapdirect_extent *extents,
                                        size_t capacity, struct mapdirect_map_info *info);

/* What an address of a direct mapping is. */
struct mapdirect_lease_info {
  uint64_t lease_id;
  uint64_t generation; /* of the block map, pinned by the lease */
  uint64_t offset;     /* file offset of the address */
  uint64_t physical;   /* region offset of the address; 0 unless state is MAPDIRECT_WRITTEN */
  uint64_t length;     /* bytes from the address to the end of its piece */
  uint64_t inode;      /* of the file */
  uint64_t device;     /* st_dev of the file */
  uint32_t kind;       /* MAPDIRECT_SEAL or MAPDIRECT_BREAKABLE */
  uint32_t state;      /* MAPDIRECT_WRITTEN, _HOLE (hole or unwritten), _BEYOND, _REVOKED, _CACHED */
  uint32_t cacheline;  /* 1: a CPU cache flush makes stores durable; 0: msync does */
  uint32_t reserved;
};

/*
 * mapdirect_query - which lease, file offset and physical offset an address has. The physical offset is valid
 * as long as the mapping is. Errors: EFAULT (not in a direct mapping of this process).
 */
MAPDIRECT_API int mapdirect_query(const void *addr, struct mapdirect_lease_info *info);

/* Why a lease is being broken. */
#define MAPDIRECT_REASON_CONFLICT 1u      /* somebody wants to change the block map of the range */
#define MAPDIRECT_REASON_ADMINISTRATOR 2u /* the administrator says so */
#define MAPDIRECT_REASON_UNMOUNT 3u       /* the file system is being unmounted */

struct mapdirect_break {
  uint64_t lease_id;
  void *address;            /* the lowest address of the mapping that is still mapped */
  uint64_t length;          /* bytes from there that are mapped without a gap */
  uint64_t offset;          /* what the conflicting operation is about: offset in the file */
  uint64_t conflict_length; /* and bytes, within the leased range */
  uint64_t remaining_ms;    /* until the lease is revoked without us; 0: it has been */
  uint32_t reason;
  uint32_t reserved; /* the library's */
};
typedef void mapdirect_break_handler(const struct mapdirect_break *what, void *context);

/* For `flags`: after revocation map the same range of the file as an ordinary MAP_SHARED mapping would. */
#define MAPDIRECT_REMAP 1u
/* For `flags`: after revocation inert pages, see mapdirect_detach(). Not together with MAPDIRECT_REMAP. */
#define MAPDIRECT_INERT 2u

/*
 * mapdirect_on_break - be told when a lease of this process is being broken, and choose what comes after.
 *
 * The library calls `handler` (NULL: nobody), and when it returns takes the memory away, in one step for all of
 * a mapping that is in one place: every later access raises SIGBUS (BUS_ADRERR, exact address), system calls
 * get EFAULT. The pages stay the program's to unmap. The lease ends, and the operation that waited goes on. It
 * never waits longer than the mount's break time, whatever the handler does.
 *
 * With MAPDIRECT_REMAP an ordinary shared mapping of the same range of the file takes the place of the SIGBUS
 * pages as soon as the lease is gone: pointers stay valid, stores go through the page cache and read(2) sees
 * them; only what lies past the end of the file raises SIGBUS. In between accesses raise SIGBUS. Where the
 * kernel cannot map such files (before Linux 6.6) the SIGBUS pages stay. Under the preload library
 * MAPDIRECT_REVOKE=remap in the environment says the same.
 *
 * With MAPDIRECT_INERT inert pages take the place in that one step: no access ever raises a signal, for programs that
 * could not survive one. A mapping that they have taken the place of is forgotten by the library: mapdirect_query() says
 * MAPDIRECT_REVOKED for a moment, then EFAULT, and mapdirect_persist() EIO, then ENOMEM. A zero that was loaded from inert
 * pages is never followed by another answer, so what was loaded before mapdirect_query() said anything else was the file's.
 *
 * The handler runs on a thread of the library, for one mapping after the other: be quick. It may call
 * mapdirect_persist(), mapdirect_query(), mapdirect_unmap() and mapdirect_map(). That thread has every signal
 * blocked and a descriptor table of its own: the program's descriptors mean nothing there. Tell other threads
 * through memory (an atomic, a futex, sem_post()). A fault there ends the process.
 *
 * One handler for the process; the last call counts, also for mappings that exist. A forked child inherits it,
 * and is told of its own copies. A child that was made by a bare clone(2), or whose file has no name any more
 * (unless it is root), or that may not open it again, is not told and sees no SIGBUS. The operation then waits
 * for the break time, and the blocks that the child still reaches are used for nothing else until it lets go.
 *
 * Errors: EINVAL (unknown flags, or both).
 */
MAPDIRECT_API int mapdirect_on_break(mapdirect_break_handler *handler, void *context, unsigned flags);

/* As the context of mapdirect_hand_over(): wait without a limit. */
#define MAPDIRECT_UNTIL_ANSWERED ((void *)1)

/*
 * mapdirect_hand_over - a handler for mapdirect_on_break() that has threads of the program told.
 *
 * It hands each break over to a thread that is in mapdirect_wait_break(), one at a time, and returns when that thread has
 * called mapdirect_answer_break(), or when three quarters of the remaining time are over. It does not wait in a process in
 * which no thread has ever called mapdirect_wait_break(): a forked child has none.
 *
 * With the context MAPDIRECT_UNTIL_ANSWERED it waits without a limit, also for the thread's first call: for memory that a device may store to, and that must
 * not be given up before the device has been told (docs/LEASES.md, "Devices"). At the deadline the operation goes on all the
 * same, and what the mapping still reaches is in quarantine until the answer.
 *
 *     mapdirect_on_break(mapdirect_hand_over, NULL, MAPDIRECT_INERT);
 *     struct mapdirect_break what;
 *     for (;;)
 *       if (mapdirect_wait_break(&what, -1) == 0) {
 *         ... stop using what.address ...
 *         mapdirect_answer_break(&what);
 *       }
 */
MAPDIRECT_API void mapdirect_hand_over(const struct mapdirect_break *what, void *context);

/*
 * mapdirect_wait_break - on a thread of the program, wait for a break that mapdirect_hand_over() hands over.
 *
 * timeout_ms: milliseconds; negative: for ever. The thread may do anything that a thread of the program may, but should
 * answer soon: the next break waits for it.
 *
 * Errors: ETIMEDOUT, EINTR (a signal).
 */
MAPDIRECT_API int mapdirect_wait_break(struct mapdirect_break *what, int timeout_ms);

/*
 * mapdirect_answer_break - the break that mapdirect_wait_break() told of may go on: the library takes the memory away.
 *
 * Errors: ETIMEDOUT (too late: the memory is being taken away, or has been).
 */
MAPDIRECT_API int mapdirect_answer_break(const struct mapdirect_break *what);

/* What happened in this process so far; a forked child counts from zero. */
struct mapdirect_stats {
  uint64_t direct;       /* direct mappings that were made, by whatever door */
  uint64_t direct_bytes; /* and their length */
  uint64_t automatic;    /* of them, ordinary mmap(2) calls under MAPDIRECT=auto */
  uint64_t revoked;      /* that were taken away again */
  /* Calls under MAPDIRECT=auto that were made ordinary mappings, and why: */
  uint64_t past_end;  /* the range reaches past the end of the file */
  uint64_t busy;      /* a lease on it is being broken or just was; a seal is in the way; a limit on leases */
  uint64_t no_space;  /* there are no blocks for its holes */
  uint64_t no_access; /* the region cannot be opened by this process */
  uint64_t unsupported; /* the mount hands out no leases; flags that a direct mapping does not know */
  uint64_t other;
  uint64_t reserved[6];
};

/*
 * mapdirect_stats - read the counters. Under the preload library the environment variable MAPDIRECT_STATS, "stderr" or
 * the name of a file, has each process that mapped anything write them there when it ends, as one line.
 */
MAPDIRECT_API void mapdirect_stats(struct mapdirect_stats *stats);

/*
 * mapdirect_version - the version of the library that runs, as "major.minor.patch".
 */
MAPDIRECT_API const char *mapdirect_version(void);

#ifdef __cplusplus
}
#endif

#endif
