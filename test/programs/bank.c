/*
 * A libpmemobj program of the usual kind, for a test that kills it: accounts whose sum never changes, and a counter of the
 * transactions that were committed.
 *
 *   bank create POOL   makes the pool
 *   bank run POOL      transfers for ever; prints the counter after each commit
 *   bank check POOL    prints "counter N, sum S, pmem P": P is what libpmem says of a mapping of the file
 */
#include <libpmem.h>
#include <libpmemobj.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ACCOUNTS 512
#define INITIAL 1000

struct bank {
  uint64_t counter;
  int64_t balance[ACCOUNTS];
};

POBJ_LAYOUT_BEGIN(bank);
POBJ_LAYOUT_ROOT(bank, struct bank);
POBJ_LAYOUT_END(bank);

static void fail(const char *what) {
  fprintf(stderr, "%s: %s\n", what, pmemobj_errormsg());
  exit(1);
}

static void transfer(PMEMobjpool *pool, TOID(struct bank) root) {
  struct bank *bank = D_RW(root);
  size_t from = (size_t)rand() % ACCOUNTS;
  size_t to = (size_t)rand() % ACCOUNTS;
  int64_t amount = rand() % 100;
  TX_BEGIN(pool) {
    TX_ADD_FIELD(root, balance[from]);
    TX_ADD_FIELD(root, balance[to]);
    TX_ADD_FIELD(root, counter);
    bank->balance[from] -= amount;
    bank->balance[to] += amount;
    bank->counter += 1;
    /* Something for the allocator, too. */
    PMEMoid scratch = pmemobj_tx_alloc(64 + (size_t)rand() % 2000, 1);
    if (rand() % 8 != 0) pmemobj_tx_free(scratch);
  }
  TX_ONABORT {
    fail("transaction");
  }
  TX_END
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  const char *path = argv[2];
  int pmem = 0;
  if (strcmp(argv[1], "check") == 0) {
    size_t length;
    void *map = pmem_map_file(path, 0, 0, 0, &length, &pmem);
    if (map == NULL) fail("pmem_map_file");
    pmem_unmap(map, length);
  }
  PMEMobjpool *pool = strcmp(argv[1], "create") == 0
                          ? pmemobj_create(path, POBJ_LAYOUT_NAME(bank), 4 * PMEMOBJ_MIN_POOL, 0600)
                          : pmemobj_open(path, POBJ_LAYOUT_NAME(bank));
  if (pool == NULL) fail(path);
  TOID(struct bank) root = POBJ_ROOT(pool, struct bank);
  struct bank *bank = D_RW(root);
  if (strcmp(argv[1], "create") == 0) {
    for (size_t index = 0; index < ACCOUNTS; index++)
      bank->balance[index] = INITIAL;
    pmemobj_persist(pool, bank, sizeof *bank);
  } else if (strcmp(argv[1], "run") == 0) {
    srand((unsigned)getpid());
    for (;;) {
      transfer(pool, root);
      char text[32];
      int length = snprintf(text, sizeof text, "%llu\n", (unsigned long long)bank->counter);
      if (write(STDOUT_FILENO, text, (size_t)length) != length) return 1;
    }
  } else {
    int64_t sum = 0;
    for (size_t index = 0; index < ACCOUNTS; index++)
      sum += bank->balance[index];
    printf("counter %llu, sum %lld, pmem %d\n", (unsigned long long)bank->counter, (long long)sum, pmem);
  }
  pmemobj_close(pool);
  return 0;
}
