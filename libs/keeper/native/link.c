/* Owns the socket to the agent and the one buffer that ever holds credentials. */
#include "keeper.h"
#include "link.h"
#include "socket.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LOCKED_BYTES_FIRST 65536 /* what RLIMIT_MEMLOCK allows everywhere */
#define CONNECT_TRIES_MAX 100
#define CONNECT_PAUSE_MS 10

static int fd = -1;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static bool address_named; /* by the caller, who answers for who listens there */
/* Static and page-aligned: credentials are parsed and handed to execve where they were received,
   so there is no second copy to wipe. */
static _Alignas(4096) unsigned char in[FRAME_BYTES_MAX];
static size_t in_from, in_to, in_locked;
static bool in_ended;

int link_fd(void) { return fd; }
const char *link_path(void) { return address.sun_path; }

static void in_lock(size_t bytes) {
  if (bytes <= in_locked) return;
  socket_lock(in, bytes);
  in_locked = bytes;
}

void link_close(void) {
  if (fd >= 0) close(fd);
  fd = -1;
  if (in_to > in_from) explicit_bzero(in + in_from, in_to - in_from);
  in_from = in_to = 0;
}

int link_again(void) {
  link_close();
  fd = socket_open();
  if (fd < 0) return errno;
  int fault = 0;
  /* EAGAIN here means that the listener's backlog is full, as when many runs start at once. */
  for (int tries = 0; connect(fd, (struct sockaddr *)&address, sizeof address) != 0; tries++) {
    fault = errno;
    if (fault != EAGAIN || tries == CONNECT_TRIES_MAX) break;
    poll(NULL, 0, CONNECT_PAUSE_MS);
    fault = 0;
  }
  if (fault == 0 && !address_named) {
    /* Anyone may have put a socket at a well-known path: the kernel says who listens there. */
    uid_t peer;
    if (!socket_peer(fd, &peer)) fault = errno;
    else if (peer != 0 && peer != geteuid()) fault = EPERM;
  }
  if (fault != 0) link_close();
  in_ended = false;
  return fault;
}

static int try_path(const char *path, bool named) {
  size_t bytes = strlen(path), room = sizeof address.sun_path - 1;
  memcpy(address.sun_path, path, bytes < room ? bytes : room);
  address.sun_path[bytes < room ? bytes : room] = '\0';
  address_named = named;
  return bytes > room ? ENAMETOOLONG : link_again();
}

int link_open(const char *path) {
  if (path == NULL || *path == '\0') path = getenv("CUSTODY_SOCKET");
  if (path != NULL && *path != '\0') return try_path(path, true);
  const char *runtime = getenv("XDG_RUNTIME_DIR");
  if (runtime != NULL && *runtime == '/') {
    char own[sizeof address.sun_path];
    int bytes = snprintf(own, sizeof own, "%s/custody/agent.sock", runtime);
    if (bytes > 0 && (size_t)bytes < sizeof own) {
      int fault = try_path(own, false);
      if (fault != ENOENT && fault != ENOTDIR) return fault;
    }
  }
  return try_path("/run/custody/agent.sock", false);
}

bool link_send(int64_t wait_ms_max) {
  size_t left = 0;
  const unsigned char *at = frame_done(&left);
  int64_t until_boot_ms = NEVER;
  while (fd >= 0 && at != NULL && left > 0) {
    ssize_t sent = socket_send(fd, at, left);
    if (sent >= 0) {
      at += sent;
      left -= (size_t)sent;
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) break;
    int64_t now_boot_ms = boot_ms();
    if (until_boot_ms == NEVER) until_boot_ms = now_boot_ms + wait_ms_max;
    if (now_boot_ms >= until_boot_ms) break;
    struct pollfd room = {.fd = fd, .events = POLLOUT};
    poll(&room, 1, (int)(until_boot_ms - now_boot_ms));
  }
  frame_wipe();
  if (fd >= 0 && at != NULL && left == 0) return true;
  link_close();
  return false;
}

void link_receive(void) {
  if (fd < 0) return;
  if (in_from > 0) {
    size_t bytes = in_to - in_from;
    memmove(in, in + in_from, bytes);
    explicit_bzero(in + bytes, in_from); /* what memmove left behind */
    in_from = 0;
    in_to = bytes;
  }
  in_lock(in_to < LOCKED_BYTES_FIRST / 2 ? LOCKED_BYTES_FIRST : sizeof in);
  ssize_t got = recv(fd, in + in_to, sizeof in - in_to, 0);
  if (got > 0) in_to += (size_t)got;
  else if (got == 0 || (errno != EAGAIN && errno != EINTR)) in_ended = true;
}

enum link_news link_next(struct frame *frame, enum frame_fault *fault) {
  if (fd < 0) return LINK_LOST;
  *fault = frame_parse(in + in_from, in_to - in_from, frame);
  if (*fault == FRAME_OK) return LINK_FRAME;
  if (*fault != FRAME_SHORT) return LINK_BROKEN;
  return in_ended ? LINK_LOST : LINK_QUIET;
}

void link_drop(const struct frame *frame) {
  explicit_bzero(in + in_from, frame->bytes);
  in_from += frame->bytes;
}
