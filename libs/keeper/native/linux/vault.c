/* Owns where values stand on Linux, a file system that is memory, and the watch of the fifos there. */
#include "keeper.h"

#include "memory.h"
#include "vault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define TMPFS_TYPE 0x01021994 /* statfs(2); <linux/magic.h> is not everywhere */
#define RAMFS_TYPE 0x858458f6
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

static int watch = -1;

bool vault_holds(int folder) {
  struct statfs about;
  if (fstatfs(folder, &about) != 0) return false;
  return (unsigned long)about.f_type == TMPFS_TYPE || (unsigned long)about.f_type == RAMFS_TYPE;
}

static bool usable(const char *place) {
  size_t bytes = place == NULL ? 0 : strlen(place);
  if (bytes == 0 || bytes > PLACE_BYTES_MAX || place[0] != '/') return false;
  int fd = open(place, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return false;
  bool good = vault_holds(fd) && faccessat(fd, ".", W_OK | X_OK, AT_EACCESS) == 0;
  close(fd);
  return good;
}

const char *vault_place(void) {
  const char *runtime = getenv("XDG_RUNTIME_DIR");
  if (usable(runtime)) return runtime;
  return usable("/dev/shm") ? "/dev/shm" : NULL;
}

int vault_unnamed(const char *value, size_t bytes) {
  /* By number: the wrapper is younger than some libcs. NOEXEC_SEAL is younger than some kernels. */
  int fd = (int)syscall(SYS_memfd_create, "custody", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
  if (fd < 0) fd = (int)syscall(SYS_memfd_create, "custody", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -1;
  bool good = vault_put(fd, value, bytes) && lseek(fd, 0, SEEK_SET) == 0 &&
              fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0;
  if (good) return fd;
  int fault = errno;
  close(fd);
  errno = fault;
  return -1;
}

void fifo_size(int fd, size_t bytes) {
  if (bytes > 4096) fcntl(fd, F_SETPIPE_SZ, (int)bytes); /* a user with many pipes is given small ones */
}

/* The kernel says when it is opened; our own opening came before the watch. */
int fifo_note(int fd, const char *path) {
  (void)fd;
  if (watch < 0) watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  return watch < 0 ? -1 : inotify_add_watch(watch, path, IN_OPEN);
}

int fifo_watch(void) { return watch; }

void fifo_opened(void (*opened)(int note)) {
  _Alignas(struct inotify_event) char bytes[4096];
  ssize_t got = read(watch, bytes, sizeof bytes);
  for (ssize_t at = 0; at < got;) {
    const struct inotify_event *event = (const struct inotify_event *)(bytes + at);
    at += (ssize_t)(sizeof *event + event->len);
    opened(event->wd);
  }
}

void fifo_unwatch(void) {
  if (watch >= 0) close(watch);
  watch = -1;
}
