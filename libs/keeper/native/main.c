/* Owns the command line: what is accepted, what is said about it, and the exit code. */
#include "keeper.h"

#include "frame.h"
#include "proc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help_run[] =
    "Usage: custody run [--env NAME=REF]... [--env-file FILE]... [--ttl 15m] [--reason TEXT] -- CMD [ARG...]\n"
    "\n"
    "Runs CMD with the credentials that policy grants it, and ends everything it started when the\n"
    "grant ends: at its ceiling, at a revocation, when this host is cut off, or when CMD itself exits.\n"
    "\n"
    "What CMD gets:\n"
    "  --env NAME=REF   put the value of REF (custody://prod/stripe/api_key) in CMD's environment as NAME\n"
    "  --env-file FILE  the same, for every reference in a .env file (at most 64 KiB)\n"
    "  --file NAME=REF  put it in a file in memory that is gone with the run, and the file's path in NAME\n"
    "  --fifo NAME=REF  the same, but it can be read once\n"
    "  --fd NAME=REF    pass it as an open file, and its number in NAME\n"
    "  --manifest FILE  read what CMD needs from FILE; without this, from custody.json in the working\n"
    "                   directory where there is one. Flags count more\n"
    "  --no-manifest    leave custody.json alone\n"
    "\n"
    "What CMD does not get:\n"
    "  --clean          nothing of this environment but PATH, HOME, LANG and their like\n"
    "  --keep PATTERN   with --clean: these too, such as 'CI_*'\n"
    "  --scrub          no variable that looks like a credential of a cloud, a CI system or an API\n"
    "  --scrub-also PATTERN  with --scrub: nor these\n"
    "\n"
    "How it ends:\n"
    "  --ttl DURATION   ask for at most this long: 500ms, 90s, 15m, 8h, 1d; policy may clamp it\n"
    "  --on-exit WHAT   when CMD has exited: `kill` what it left behind (TERM, then KILL), the default; or\n"
    "                   `wait` until that ends or the grant does\n"
    "\n"
    "  --reason TEXT    why, for the record and for whoever has to approve\n"
    "  --socket PATH    the agent's socket; else $CUSTODY_SOCKET, else $XDG_RUNTIME_DIR/custody/agent.sock\n"
    "                   where that exists, else /run/custody/agent.sock\n"
    "  --help, --version\n"
    "\n"
    "Exits as CMD does; 128+n when signal n ended it; 124 at the ceiling; 123 when revoked; 122 when this host\n"
    "was cut off for longer than policy allows; 125 when refused or custody failed; 126 when CMD cannot be\n"
    "executed; 127 when it is not found; 2 for a mistake in usage.\n";

static const char help_sweep[] =
    "Usage: custody-keeper sweep GRANT [--grace-ms N] [--keeper PID:START_TICKS] [--root PID:START_TICKS]\n"
    "                            [--place FOLDER]\n"
    "\n"
    "Finds every process that was started with CUSTODY_GRANT=GRANT and every descendant of one, and kills\n"
    "them until none is left: at once, or N ms after a TERM. Prints one line a process, `pid ppid start_ticks\n"
    "how name`, and then `empty BOOT_MS`. Exits 0 when empty, 1 when something could not be killed.\n"
    "\n"
    "  --keeper PID:START_TICKS  that keeper ends too, and so does every descendant of it\n"
    "  --root PID:START_TICKS    so do the root of the run and every descendant of that\n"
    "  --place FOLDER            then the files of the run are removed from FOLDER\n";

static const char help_all[] =
    "Usage: custody-keeper run ... | sweep ... | scan | canary SECONDS | --help | --version\n"
    "\n"
    "The native part of `custody run`. `custody-keeper run --help` and `custody-keeper sweep --help` tell more.\n"
    "`scan` reads runs from stdin and prints who holds a marker of theirs outside of their trees.\n"
    "`canary` is the command of the run on which a host proves that it can kill: only KILL ends it sooner.\n";

static int print(const char *text) {
  return fputs(text, stdout) < 0 || fflush(stdout) != 0 ? EXIT_CUSTODY : 0;
}

static bool env_entry(const char *entry) {
  if (!((*entry | 0x20) >= 'a' && (*entry | 0x20) <= 'z') && *entry != '_') return false;
  while (((*entry | 0x20) >= 'a' && (*entry | 0x20) <= 'z') || (*entry >= '0' && *entry <= '9') || *entry == '_') {
    entry++;
  }
  return entry[0] == '=' && entry[1] != '\0';
}

static bool duration(const char *text, int64_t *ms) {
  static const struct {
    const char *unit;
    int64_t ms;
  } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000}};
  size_t digits = strspn(text, "0123456789");
  int64_t number;
  if (!decimal(text, digits, &number) || number < 1) return false;
  for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
    if (strcmp(text + digits, units[i].unit) != 0) continue;
    if (number > TTL_MS_MAX / units[i].ms) return false;
    *ms = number * units[i].ms;
    return true;
  }
  return false;
}

static bool pattern(const char *text) {
  size_t bytes = strlen(text);
  return bytes > 0 && bytes <= PATTERN_BYTES_MAX &&
         strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_*") == bytes;
}

/* The flags with a value that go into the request one by one, and the key that each has there. */
static const struct {
  const char *flag;
  const char *key;
} wish_flags[] = {{"--env", "env"}, {"--file", "file"}, {"--fifo", "fifo"},
                  {"--fd", "fd"},   {"--keep", "keep"}, {"--scrub-also", "drop"}};

/* The entry may be `NAME=plain secret` by mistake: only the flag is named, never its value. */
static bool take_wish(struct request *request, const char *flag, const char *key, char *value) {
  bool is_keep = strcmp(key, "keep") == 0, is_drop = strcmp(key, "drop") == 0;
  bool good = is_keep || is_drop ? pattern(value) : env_entry(value);
  if (is_keep) request->clean = true;
  if (is_drop) request->scrub = true;
  if (!good && (is_keep || is_drop)) say("%s wants a name of letters, digits and _, with * for any of them", flag);
  else if (!good) say("%s wants NAME=REF, NAME of letters, digits and _, not starting with a digit", flag);
  else if (strncmp(value, "CUSTODY_GRANT=", 14) == 0) say("%s CUSTODY_GRANT: custody sets this name itself", flag);
  else return request->wishes[request->wish_count++] = (struct wish){key, value}, true;
  return false;
}

/* Takes one option's value; false, with a line said, when it is no good. */
static bool take(struct request *request, const char *flag, char *value) {
  for (size_t i = 0; i < sizeof wish_flags / sizeof *wish_flags; i++) {
    if (strcmp(flag, wish_flags[i].flag) == 0) return take_wish(request, flag, wish_flags[i].key, value);
  }
  if (strcmp(flag, "--env-file") == 0) {
    return request->env_files[request->env_file_count++] = value, true;
  } else if (strcmp(flag, "--ttl") == 0) {
    if (duration(value, &request->ttl_ms)) return true;
    say("--ttl wants a whole number and a unit, ms, s, m, h or d, up to 365d: for example 15m");
  } else if (strcmp(flag, "--reason") == 0) {
    request->reason = value;
    if (*value != '\0' && strlen(value) <= REASON_BYTES_MAX) return true;
    say("--reason wants 1 to %d bytes", REASON_BYTES_MAX);
  } else if (strcmp(flag, "--on-exit") == 0) {
    request->on_exit = value;
    if (strcmp(value, "kill") == 0 || strcmp(value, "wait") == 0) return true;
    say("--on-exit wants kill or wait");
  } else if (strcmp(flag, "--manifest") == 0) {
    request->manifest = value;
    if (*value != '\0') return true;
    say("--manifest wants a path");
  } else {
    request->socket_path = value;
    if (*value != '\0') return true;
    say("--socket wants a path");
  }
  return false;
}

/* The option that a word is or begins, `--env` of `--env=A=b`, among those with a value; else NULL. */
static const char *flag_of(const char *word) {
  static const char *const others[] = {"--env-file", "--ttl", "--reason", "--on-exit", "--manifest", "--socket"};
  size_t bytes = strcspn(word, "=");
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    if (strlen(others[i]) == bytes && memcmp(word, others[i], bytes) == 0) return others[i];
  }
  for (size_t i = 0; i < sizeof wish_flags / sizeof *wish_flags; i++) {
    const char *flag = wish_flags[i].flag;
    if (strlen(flag) == bytes && memcmp(word, flag, bytes) == 0) return flag;
  }
  return NULL;
}

static bool take_switch(struct request *request, const char *word) {
  if (strcmp(word, "--clean") == 0) return request->clean = true;
  if (strcmp(word, "--scrub") == 0) return request->scrub = true;
  if (strcmp(word, "--no-manifest") == 0) return request->no_manifest = true;
  return false;
}

static int main_run(int count, char **words) {
  struct request request = {0};
  request.wishes = calloc((size_t)count + 1, sizeof *request.wishes);
  request.env_files = calloc((size_t)count + 1, sizeof *request.env_files);
  if (request.wishes == NULL || request.env_files == NULL) return EXIT_CUSTODY;
  int at = 0;
  for (; at < count && words[at][0] == '-' && strcmp(words[at], "--") != 0; at++) {
    const char *word = words[at];
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) return print(help_run);
    if (strcmp(word, "--version") == 0) return print("custody-keeper " CUSTODY_VERSION "\n");
    if (take_switch(&request, word)) continue;
    const char *flag = flag_of(word);
    size_t name_bytes = strcspn(word, "=");
    if (flag == NULL) {
      say("unknown option %.*s; see `custody run --help`", (int)name_bytes, word);
      return EXIT_USAGE;
    }
    char *value = word[name_bytes] == '=' ? words[at] + name_bytes + 1 : NULL;
    if (value == NULL && at + 1 < count) value = words[++at];
    if (value == NULL) {
      say("%s wants a value; see `custody run --help`", flag);
      return EXIT_USAGE;
    }
    if (!take(&request, flag, value)) return EXIT_USAGE;
  }
  if (at < count && strcmp(words[at], "--") == 0) at++;
  request.command = words + at;
  if (at < count && words[at][0] != '\0') return run(&request);
  say("no command to run; see `custody run --help`");
  return EXIT_USAGE;
}

static bool process_named(const char *text, struct process *process) {
  size_t digits = strcspn(text, ":");
  int64_t pid, start_ticks;
  if (text[digits] != ':' || !decimal(text, digits, &pid) || pid < 1 || pid > INT32_MAX) return false;
  if (!decimal(text + digits + 1, strlen(text + digits + 1), &start_ticks)) return false;
  process->pid = (pid_t)pid;
  process->start_ticks = (uint64_t)start_ticks;
  return true;
}

static int main_sweep(int count, char **words) {
  const char *grant = NULL, *place = NULL;
  int64_t grace_ms = 0;
  struct process keeper = {0}, root = {0};
  for (int at = 0; at < count; at++) {
    if (strcmp(words[at], "--help") == 0 || strcmp(words[at], "-h") == 0) return print(help_sweep);
    if (strcmp(words[at], "--grace-ms") == 0) {
      const char *value = ++at < count ? words[at] : "";
      if (decimal(value, strlen(value), &grace_ms) && grace_ms <= GRACE_MS_MAX) continue;
      say("--grace-ms wants a whole number of milliseconds, at most a day of them");
      return EXIT_USAGE;
    }
    if (strcmp(words[at], "--place") == 0 && at + 1 < count) {
      place = words[++at];
      continue;
    }
    if (strcmp(words[at], "--keeper") == 0 || strcmp(words[at], "--root") == 0) {
      const char *flag = words[at], *value = ++at < count ? words[at] : "";
      if (process_named(value, flag[2] == 'k' ? &keeper : &root)) continue;
      say("%s wants PID:START_TICKS, as the keeper said them", flag);
      return EXIT_USAGE;
    }
    if (words[at][0] == '-' || grant != NULL) {
      say("unexpected %s; see `custody-keeper sweep --help`", words[at]);
      return EXIT_USAGE;
    }
    grant = words[at];
  }
  if (grant != NULL && *grant != '\0' && strlen(grant) <= GRANT_BYTES_MAX) {
    return sweep(grant, grace_ms, &keeper, &root, place);
  }
  say("sweep wants a grant id of 1 to %d bytes", GRANT_BYTES_MAX);
  return EXIT_USAGE;
}

static int main_canary(int count, char **words) {
  int64_t seconds;
  const char *text = count == 1 ? words[0] : "";
  if (decimal(text, strlen(text), &seconds) && seconds >= 1 && seconds <= TTL_MS_MAX / 1000) return canary(seconds);
  say("canary wants a whole number of seconds, at most a year of them");
  return EXIT_USAGE;
}

int main(int count, char **words) {
  const char *verb = count > 1 ? words[1] : "";
  int code = EXIT_USAGE;
  if (strcmp(verb, "run") == 0) code = main_run(count - 2, words + 2);
  else if (strcmp(verb, "sweep") == 0) code = main_sweep(count - 2, words + 2);
  else if (strcmp(verb, "scan") == 0 && count == 2) code = scan();
  else if (strcmp(verb, "canary") == 0) code = main_canary(count - 2, words + 2);
  else if (strcmp(verb, "--help") == 0 || strcmp(verb, "-h") == 0) code = print(help_all);
  else if (strcmp(verb, "--version") == 0) code = print("custody-keeper " CUSTODY_VERSION "\n");
  else if (*verb == '\0') say("what to do? see `custody-keeper --help`");
  else say("unknown command %s; see `custody-keeper --help`", verb);
  _exit(code);
}
