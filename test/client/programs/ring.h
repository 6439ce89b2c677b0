/* One transfer by io_uring at a time, without a library. */
#ifndef RING_H
#define RING_H

#include <linux/io_uring.h>

#include "tap.h"

static int ring_fd = -1;
static struct io_uring_sqe *ring_entries;
static unsigned *ring_sq_tail, *ring_sq_array, *ring_sq_mask, *ring_cq_head, *ring_cq_tail, *ring_cq_mask;
static struct io_uring_cqe *ring_done;

static inline bool open_ring(void) {
  struct io_uring_params params;
  memset(&params, 0, sizeof params);
  ring_fd = (int)syscall(SYS_io_uring_setup, 4, &params);
  if (ring_fd < 0) return false;
  size_t sq_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
  char *sq = mmap(NULL, sq_bytes, READ_WRITE, MAP_SHARED | MAP_POPULATE, ring_fd, IORING_OFF_SQ_RING);
  char *cq = mmap(NULL, cq_bytes, READ_WRITE, MAP_SHARED | MAP_POPULATE, ring_fd, IORING_OFF_CQ_RING);
  ring_entries = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), READ_WRITE,
                      MAP_SHARED | MAP_POPULATE, ring_fd, IORING_OFF_SQES);
  if (sq == MAP_FAILED || cq == MAP_FAILED || (void *)ring_entries == MAP_FAILED) return false;
  ring_sq_tail = (unsigned *)(void *)(sq + params.sq_off.tail);
  ring_sq_mask = (unsigned *)(void *)(sq + params.sq_off.ring_mask);
  ring_sq_array = (unsigned *)(void *)(sq + params.sq_off.array);
  ring_cq_head = (unsigned *)(void *)(cq + params.cq_off.head);
  ring_cq_tail = (unsigned *)(void *)(cq + params.cq_off.tail);
  ring_cq_mask = (unsigned *)(void *)(cq + params.cq_off.ring_mask);
  ring_done = (struct io_uring_cqe *)(void *)(cq + params.cq_off.cqes);
  return true;
}

static inline ssize_t ring_transfer(int opcode, int fd, void *bytes, size_t length, off_t at) {
  unsigned tail = *ring_sq_tail;
  unsigned index = tail & *ring_sq_mask;
  struct io_uring_sqe *entry = &ring_entries[index];
  memset(entry, 0, sizeof *entry);
  entry->opcode = (unsigned char)opcode;
  entry->fd = fd;
  entry->addr = (uint64_t)(uintptr_t)bytes;
  entry->len = (unsigned)length;
  entry->off = (uint64_t)at; /* buf_index 0: the only buffer that is ever registered */
  ring_sq_array[index] = index;
  __atomic_store_n(ring_sq_tail, tail + 1, __ATOMIC_RELEASE);
  if (syscall(SYS_io_uring_enter, ring_fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0) return -1;
  unsigned head = *ring_cq_head;
  if (head == __atomic_load_n(ring_cq_tail, __ATOMIC_ACQUIRE)) return -1;
  ssize_t result = ring_done[head & *ring_cq_mask].res;
  __atomic_store_n(ring_cq_head, head + 1, __ATOMIC_RELEASE);
  return result;
}

#endif
