/*
 * A peer: an in-memory file system in C on libfuse 3's low-level interface.
 *
 *   memfs_ll MOUNTPOINT [threads] [cached]
 *
 * Nodes are addressed by pointer (the kernel holds a count of look-ups on each), names are in one hash table
 * keyed by directory and name, each file is one allocation that grows by doubling. `threads`: libfuse's own pool of
 * threads, each with the device opened once more. `cached`: the kernel keeps pages of files and writes them back when
 * it likes; without, each read and write is a request. The process ends with the one that started it.
 *
 * Replies go out by writev from where the bytes lie. Splicing is off, as libfuse has it for what replies so.
 *
 * Locks: `names` guards the table of names, the lists of entries, counts of look-ups and links, and the attributes of
 * directories; a node's `lock` guards its bytes and the rest of its attributes, and is taken after `names`.
 */
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fuse_lowlevel.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum { BUCKETS = 1 << 20, BLOCK = 4096 };
static const double FOREVER_SEC = 3600;

struct node {
  pthread_rwlock_t lock;
  struct stat stat;
  char *data; /* bytes beyond the size are zero, up to capacity */
  size_t capacity;
  uint64_t lookups;
  struct entry *entries; /* of a directory, the newest first */
  uint64_t removals;     /* from it */
};

struct entry {
  struct entry *next_in_bucket;
  struct entry **link_in_directory;
  struct entry *next_in_directory;
  struct node *directory;
  struct node *node;
  off_t cookie; /* descends along the list */
  char name[];
};

/* Where a reader of a directory is: `next` is good as long as nothing was removed. */
struct cursor {
  off_t cookie;
  struct entry *next;
  uint64_t removals;
};

static pthread_mutex_t names = PTHREAD_MUTEX_INITIALIZER;
static struct entry *buckets[BUCKETS];
static struct node root = {.lock = PTHREAD_RWLOCK_INITIALIZER};
static ino_t last_ino;
static off_t last_cookie;
static bool cached;

static void lock_names(void) {
  pthread_mutex_lock(&names);
}
static void unlock_names(void) {
  pthread_mutex_unlock(&names);
}

static struct node *node_of(fuse_ino_t ino) {
  return ino == FUSE_ROOT_ID ? &root : (struct node *)ino;
}
static fuse_ino_t ino_of(const struct node *node) {
  return node == &root ? FUSE_ROOT_ID : (fuse_ino_t)(uintptr_t)node;
}

static struct timespec now(void) {
  struct timespec time;
  clock_gettime(CLOCK_REALTIME_COARSE, &time);
  return time;
}

static void init_node(struct node *node, mode_t mode, uid_t uid, gid_t gid) {
  struct timespec time = now();
  node->stat = (struct stat){
      .st_ino = ++last_ino,
      .st_mode = mode,
      .st_nlink = S_ISDIR(mode) ? 2 : 1,
      .st_uid = uid,
      .st_gid = gid,
      .st_blksize = BLOCK,
      .st_atim = time,
      .st_mtim = time,
      .st_ctim = time,
  };
}

static void free_if_unused(struct node *node) {
  if (node->lookups > 0 || node->stat.st_nlink > 0 || node == &root) return;
  pthread_rwlock_destroy(&node->lock);
  free(node->data);
  free(node);
}

static struct entry **bucket_of(const struct node *directory, const char *name) {
  uint64_t hash = 1469598103934665603u ^ ((uintptr_t)directory >> 4);
  for (const char *at = name; *at; at++)
    hash = (hash ^ (unsigned char)*at) * 1099511628211u;
  return &buckets[(hash ^ hash >> 32) % BUCKETS];
}

/* The place that points to the entry, or to the NULL at the end of its bucket. */
static struct entry **find(const struct node *directory, const char *name) {
  struct entry **at = bucket_of(directory, name);
  while (*at && ((*at)->directory != directory || strcmp((*at)->name, name) != 0))
    at = &(*at)->next_in_bucket;
  return at;
}

static bool insert(struct node *directory, const char *name, struct node *node) {
  size_t bytes = strlen(name) + 1;
  struct entry *entry = malloc(sizeof *entry + bytes);
  if (!entry) return false;
  memcpy(entry->name, name, bytes);
  struct entry **bucket = bucket_of(directory, name);
  entry->directory = directory;
  entry->node = node;
  entry->next_in_bucket = *bucket;
  *bucket = entry;
  entry->cookie = ++last_cookie;
  entry->next_in_directory = directory->entries;
  entry->link_in_directory = &directory->entries;
  if (directory->entries) directory->entries->link_in_directory = &entry->next_in_directory;
  directory->entries = entry;
  directory->stat.st_mtim = directory->stat.st_ctim = now();
  return true;
}

static void erase(struct entry **at) {
  struct entry *entry = *at;
  *at = entry->next_in_bucket;
  *entry->link_in_directory = entry->next_in_directory;
  if (entry->next_in_directory) entry->next_in_directory->link_in_directory = entry->link_in_directory;
  entry->directory->stat.st_mtim = entry->directory->stat.st_ctim = now();
  entry->directory->removals++;
  free(entry);
}

static int reserve(struct node *node, size_t bytes) {
  if (bytes <= node->capacity) return 0;
  size_t capacity = node->capacity * 2;
  if (capacity < BLOCK) capacity = BLOCK;
  if (capacity < bytes) capacity = bytes;
  char *data = realloc(node->data, capacity);
  if (!data) return ENOMEM;
  memset(data + node->capacity, 0, capacity - node->capacity);
  node->data = data;
  node->capacity = capacity;
  return 0;
}

static void set_size(struct node *node, off_t bytes) {
  node->stat.st_size = bytes;
  node->stat.st_blocks = (bytes + 511) / 512;
}

/* With `names` held. */
static struct fuse_entry_param entry_param(struct node *node) {
  node->lookups++;
  pthread_rwlock_rdlock(&node->lock);
  struct fuse_entry_param param = {
      .ino = ino_of(node), .attr = node->stat, .attr_timeout = FOREVER_SEC, .entry_timeout = FOREVER_SEC};
  pthread_rwlock_unlock(&node->lock);
  return param;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
  lock_names();
  struct entry *entry = *find(node_of(parent), name);
  struct fuse_entry_param param = {.entry_timeout = FOREVER_SEC};
  if (entry) param = entry_param(entry->node);
  unlock_names();
  fuse_reply_entry(req, &param);
}

static void forget(fuse_ino_t ino, uint64_t count) {
  struct node *node = node_of(ino);
  node->lookups -= count;
  free_if_unused(node);
}

static void do_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count) {
  lock_names();
  forget(ino, count);
  unlock_names();
  fuse_reply_none(req);
}

static void do_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets) {
  lock_names();
  for (size_t index = 0; index < count; index++)
    forget(forgets[index].ino, forgets[index].nlookup);
  unlock_names();
  fuse_reply_none(req);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *file) {
  (void)file;
  struct node *node = node_of(ino);
  lock_names();
  pthread_rwlock_rdlock(&node->lock);
  struct stat stat = node->stat;
  pthread_rwlock_unlock(&node->lock);
  unlock_names();
  fuse_reply_attr(req, &stat, FOREVER_SEC);
}

static void do_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *wanted, int set,
                       struct fuse_file_info *file) {
  (void)file;
  struct node *node = node_of(ino);
  struct timespec time = now();
  lock_names();
  pthread_rwlock_wrlock(&node->lock);
  if (set & FUSE_SET_ATTR_SIZE) {
    size_t size = (size_t)wanted->st_size;
    int error = reserve(node, size);
    if (error) {
      pthread_rwlock_unlock(&node->lock);
      unlock_names();
      fuse_reply_err(req, error);
      return;
    }
    if (size < (size_t)node->stat.st_size) memset(node->data + size, 0, (size_t)node->stat.st_size - size);
    set_size(node, wanted->st_size);
    node->stat.st_mtim = time;
  }
  if (set & FUSE_SET_ATTR_MODE)
    node->stat.st_mode = (node->stat.st_mode & S_IFMT) | (wanted->st_mode & 07777);
  if (set & FUSE_SET_ATTR_UID) node->stat.st_uid = wanted->st_uid;
  if (set & FUSE_SET_ATTR_GID) node->stat.st_gid = wanted->st_gid;
  if (set & FUSE_SET_ATTR_ATIME) node->stat.st_atim = set & FUSE_SET_ATTR_ATIME_NOW ? time : wanted->st_atim;
  if (set & FUSE_SET_ATTR_MTIME) node->stat.st_mtim = set & FUSE_SET_ATTR_MTIME_NOW ? time : wanted->st_mtim;
  node->stat.st_ctim = time;
  struct stat stat = node->stat;
  pthread_rwlock_unlock(&node->lock);
  unlock_names();
  fuse_reply_attr(req, &stat, FOREVER_SEC);
}

/* With `names` held; NULL and the error. */
static struct node *make(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, int *error) {
  *error = *find(node_of(parent), name) ? EEXIST : ENOMEM;
  if (*error == EEXIST) return NULL;
  struct node *node = calloc(1, sizeof *node);
  if (!node) return NULL;
  pthread_rwlock_init(&node->lock, NULL);
  init_node(node, mode, fuse_req_ctx(req)->uid, fuse_req_ctx(req)->gid);
  if (insert(node_of(parent), name, node)) return node;
  free(node);
  return NULL;
}

static void set_flags(struct fuse_file_info *file) {
  file->direct_io = !cached;
  file->keep_cache = cached;
  file->noflush = 1;
}

static void do_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *file) {
  int error;
  struct fuse_entry_param param;
  lock_names();
  struct node *node = make(req, parent, name, mode, &error);
  if (node) param = entry_param(node);
  unlock_names();
  if (!node) {
    fuse_reply_err(req, error);
    return;
  }
  set_flags(file);
  fuse_reply_create(req, &param, file);
}

static void do_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode) {
  int error;
  struct fuse_entry_param param;
  lock_names();
  struct node *node = make(req, parent, name, mode | S_IFDIR, &error);
  if (node) {
    node_of(parent)->stat.st_nlink++;
    param = entry_param(node);
  }
  unlock_names();
  if (node)
    fuse_reply_entry(req, &param);
  else
    fuse_reply_err(req, error);
}

static void do_unlink(fuse_req_t req, fuse_ino_t parent, const char *name) {
  lock_names();
  struct entry **at = find(node_of(parent), name);
  int error = *at ? 0 : ENOENT;
  if (!error) {
    struct node *node = (*at)->node;
    erase(at);
    node->stat.st_nlink--;
    free_if_unused(node);
  }
  unlock_names();
  fuse_reply_err(req, error);
}

static void do_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name) {
  lock_names();
  struct entry **at = find(node_of(parent), name);
  int error = !*at ? ENOENT : (*at)->node->entries ? ENOTEMPTY : 0;
  if (!error) {
    struct node *node = (*at)->node;
    erase(at);
    node->stat.st_nlink = 0;
    node_of(parent)->stat.st_nlink--;
    free_if_unused(node);
  }
  unlock_names();
  fuse_reply_err(req, error);
}

static int rename_locked(fuse_ino_t parent, const char *name, fuse_ino_t new_parent, const char *new_name,
                         unsigned flags) {
  struct entry **source = find(node_of(parent), name);
  struct entry **target = find(node_of(new_parent), new_name);
  if (flags) return EINVAL;
  if (!*source) return ENOENT;
  struct node *node = (*source)->node;
  if (*target) {
    struct node *replaced = (*target)->node;
    if (S_ISDIR(replaced->stat.st_mode)) return EEXIST;
    if (replaced == node) return 0;
    erase(target);
    replaced->stat.st_nlink--;
    free_if_unused(replaced);
  }
  erase(find(node_of(parent), name));
  node->stat.st_ctim = now();
  return insert(node_of(new_parent), new_name, node) ? 0 : ENOMEM;
}

static void do_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
                      const char *new_name, unsigned flags) {
  lock_names();
  int error = rename_locked(parent, name, new_parent, new_name, flags);
  unlock_names();
  fuse_reply_err(req, error);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *file) {
  (void)ino;
  set_flags(file);
  fuse_reply_open(req, file);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *file) {
  (void)file;
  struct node *node = node_of(ino);
  pthread_rwlock_rdlock(&node->lock);
  size_t left = offset < node->stat.st_size ? (size_t)(node->stat.st_size - offset) : 0;
  fuse_reply_buf(req, left ? node->data + offset : NULL, size < left ? size : left);
  pthread_rwlock_unlock(&node->lock);
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *bytes, size_t size, off_t offset,
                     struct fuse_file_info *file) {
  (void)file;
  struct node *node = node_of(ino);
  off_t end = offset + (off_t)size;
  pthread_rwlock_wrlock(&node->lock);
  int error = reserve(node, (size_t)end);
  if (!error) {
    memcpy(node->data + offset, bytes, size);
    if (end > node->stat.st_size) set_size(node, end);
    node->stat.st_mtim = node->stat.st_ctim = now();
  }
  pthread_rwlock_unlock(&node->lock);
  if (error)
    fuse_reply_err(req, error);
  else
    fuse_reply_write(req, size);
}

static void do_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *file) {
  (void)ino;
  struct cursor *cursor = calloc(1, sizeof *cursor);
  if (!cursor) {
    fuse_reply_err(req, ENOMEM);
    return;
  }
  file->fh = (uint64_t)(uintptr_t)cursor;
  file->cache_readdir = 1;
  file->keep_cache = 1;
  fuse_reply_open(req, file);
}

static void do_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *file) {
  (void)ino;
  free((struct cursor *)(uintptr_t)file->fh);
  fuse_reply_err(req, 0);
}

static void reply_entries(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                          struct fuse_file_info *file, bool plus) {
  struct node *directory = node_of(ino);
  struct cursor *cursor = (struct cursor *)(uintptr_t)file->fh;
  char *reply = malloc(size);
  if (!reply) {
    fuse_reply_err(req, ENOMEM);
    return;
  }
  size_t used = 0;
  lock_names();
  struct entry *at = directory->entries;
  if (offset != 0 && cursor->cookie == offset && cursor->removals == directory->removals)
    at = cursor->next;
  else
    while (offset != 0 && at && at->cookie >= offset)
      at = at->next_in_directory;
  for (; at; at = at->next_in_directory) {
    size_t need;
    if (plus) {
      struct fuse_entry_param param = entry_param(at->node);
      need = fuse_add_direntry_plus(req, reply + used, size - used, at->name, &param, at->cookie);
      if (need > size - used) at->node->lookups--;
    } else {
      need = fuse_add_direntry(req, reply + used, size - used, at->name, &at->node->stat, at->cookie);
    }
    if (need > size - used) break;
    used += need;
    offset = at->cookie;
  }
  *cursor = (struct cursor){offset, at, directory->removals};
  unlock_names();
  fuse_reply_buf(req, reply, used);
  free(reply);
}

static void do_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                       struct fuse_file_info *file) {
  reply_entries(req, ino, size, offset, file, false);
}

static void do_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                           struct fuse_file_info *file) {
  reply_entries(req, ino, size, offset, file, true);
}

static void do_statfs(fuse_req_t req, fuse_ino_t ino) {
  (void)ino;
  struct statvfs reply = {.f_bsize = BLOCK,
                          .f_frsize = BLOCK,
                          .f_blocks = 1 << 20,
                          .f_bfree = 1 << 20,
                          .f_bavail = 1 << 20,
                          .f_namemax = NAME_MAX};
  fuse_reply_statfs(req, &reply);
}

static void do_init(void *user, struct fuse_conn_info *connection) {
  (void)user;
  if (cached) connection->want |= connection->capable & FUSE_CAP_WRITEBACK_CACHE;
}

static const struct fuse_lowlevel_ops operations = {
    .init = do_init,
    .lookup = do_lookup,
    .forget = do_forget,
    .forget_multi = do_forget_multi,
    .getattr = do_getattr,
    .setattr = do_setattr,
    .create = do_create,
    .mkdir = do_mkdir,
    .unlink = do_unlink,
    .rmdir = do_rmdir,
    .rename = do_rename,
    .open = do_open,
    .read = do_read,
    .write = do_write,
    .opendir = do_opendir,
    .releasedir = do_releasedir,
    .readdir = do_readdir,
    .readdirplus = do_readdirplus,
    .statfs = do_statfs,
};

int main(int argc, char **argv) {
  bool threads = false;
  for (int index = 2; index < argc; index++) {
    threads |= strcmp(argv[index], "threads") == 0;
    cached |= strcmp(argv[index], "cached") == 0;
  }
  if (argc != 2 + threads + cached) {
    fprintf(stderr, "usage: memfs_ll MOUNTPOINT [threads] [cached]\n");
    return 2;
  }
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  init_node(&root, S_IFDIR | 0755, getuid(), getgid());
  /* Only root may ask for allow_other, and mapdirect's mounts by root have it too. */
  char options[128];
  snprintf(options, sizeof options, "fsname=memfs_ll,default_permissions%s",
           getuid() == 0 ? ",allow_other" : "");
  char *words[] = {argv[0], "-o", options};
  struct fuse_args args = FUSE_ARGS_INIT(3, words);
  struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, NULL);
  if (!session) return 1;
  int failed = 1;
  if (fuse_set_signal_handlers(session) == 0) {
    if (fuse_session_mount(session, argv[1]) == 0) {
      struct fuse_loop_config *config = fuse_loop_cfg_create();
      fuse_loop_cfg_set_clone_fd(config, 1);
      fuse_loop_cfg_set_idle_threads(config, 10);
      failed = threads ? fuse_session_loop_mt(session, config) : fuse_session_loop(session);
      fuse_loop_cfg_destroy(config);
      fuse_session_unmount(session);
    }
    fuse_remove_signal_handlers(session);
  }
  fuse_session_destroy(session);
  fuse_opt_free_args(&args);
  return failed ? 1 : 0;
}
