/* Owns the scan: which processes hold the marker of a living run and are not in its tree. It ends nobody. */
#include "keeper.h"

#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RUNS_MAX 4096
#define RUN_BYTES 64
#define ANCESTORS_MAX 4096
#define LOOKS_MAX 3

struct open_run {
  char grant[GRANT_BYTES_MAX + 1];
  char run[RUN_BYTES + 1]; /* its group is a folder of that name; "-": it has none */
  struct process keeper;   /* pid 0: gone, or unknown */
};

static struct open_run *runs;
static size_t runs_count;

static const struct open_run *run_of_grant(const char *grant) {
  for (size_t i = 0; i < runs_count; i++) {
    if (strcmp(runs[i].grant, grant) == 0) return &runs[i];
  }
  return NULL;
}

/* The run whose marker stands in the initial environment. */
static const struct open_run *run_marked(pid_t pid) {
  static const char name[] = "CUSTODY_GRANT=";
  char path[64], text[4096], grant[GRANT_BYTES_MAX + 1];
  snprintf(path, sizeof path, "/proc/%d/environ", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return NULL;
  const struct open_run *found = NULL;
  size_t at = 0; /* in the entry */
  bool possible = true;
  for (ssize_t got; found == NULL && (got = read(fd, text, sizeof text)) > 0;) {
    for (ssize_t i = 0; i < got && found == NULL; i++) {
      size_t value = at - (sizeof name - 1);
      if (text[i] == '\0') {
        if (possible && at > sizeof name - 1) grant[value] = '\0', found = run_of_grant(grant);
        at = 0, possible = true;
        continue;
      }
      if (at < sizeof name - 1) possible = possible && text[i] == name[at];
      else if (possible && value < GRANT_BYTES_MAX) grant[value] = text[i];
      else possible = false;
      at++;
    }
  }
  close(fd);
  return found;
}

/* The path in the v2 hierarchy, as this process sees it; empty where there is none. */
static void group_of(pid_t pid, char *group, size_t bytes) {
  char path[64], text[8192];
  group[0] = '\0';
  snprintf(path, sizeof path, "/proc/%d/cgroup", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  ssize_t got = read(fd, text, sizeof text - 1);
  close(fd);
  if (got <= 0) return;
  text[got] = '\0';
  char *line = strncmp(text, "0::", 3) == 0 ? text : strstr(text, "\n0::");
  if (line == NULL) return;
  line += *line == '\n' ? 4 : 3;
  line[strcspn(line, "\n")] = '\0';
  snprintf(group, bytes, "%s", line);
  blank_controls(group, strlen(group));
}

/* In the run's own tree, or in a group below it: that of a run inside this one. */
static bool in_group(const struct open_run *run, const char *group) {
  char folder[RUN_BYTES + sizeof "//tree"];
  size_t bytes = (size_t)snprintf(folder, sizeof folder, "/%s/tree", run->run);
  const char *at = strstr(group, folder);
  return at != NULL && (at[bytes] == '/' || at[bytes] == '\0');
}

enum descent { DESCENT_YES, DESCENT_NO, DESCENT_BROKEN };

static enum descent descends(const struct process *process, const struct process *keeper) {
  struct process above = *process;
  if (keeper->pid == 0) return DESCENT_NO;
  for (int left = ANCESTORS_MAX; left > 0; left--) {
    if (above.pid == keeper->pid) return above.start_ticks == keeper->start_ticks ? DESCENT_YES : DESCENT_NO;
    if (above.ppid == 0) return DESCENT_NO;
    if (!process_read(above.ppid, &above)) return DESCENT_BROKEN; /* that parent has just died: look again */
  }
  return DESCENT_NO;
}

static void visit(pid_t pid, void *with) {
  (void)with;
  struct process process;
  char group[4096], path[64];
  struct stat owner;
  const struct open_run *run = run_marked(pid);
  if (run == NULL) return;
  enum descent descent = DESCENT_BROKEN;
  for (int look = 0; look < LOOKS_MAX && descent == DESCENT_BROKEN; look++) {
    if (!process_read(pid, &process) || !process.alive) return;
    descent = descends(&process, &run->keeper);
  }
  group_of(pid, group, sizeof group);
  if (descent == DESCENT_YES || in_group(run, group)) return;
  snprintf(path, sizeof path, "/proc/%d", (int)pid);
  if (stat(path, &owner) != 0) return;
  printf("%s\t%d\t%d\t%llu\t%lu\t%s\t%s\n", run->grant, (int)process.pid, (int)process.ppid,
         (unsigned long long)process.start_ticks, (unsigned long)owner.st_uid, group, process.name);
}

/* One run a line: `GRANT RUN PID START_TICKS`. */
static bool read_runs(void) {
  char line[256];
  runs = calloc(RUNS_MAX, sizeof *runs);
  while (runs != NULL && fgets(line, sizeof line, stdin) != NULL) {
    struct open_run *run = &runs[runs_count];
    int pid;
    unsigned long long start_ticks;
    if (runs_count == RUNS_MAX) return false;
    if (sscanf(line, "%64s %64s %d %llu", run->grant, run->run, &pid, &start_ticks) != 4 || pid < 0) return false;
    run->keeper = (struct process){.pid = pid, .start_ticks = start_ticks};
    runs_count++;
  }
  return runs != NULL;
}

int scan(void) {
  if (!read_runs()) {
    say("scan wants one run a line on its standard input, `GRANT RUN KEEPER_PID START_TICKS`, at most %d", RUNS_MAX);
    return EXIT_USAGE;
  }
  if (runs_count > 0 && !each_number("/proc", visit, NULL)) {
    say("cannot read /proc: %s", strerror(errno));
    return 1;
  }
  return fflush(stdout) == 0 ? 0 : 1;
}
