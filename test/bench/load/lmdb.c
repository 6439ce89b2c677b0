/*
 * LMDB: small transactions, each durable when it returns, then look-ups.
 *
 *   lmdb FOLDER TRANSACTIONS writemap|write
 *
 * `writemap` stores through a shared mapping (MDB_WRITEMAP), `write` by pwrite(2). Prints transactions and look-ups per
 * second as JSON.
 */
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAP_BYTES (64u << 20)

static double seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void must(int result, const char *what) {
  if (result == 0) return;
  fprintf(stderr, "lmdb: %s: %s\n", what, mdb_strerror(result));
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: lmdb FOLDER TRANSACTIONS writemap|write\n");
    return 2;
  }
  unsigned count = (unsigned)strtoul(argv[2], NULL, 10);
  MDB_env *env;
  MDB_txn *transaction;
  MDB_dbi table;
  must(mdb_env_create(&env), "mdb_env_create");
  must(mdb_env_set_mapsize(env, MAP_BYTES), "mdb_env_set_mapsize");
  must(mdb_env_open(env, argv[1], strcmp(argv[3], "writemap") == 0 ? MDB_WRITEMAP : 0, 0644), "mdb_env_open");
  must(mdb_txn_begin(env, NULL, 0, &transaction), "mdb_txn_begin");
  must(mdb_dbi_open(transaction, NULL, MDB_INTEGERKEY, &table), "mdb_dbi_open");
  must(mdb_txn_commit(transaction), "mdb_txn_commit");
  char text[100];
  memset(text, 'v', sizeof text);
  double begin = seconds();
  for (unsigned number = 0; number < count; number++) {
    must(mdb_txn_begin(env, NULL, 0, &transaction), "mdb_txn_begin");
    MDB_val key = {.mv_size = sizeof number, .mv_data = &number};
    MDB_val data = {.mv_size = sizeof text, .mv_data = text};
    must(mdb_put(transaction, table, &key, &data, 0), "mdb_put");
    must(mdb_txn_commit(transaction), "mdb_txn_commit");
  }
  double written = seconds();
  unsigned lookups = count * 20;
  must(mdb_txn_begin(env, NULL, MDB_RDONLY, &transaction), "mdb_txn_begin");
  for (unsigned index = 0; index < lookups; index++) {
    unsigned number = index * 2654435761u % count;
    MDB_val key = {.mv_size = sizeof number, .mv_data = &number};
    MDB_val data;
    must(mdb_get(transaction, table, &key, &data), "mdb_get");
  }
  double read = seconds();
  mdb_txn_abort(transaction);
  mdb_env_close(env);
  printf("{\"transactions\": %.1f, \"lookups\": %.1f}\n", count / (written - begin),
         lookups / (read - written));
  return 0;
}
