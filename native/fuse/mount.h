// Getting and giving up a mount: mount(2) as root, or a descriptor passed on by fusermount3.
#pragma once

namespace mapdirect {

// Open /dev/fuse and mount it. Returns the descriptor or a negative errno; `step` then names what failed.
// `options` is the comma-separated list for the kernel, without `fd=`.
int mountFuse(const char *source, const char *mountpoint, const char *type, const char *options,
              unsigned long flags, const char *&step);
int unmountFuse(const char *mountpoint, bool lazy);

// Two connected stream sockets, closed on exec.
int makeSocketPair(int sockets[2]);
// The descriptor that one SCM_RIGHTS message carries; -ENODATA when the other side closed without sending
// one.
int receiveDescriptor(int socket);

} // namespace mapdirect
