/* Owns the scan: which processes hold the marker of a living run and are not in its tree. It ends nobody. */
#include "keeper.h"

#include "proc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static bool is_open(const char *grant, void *with) {
  const struct open_run **found = with;
  for (size_t i = 0; i < runs_count; i++) {
    if (strcmp(runs[i].grant, grant) == 0) return *found = &runs[i], true;
  }
  return false;
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
  char group[4096];
  uid_t owner;
  const struct open_run *run = NULL;
  if (!process_marked(pid, is_open, &run)) return;
  enum descent descent = DESCENT_BROKEN;
  for (int look = 0; look < LOOKS_MAX && descent == DESCENT_BROKEN; look++) {
    if (!process_read(pid, &process) || !process.alive) return;
    descent = descends(&process, &run->keeper);
  }
  process_group_path(pid, group, sizeof group);
  if (descent == DESCENT_YES || in_group(run, group)) return;
  if (!process_owner(pid, &owner)) return;
  printf("%s\t%d\t%d\t%llu\t%lu\t%s\t%s\n", run->grant, (int)process.pid, (int)process.ppid,
         (unsigned long long)process.start_ticks, (unsigned long)owner, group, process.name);
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
  if (runs_count > 0 && !each_process(visit, NULL)) {
    say("cannot list the processes: %s", strerror(errno));
    return 1;
  }
  return fflush(stdout) == 0 ? 0 : 1;
}
