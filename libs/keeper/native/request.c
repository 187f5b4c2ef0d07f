/* Owns the request: the frame that asks the agent, from flags, files and the caller's environment. */
#include "keeper.h"

#include "containment.h"
#include "frame.h"
#include "vault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MANIFEST "custody.json"

/* Puts a file's bytes in the frame, from a descriptor that is closed. */
static bool put_file(int fd, const char *key, const char *flag, const char *path) {
  static char bytes[ENV_FILE_BYTES_MAX + 1];
  _Static_assert(MANIFEST_BYTES_MAX == ENV_FILE_BYTES_MAX, "one buffer for both");
  size_t held = 0;
  ssize_t got = 0;
  while (held < sizeof bytes && (got = read(fd, bytes + held, sizeof bytes - held)) > 0) held += (size_t)got;
  int fault = got < 0 ? errno : 0;
  close(fd);
  bool fits = held <= ENV_FILE_BYTES_MAX, text = memchr(bytes, 0, held) == NULL;
  if (fault != 0) say("%s %s: cannot read: %s", flag, path, strerror(fault));
  else if (!fits) say("%s %s: larger than %d bytes", flag, path, ENV_FILE_BYTES_MAX);
  else if (!text) say("%s %s: holds a NUL byte, so it is not text", flag, path);
  else frame_put(key, bytes, held);
  explicit_bzero(bytes, held); /* such files hold plain values too */
  return fault == 0 && fits && text;
}

static bool put_env_file(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (fd >= 0) return put_file(fd, "env_file", "--env-file", path);
  say("--env-file %s: cannot open: %s", path, strerror(errno));
  return false;
}

/* The manifest that was named, or the one of the working directory where there is one. */
static bool put_manifest(const struct request *request, bool *put) {
  const char *path = request->manifest == NULL ? MANIFEST : request->manifest;
  *put = false;
  if (request->no_manifest) return true;
  /* Not to wait for whoever might write to a fifo of that name. */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  struct stat about;
  if (fd < 0 && errno == ENOENT && request->manifest == NULL) return true;
  if (fd < 0 || fstat(fd, &about) != 0) {
    say("--manifest %s: cannot open: %s", path, strerror(errno));
    return false;
  }
  if (!S_ISREG(about.st_mode)) {
    close(fd);
    if (request->manifest == NULL) return true;
    say("--manifest %s: not a file", path);
    return false;
  }
  *put = true;
  frame_text("manifest_path", path);
  return put_file(fd, "manifest", "--manifest", path);
}

static bool wants_folder(const struct request *request) {
  for (size_t i = 0; i < request->wish_count; i++) {
    const char *key = request->wishes[i].key;
    if (strcmp(key, "file") == 0 || strcmp(key, "fifo") == 0) return true;
  }
  return false;
}

int put_request(const struct request *request, struct said *said) {
  char cwd[4096];
  if (getcwd(cwd, sizeof cwd) == NULL) {
    say("cannot read the working directory: %s; change to one that exists", strerror(errno));
    return EXIT_CUSTODY;
  }
  frame_begin("request");
  frame_text("version", "1");
  frame_text("cwd", cwd);
  frame_text("containment", containment.name);
  if (request->ttl_ms > 0) frame_print("ttl_ms", "%lld", (long long)request->ttl_ms);
  if (request->reason != NULL) frame_text("reason", request->reason);
  if (request->on_exit != NULL) frame_text("on_exit", request->on_exit);
  if (request->clean) frame_text("clean", "1");
  if (request->scrub) frame_text("scrub", "1");
  for (size_t i = 0; i < request->wish_count; i++) frame_text(request->wishes[i].key, request->wishes[i].value);
  for (size_t i = 0; i < request->env_file_count; i++) {
    if (!put_env_file(request->env_files[i])) return EXIT_USAGE;
  }
  if (!put_manifest(request, &said->manifest)) return EXIT_USAGE;
  said->place = said->manifest || wants_folder(request) ? vault_place() : NULL;
  if (said->place != NULL) frame_text("place", said->place);
  const char *parent = getenv("CUSTODY_GRANT"), *trace = getenv("TRACEPARENT");
  if (parent != NULL && *parent != '\0') frame_text("parent", parent);
  if (trace != NULL && *trace != '\0') frame_text("traceparent", trace);
  for (char **arg = request->command; *arg != NULL; arg++) frame_text("arg", *arg);
  size_t bytes;
  if (frame_done(&bytes) != NULL) return 0;
  say("the command line and the env files are more than one request holds (%d bytes, %d entries)",
      FRAME_PAYLOAD_BYTES_MAX, FRAME_FIELDS_MAX);
  return EXIT_USAGE;
}
