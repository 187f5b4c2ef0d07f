/* Owns the least agent there can be: it grants every request at once, so that a bench measures the keeper alone.
   agent-least SOCKET CEILING_MS GRACE_MS; prints `up`. */
#include "frame.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define OPEN_MAX_LEAST 256

static unsigned char bytes[FRAME_BYTES_MAX];

static const char *ceiling_ms, *grace_ms;

static bool answer(int fd) {
  struct frame frame;
  size_t held = 0;
  while (frame_parse(bytes, held, &frame) != FRAME_OK) {
    ssize_t got = read(fd, bytes + held, sizeof bytes - held);
    if (got <= 0) return false;
    held += (size_t)got;
  }
  static int grants;
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  frame_begin("granted");
  frame_print("grant", "least-%d-%d", (int)getpid(), ++grants);
  frame_print("ceiling_boot_ms", "%lld", (long long)now.tv_sec * 1000 + atoll(ceiling_ms));
  frame_text("grace_ms", grace_ms);
  frame_text("env", "KEY=a-value-to-hold");
  size_t left = 0;
  const unsigned char *out = frame_done(&left);
  return write(fd, out, left) == (ssize_t)left;
}

int main(int count, char **words) {
  if (count != 4) return 2;
  ceiling_ms = words[2];
  grace_ms = words[3];
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, words[1], sizeof address.sun_path - 1);
  static struct pollfd open_fds[OPEN_MAX_LEAST];
  nfds_t open_count = 1;
  open_fds[0] = (struct pollfd){.fd = socket(AF_UNIX, SOCK_STREAM, 0), .events = POLLIN};
  if (bind(open_fds[0].fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(open_fds[0].fd, 128) != 0) {
    return 1;
  }
  puts("up");
  fflush(stdout);
  for (;;) {
    poll(open_fds, open_count, -1);
    for (nfds_t at = open_count; at-- > 1;) {
      if (open_fds[at].revents == 0 || read(open_fds[at].fd, bytes, sizeof bytes) > 0) continue;
      close(open_fds[at].fd);
      open_fds[at] = open_fds[--open_count];
    }
    if (open_fds[0].revents == 0 || open_count == OPEN_MAX_LEAST) continue;
    int fd = accept(open_fds[0].fd, NULL, NULL);
    if (fd >= 0 && answer(fd)) open_fds[open_count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    else if (fd >= 0) close(fd);
  }
}
