/*
 * LMDB with MDB_WRITEMAP: it stores through a shared mapping of its file.
 *
 *   store fill DIR FROM TO   one transaction for each hundred numbers: puts them, deletes every third
 *   store check DIR TO       every number below TO is there with its value, or is a third one and is not
 */
#include <lmdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAP_BYTES (32u << 20)

static void must(int result, const char *what) {
  if (result == 0) return;
  fprintf(stderr, "%s: %s\n", what, mdb_strerror(result));
  exit(1);
}

static void value_of(unsigned number, char *text, size_t bytes) {
  memset(text, 'a' + (int)(number % 26), bytes);
  snprintf(text, bytes, "value of %u", number);
}

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  bool fill = strcmp(argv[1], "fill") == 0;
  MDB_env *env;
  MDB_txn *transaction;
  MDB_dbi table;
  must(mdb_env_create(&env), "mdb_env_create");
  must(mdb_env_set_mapsize(env, MAP_BYTES), "mdb_env_set_mapsize");
  must(mdb_env_open(env, argv[2], fill ? MDB_WRITEMAP : MDB_RDONLY, 0644), "mdb_env_open");
  unsigned from = fill ? (unsigned)atoi(argv[3]) : 0;
  unsigned to = (unsigned)atoi(argv[fill ? 4 : 3]);
  char text[700];
  for (unsigned number = from; fill && number < to;) {
    must(mdb_txn_begin(env, NULL, 0, &transaction), "mdb_txn_begin");
    must(mdb_dbi_open(transaction, NULL, MDB_INTEGERKEY, &table), "mdb_dbi_open");
    for (unsigned count = 0; count < 100 && number < to; count++, number++) {
      MDB_val key = {.mv_size = sizeof number, .mv_data = &number};
      value_of(number, text, sizeof text);
      MDB_val data = {.mv_size = sizeof text, .mv_data = text};
      must(mdb_put(transaction, table, &key, &data, 0), "mdb_put");
      if (number % 3 == 2) must(mdb_del(transaction, table, &key, NULL), "mdb_del");
    }
    must(mdb_txn_commit(transaction), "mdb_txn_commit");
  }
  if (!fill) {
    must(mdb_txn_begin(env, NULL, MDB_RDONLY, &transaction), "mdb_txn_begin");
    must(mdb_dbi_open(transaction, NULL, MDB_INTEGERKEY, &table), "mdb_dbi_open");
    for (unsigned number = 0; number < to; number++) {
      MDB_val key = {.mv_size = sizeof number, .mv_data = &number};
      MDB_val data;
      int result = mdb_get(transaction, table, &key, &data);
      if (number % 3 == 2 && result == MDB_NOTFOUND) continue;
      must(result, "mdb_get");
      value_of(number, text, sizeof text);
      if (data.mv_size != sizeof text || memcmp(data.mv_data, text, sizeof text) != 0) {
        fprintf(stderr, "%u has another value\n", number);
        return 1;
      }
    }
    mdb_txn_abort(transaction);
  }
  mdb_env_close(env);
  return 0;
}
