/* Owns what is Linux's own way with the socket to the agent. */
#include "keeper.h"

#include "socket.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

int socket_open(void) { return socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }

ssize_t socket_send(int fd, const void *bytes, size_t count) { return send(fd, bytes, count, MSG_NOSIGNAL); }

bool socket_peer(int fd, uid_t *uid) {
  struct ucred peer;
  socklen_t bytes = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) return false;
  *uid = peer.uid;
  return true;
}

/* ONFAULT, because mlock would make all of it resident. */
void socket_lock(void *bytes, size_t count) { (void)mlock2(bytes, count, MLOCK_ONFAULT); }
