#include "fuse/mount.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

namespace mapdirect {

int mountFuse(const char *source, const char *mountpoint, const char *type, const char *options,
              unsigned long flags, const char *&step) {
  step = "open /dev/fuse";
  const int device = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (device < 0) return -errno;
  std::string data = "fd=" + std::to_string(device);
  if (options[0] != '\0') data.append(",").append(options);
  step = "mount";
  if (mount(source, mountpoint, type, flags, data.c_str()) != 0) {
    const int failure = errno;
    close(device);
    return -failure;
  }
  return device;
}

int unmountFuse(const char *mountpoint, bool lazy) {
  // Not following a link keeps a user who swaps the mount point for one from having something else unmounted.
  return umount2(mountpoint, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) != 0 ? -errno : 0;
}

int makeSocketPair(int sockets[2]) {
  return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0 ? -errno : 0;
}

int receiveDescriptor(int socket) {
  char byte;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t count;
  do {
    count = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (count < 0 && errno == EINTR);
  if (count < 0) return -errno;
  const cmsghdr *header = count == 0 ? nullptr : CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int)))
    return -ENODATA;
  int descriptor;
  memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
  return descriptor;
}

} // namespace mapdirect
