/* What the keeper's files share: bounds, exit codes, messages, the clock and what was inherited. */
#ifndef CUSTODY_KEEPER_H
#define CUSTODY_KEEPER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* docs/spec/keeper.md, "Exit codes of `custody run`". */
enum {
  EXIT_USAGE = 2,
  EXIT_STALE = 122,
  EXIT_REVOKED = 123,
  EXIT_CEILING = 124,
  EXIT_CUSTODY = 125,
  EXIT_CANNOT_EXECUTE = 126,
  EXIT_NOT_FOUND = 127,
};

#define ENV_FILE_BYTES_MAX 65536
#define MANIFEST_BYTES_MAX 65536
#define REASON_BYTES_MAX 1024
#define GRANT_BYTES_MAX 64
#define PATTERN_BYTES_MAX 256
#define TTL_MS_MAX (INT64_C(365) * 24 * 3600 * 1000)
#define GRACE_MS_MAX (INT64_C(24) * 3600 * 1000)
#ifndef ANSWER_MS_MAX /* the tests have less patience */
#define ANSWER_MS_MAX 30000
#endif
#define NEVER INT64_MAX

/* say.c: one line on stderr, after "custody: ", in one write. Control bytes come out as '?'. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);
/* The same, indented under the line before it. */
__attribute__((format(printf, 1, 2))) void say_more(const char *format, ...);
/* Writes '?' over every control byte: names and lines go to terminals and into line formats. */
void blank_controls(char *text, size_t bytes);

/* clock.c: milliseconds and microseconds on the host's boot-time clock. */
int64_t boot_ms(void);
int64_t boot_us(void);
/* Makes the one alarm of this process; false, with errno, when the kernel has none. */
bool alarm_open(void);
/* SIGCONT to this process at that instant, and every second after it until it is set again. */
void alarm_at(int64_t at_boot_ms);

/* What the child must find as if the keeper had never been there. */
struct inherited {
  sigset_t mask;
  struct sigaction sigchld;
};

/* `custody run`, its arguments parsed. */
struct request {
  const char *socket_path; /* --socket or NULL */
  const char *reason;
  int64_t ttl_ms; /* 0: not given */
  const char *on_exit; /* "kill", "wait" or NULL */
  bool clean, scrub;
  /* `env`, `file`, `fifo` and `fd` with NAME=REF, `keep` and `drop` with a pattern, in order. */
  struct wish {
    const char *key;
    char *value;
  } *wishes;
  size_t wish_count;
  char **env_files; /* paths */
  size_t env_file_count;
  const char *manifest; /* --manifest or NULL: custody.json where there is one */
  bool no_manifest;
  char **command; /* NULL-terminated */
};

/* What the request said of what the caller's system and folder hold. */
struct said {
  const char *place; /* where files of this run may stand, or NULL */
  bool manifest;
};
/* request.c: puts the request together; 0 or the exit code. */
int put_request(const struct request *request, struct said *said);
/* run.c: one run from request to exit code. */
int run(const struct request *request);
struct process;
/* sweep.c: finds and ends every process that holds the grant's marker, and, where their pids are not 0, keeper and
   root with every descendant of each; then removes the grant's folder at `place`, where that is not NULL. */
int sweep(const char *grant, int64_t grace_ms, const struct process *keeper, const struct process *root, const char *place);
/* scan.c: finds every process that holds the marker of a run read from stdin and is not in its tree. */
int scan(void);
/* Stands still for that long, with a daemon beside it. Returns an exit code. */
int canary(int64_t seconds);

#endif
