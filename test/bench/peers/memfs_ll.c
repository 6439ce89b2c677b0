/*
 * A peer: an in-memory file system in C on libfuse 3's low-level interface, one thread.
 *
 *   memfs_ll MOUNTPOINT
 *
 * Nodes are addressed by pointer (the kernel holds a count of look-ups on each), names are in one hash table
 * keyed by directory and name, each file is one allocation that grows by doubling. The process ends with the
 * one that started it.
 */
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fuse_lowlevel.h>
#include <limits.h>
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

enum { BUCKETS = 1 << 16, BLOCK = 4096 };
static const double FOREVER_SEC = 3600;

struct node {
  struct stat stat;
  char *data; /* bytes beyond the size are zero, up to capacity */
  size_t capacity;
  uint64_t lookups;
  struct entry *entries; /* of a directory */
};

struct entry {
  struct entry *next_in_bucket;
  struct entry **link_in_directory;
  struct entry *next_in_directory;
  struct node *directory;
  struct node *node;
  char name[];
};

static struct entry *buckets[BUCKETS];
static struct node root;
static ino_t last_ino;

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

static struct fuse_entry_param entry_param(struct node *node) {
  node->lookups++;
  return (struct fuse_entry_param){
      .ino = ino_of(node), .attr = node->stat, .attr_timeout = FOREVER_SEC, .entry_timeout = FOREVER_SEC};
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
  struct entry *entry = *find(node_of(parent), name);
  struct fuse_entry_param param = {.entry_timeout = FOREVER_SEC};
  if (entry) param = entry_param(entry->node);
  fuse_reply_entry(req, &param);
}

static void do_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count) {
  struct node *node = node_of(ino);
  node->lookups -= count;
  free_if_unused(node);
  fuse_reply_none(req);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *file) {
  (void)file;
  fuse_reply_attr(req, &node_of(ino)->stat, FOREVER_SEC);
}

static void do_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *wanted, int set,
                       struct fuse_file_info *file) {
  (void)file;
  struct node *node = node_of(ino);
  struct timespec time = now();
  if (set & FUSE_SET_ATTR_SIZE) {
    size_t size = (size_t)wanted->st_size;
    int error = reserve(node, size);
    if (error) {
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
  fuse_reply_attr(req, &node->stat, FOREVER_SEC);
}

static struct node *make(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode) {
  if (*find(node_of(parent), name)) {
    fuse_reply_err(req, EEXIST);
    return NULL;
  }
  struct node *node = calloc(1, sizeof *node);
  if (node) init_node(node, mode, fuse_req_ctx(req)->uid, fuse_req_ctx(req)->gid);
  if (!node || !insert(node_of(parent), name, node)) {
    free(node);
    fuse_reply_err(req, ENOMEM);
    return NULL;
  }
  return node;
}

static void do_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *file) {
  struct node *node = make(req, parent, name, mode);
  if (!node) return;
  struct fuse_entry_param param = entry_param(node);
  file->direct_io = 1;
  fuse_reply_create(req, &param, file);
}

static void do_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode) {
  struct node *node = make(req, parent, name, mode | S_IFDIR);
  if (!node) return;
  node_of(parent)->stat.st_nlink++;
  struct fuse_entry_param param = entry_param(node);
  fuse_reply_entry(req, &param);
}

static void do_unlink(fuse_req_t req, fuse_ino_t parent, const char *name) {
  struct entry **at = find(node_of(parent), name);
  if (!*at) {
    fuse_reply_err(req, ENOENT);
    return;
  }
  struct node *node = (*at)->node;
  erase(at);
  node->stat.st_nlink--;
  free_if_unused(node);
  fuse_reply_err(req, 0);
}

static void do_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name) {
  struct entry **at = find(node_of(parent), name);
  if (!*at || (*at)->node->entries) {
    fuse_reply_err(req, *at ? ENOTEMPTY : ENOENT);
    return;
  }
  struct node *node = (*at)->node;
  erase(at);
  node->stat.st_nlink = 0;
  node_of(parent)->stat.st_nlink--;
  free_if_unused(node);
  fuse_reply_err(req, 0);
}

static void do_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
                      const char *new_name, unsigned flags) {
  struct entry **source = find(node_of(parent), name);
  struct entry **target = find(node_of(new_parent), new_name);
  int error = flags ? EINVAL : !*source ? ENOENT : 0;
  if (!error && *target && S_ISDIR((*target)->node->stat.st_mode)) error = EEXIST;
  if (error) {
    fuse_reply_err(req, error);
    return;
  }
  struct node *node = (*source)->node;
  if (*target) {
    struct node *replaced = (*target)->node;
    erase(target);
    replaced->stat.st_nlink--;
    free_if_unused(replaced);
  }
  erase(find(node_of(parent), name));
  node->stat.st_ctim = now();
  fuse_reply_err(req, insert(node_of(new_parent), new_name, node) ? 0 : ENOMEM);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *file) {
  (void)ino;
  file->direct_io = 1;
  fuse_reply_open(req, file);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *file) {
  (void)file;
  struct node *node = node_of(ino);
  if (offset >= node->stat.st_size) {
    fuse_reply_buf(req, NULL, 0);
    return;
  }
  size_t left = (size_t)(node->stat.st_size - offset);
  fuse_reply_buf(req, node->data + offset, size < left ? size : left);
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *bytes, size_t size, off_t offset,
                     struct fuse_file_info *file) {
  (void)file;
  struct node *node = node_of(ino);
  off_t end = offset + (off_t)size;
  int error = reserve(node, (size_t)end);
  if (error) {
    fuse_reply_err(req, error);
    return;
  }
  memcpy(node->data + offset, bytes, size);
  if (end > node->stat.st_size) set_size(node, end);
  node->stat.st_mtim = node->stat.st_ctim = now();
  fuse_reply_write(req, size);
}

static void do_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                       struct fuse_file_info *file) {
  (void)file;
  char *reply = malloc(size);
  if (!reply) {
    fuse_reply_err(req, ENOMEM);
    return;
  }
  size_t used = 0;
  off_t index = 0;
  for (struct entry *at = node_of(ino)->entries; at; at = at->next_in_directory) {
    if (index++ < offset) continue;
    size_t need = fuse_add_direntry(req, reply + used, size - used, at->name, &at->node->stat, index);
    if (need > size - used) break;
    used += need;
  }
  fuse_reply_buf(req, reply, used);
  free(reply);
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

static const struct fuse_lowlevel_ops operations = {
    .lookup = do_lookup,
    .forget = do_forget,
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
    .readdir = do_readdir,
    .statfs = do_statfs,
};

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: memfs_ll MOUNTPOINT\n");
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
      failed = fuse_session_loop(session);
      fuse_session_unmount(session);
    }
    fuse_remove_signal_handlers(session);
  }
  fuse_session_destroy(session);
  fuse_opt_free_args(&args);
  return failed ? 1 : 0;
}
