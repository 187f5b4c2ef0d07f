/* Owns the credentials that are not in the environment: the files, fifos and descriptors of one run. */
#include "keeper.h"

#include "deliver.h"
#include "memory.h"
#include "vault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OURS_FROM 100 /* above what a shell uses, so that no number of the child is in our way */

static struct delivery {
  char *entry; /* NAME=PATH or NAME=NUMBER */
  int fd;      /* of an unread fifo, or of what the child inherits; else -1 */
  int number;  /* at which the child finds it */
  int watch;   /* of that fifo */
} made[DELIVERIES_MAX];
static size_t made_count;
static int folder = -1;
static const char *run_place, *run_grant;

char *deliver_entry(size_t at) { return at < made_count ? made[at].entry : NULL; }
int deliver_watch(void) { return fifo_watch(); }

static int digit(char byte) {
  if (byte >= 'A' && byte <= 'Z') return byte - 'A';
  if (byte >= 'a' && byte <= 'z') return byte - 'a' + 26;
  if (byte >= '0' && byte <= '9') return byte - '0' + 52;
  return byte == '+' ? 62 : byte == '/' ? 63 : -1;
}

/* Base64 (RFC 4648) to bytes, where it stands: the value has one place, and link.c wipes it. */
static bool decode(char *text, size_t *bytes) {
  size_t length = strlen(text), out = 0;
  if (length % 4 != 0) return false;
  while (length > 0 && text[length - 1] == '=') length--;
  unsigned held = 0;
  int held_bits = 0;
  for (size_t i = 0; i < length; i++) {
    int six = digit(text[i]);
    if (six < 0) return false;
    held = (held << 6 | (unsigned)six) & 0xffff;
    held_bits += 6;
    if (held_bits < 8) continue;
    held_bits -= 8;
    text[out++] = (char)(held >> held_bits & 0xff);
  }
  *bytes = out;
  return true;
}

bool vault_put(int fd, const char *value, size_t bytes) {
  while (bytes > 0) {
    ssize_t wrote = write(fd, value, bytes);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return false;
    value += wrote;
    bytes -= (size_t)wrote;
  }
  return true;
}

static bool make_file(const char *name, const char *value, size_t bytes) {
  int fd = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  bool good = fchmod(fd, 0600) == 0 && vault_put(fd, value, bytes); /* the mask of the caller may take more away */
  int fault = errno;
  close(fd);
  errno = fault;
  return good;
}

static bool make_fifo(struct delivery *one, const char *name, const char *path, const char *value, size_t bytes) {
  mode_t mask = umask(077);
  int fault = mkfifoat(folder, name, 0600) == 0 ? 0 : errno;
  umask(mask);
  errno = fault;
  if (fault != 0) return false;
  /* Open both ways, the pipe can be filled before anybody reads, and a reader does not wait for us to come. */
  one->fd = openat(folder, name, O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
  if (one->fd < 0) return false;
  fifo_size(one->fd, bytes);
  if (!vault_put(one->fd, value, bytes)) return false;
  one->watch = fifo_note(one->fd, path);
  return one->watch >= 0;
}

/* The lowest number from 3 that the child would not have: as a shell would choose it. */
static int free_number(void) {
  for (int number = 3; number < OURS_FROM; number++) {
    int flags = fcntl(number, F_GETFD);
    bool taken = flags >= 0 && !(flags & FD_CLOEXEC); /* ours are all closed by exec */
    for (size_t i = 0; i < made_count; i++) taken = taken || made[i].number == number;
    if (!taken) return number;
  }
  return -1;
}

static bool make_descriptor(struct delivery *one, const char *value, size_t bytes) {
  int fd = vault_unnamed(value, bytes);
  if (fd < 0) return false;
  one->fd = fcntl(fd, F_DUPFD_CLOEXEC, OURS_FROM);
  int fault = errno;
  close(fd);
  errno = fault;
  one->number = one->fd < 0 ? -1 : free_number();
  return one->fd >= 0 && one->number >= 0;
}

static bool make_one(struct delivery *one, const char *key, char *name, char *value, size_t bytes) {
  char text[PLACE_BYTES_MAX + GRANT_BYTES_MAX + 2 * 256 + 32];
  *one = (struct delivery){.fd = -1, .number = -1, .watch = -1};
  bool good;
  if (strcmp(key, "fd") == 0) {
    good = make_descriptor(one, value, bytes);
    snprintf(text, sizeof text, "%s=%d", name, one->number);
  } else {
    if (folder < 0) folder = memory_make(run_place, run_grant);
    int prefix = (int)strlen(name) + 1;
    int wanted = snprintf(text, sizeof text, "%s=%s/custody-%s/%s", name, run_place, run_grant, name);
    if (wanted < 0 || (size_t)wanted >= sizeof text) return errno = ENAMETOOLONG, false;
    good = folder >= 0 && (strcmp(key, "file") == 0 ? make_file(name, value, bytes)
                                                     : make_fifo(one, name, text + prefix, value, bytes));
  }
  if (good) one->entry = strdup(text);
  return good && one->entry != NULL;
}

bool deliver_make(const struct frame *granted, const char *place, const char *grant) {
  static const char *const keys[] = {"file", "fifo", "fd"};
  run_place = place;
  run_grant = grant;
  size_t cursor = 0;
  struct field field;
  while (frame_next(granted, &cursor, &field)) {
    const char *key = NULL;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
      if (field_is(&field, keys[i])) key = keys[i];
    }
    if (key == NULL) continue;
    char *name = field.value, *value = strchr(name, '=');
    size_t bytes = 0;
    bool sound = value != NULL && value > name && memchr(name, '/', (size_t)(value - name)) == NULL &&
                 decode(value + 1, &bytes) && made_count < DELIVERIES_MAX &&
                 (place != NULL || strcmp(key, "fd") == 0);
    if (!sound) {
      say("the agent broke the keeper protocol: a %s that cannot be delivered", key);
      deliver_clear();
      return false;
    }
    *value = '\0';
    bool good = make_one(&made[made_count], key, name, value + 1, bytes);
    int fault = errno;
    *value = '=';
    memset(value + 1, '.', bytes); /* wiped, without a NUL: the frame will be walked again */
    made_count++;
    if (good) continue;
    say("cannot deliver %.*s as %s: %s", (int)(value - name), name, key, strerror(fault));
    deliver_clear();
    return false;
  }
  return true;
}

void deliver_pass(void) {
  for (size_t i = 0; i < made_count; i++) {
    if (made[i].number >= 0) dup2(made[i].fd, made[i].number); /* without the flag that closes it on exec */
  }
}

static void shut(struct delivery *one) {
  if (one->fd >= 0) close(one->fd);
  one->fd = -1;
}

void deliver_passed(void) {
  for (size_t i = 0; i < made_count; i++) {
    if (made[i].number >= 0) shut(&made[i]);
  }
}

static void opened(int note) {
  for (size_t i = 0; i < made_count; i++) {
    struct delivery *one = &made[i];
    if (one->watch != note || one->fd < 0) continue;
    const char *name = strrchr(one->entry, '/') + 1;
    unlinkat(folder, name, 0);
    shut(one); /* the last writer: the reader sees the end after the value */
  }
}

void deliver_opened(void) { fifo_opened(opened); }

void deliver_clear(void) {
  for (size_t i = 0; i < made_count; i++) {
    shut(&made[i]);
    free(made[i].entry);
    made[i].entry = NULL;
  }
  made_count = 0;
  fifo_unwatch();
  if (folder >= 0) close(folder);
  if (folder >= 0) memory_remove(run_place, run_grant);
  folder = -1;
}
