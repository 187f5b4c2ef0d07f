/* Owns what is the own way of macOS with the socket to the agent. */
#include "keeper.h"

#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* No flag of socket(2) says this. A child that is forked meanwhile cannot be: the keeper has one thread. */
int socket_open(void) {
  int fd = socket(AF_UNIX, SOCK_STREAM, 0), on = 1;
  if (fd < 0) return -1;
  bool good = fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0 &&
              setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on) == 0;
  if (good) return fd;
  int fault = errno;
  close(fd);
  errno = fault;
  return -1;
}

ssize_t socket_send(int fd, const void *bytes, size_t count) { return send(fd, bytes, count, 0); }

bool socket_peer(int fd, uid_t *uid) {
  gid_t gid;
  return getpeereid(fd, uid, &gid) == 0;
}

void socket_lock(void *bytes, size_t count) { (void)mlock(bytes, count); }
