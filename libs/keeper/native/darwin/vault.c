/* Owns where values stand on macOS, the temporary folder of the user, and the watch of the fifos there. */
#include "keeper.h"

#include "memory.h"
#include "vault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/event.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIFOS_MAX 64
#define LOOK_MS 20
#define LOOK 1 /* ident of that timer */

static int queue = -1;
static int fifos[FIFOS_MAX];
static int fifo_count;

/* There is no file system that is memory and that a user may write to. What comes nearest is the folder under
   /var/folders that the system makes for each user, mode 0700, and empties: on disk, as far as the cache writes it. */
const char *vault_place(void) {
  static char place[PLACE_BYTES_MAX + 1];
  size_t bytes = confstr(_CS_DARWIN_USER_TEMP_DIR, place, sizeof place);
  if (bytes == 0 || bytes > sizeof place || place[0] != '/') return NULL;
  for (size_t last = strlen(place) - 1; last > 0 && place[last] == '/'; last--) place[last] = '\0';
  return access(place, W_OK | X_OK) == 0 ? place : NULL;
}

bool vault_holds(int folder) {
  struct stat about;
  return fstat(folder, &about) == 0 && (about.st_mode & 077) == 0; /* as memory_make makes it */
}

int vault_unnamed(const char *value, size_t bytes) {
  const char *place = vault_place();
  char path[PLACE_BYTES_MAX + sizeof "/custody.XXXXXX"];
  if (place == NULL) return errno = ENOENT, -1;
  strcpy(path, place);
  strcat(path, "/custody.XXXXXX");
  int writer = mkstemp(path); /* 0600 */
  if (writer < 0) return -1;
  /* Opened again, to read alone, before the name goes: whoever inherits that cannot write through it. */
  int reader = vault_put(writer, value, bytes) ? open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
  int fault = errno;
  unlink(path);
  close(writer);
  errno = fault;
  return reader;
}

void fifo_size(int fd, size_t bytes) { (void)fd, (void)bytes; } /* as large as it is: what does not fit, some 8 KiB, is refused */

/* Nothing tells here that somebody opens a fifo. What can be seen, every LOOK_MS, is that it has been read empty; of
   one that was empty from the start not even that. */
int fifo_note(int fd, const char *path) {
  (void)path;
  int bytes = 0;
  if (ioctl(fd, FIONREAD, &bytes) != 0 || bytes == 0) return errno = ENOTSUP, -1;
  if (fifo_count == FIFOS_MAX) return errno = ENFILE, -1;
  if (queue < 0) {
    struct kevent change;
    EV_SET(&change, LOOK, EVFILT_TIMER, EV_ADD, 0, LOOK_MS, NULL);
    if ((queue = kqueue()) < 0 || kevent(queue, &change, 1, NULL, 0, NULL) != 0) return -1;
  }
  fifos[fifo_count] = fd;
  return fifo_count++;
}

int fifo_watch(void) { return queue; }

void fifo_opened(void (*opened)(int note)) {
  struct kevent event;
  struct timespec now = {0};
  int left = 0;
  kevent(queue, NULL, 0, &event, 1, &now);
  for (int note = 0; note < fifo_count; note++) {
    int bytes = 0;
    if (fifos[note] < 0) continue;
    if (ioctl(fifos[note], FIONREAD, &bytes) == 0 && bytes > 0) {
      left++;
      continue;
    }
    fifos[note] = -1;
    opened(note);
  }
  if (left == 0) fifo_unwatch();
}

void fifo_unwatch(void) {
  if (queue >= 0) close(queue);
  queue = -1;
}
