/* Owns containment on Linux: the subreaper, the walk over its descendants, the signals through pidfds. */
#include "keeper.h"

#include "containment.h"
#include "numbers.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Who has been met in this walk; the queue of the walk itself. */
static struct {
  pid_t pid;
  uint64_t start_ticks;
} met[PROCESSES_MAX];
static size_t met_count;

/* Where the kernel lists no children (CONFIG_PROC_CHILDREN): all processes, read once a walk; by parent. */
static struct one {
  pid_t pid;
  pid_t ppid;
} all[PROCESSES_MAX];
static size_t all_count;
#ifdef CUSTODY_SCAN /* the tests' way to this path on a kernel that lists them */
static bool children_listed = false;
#else
static bool children_listed = true;
#endif

static enum act walk_act;
static struct rows *walk_rows;
static struct walk walk;

static bool prepare(void) {
  /* A process whose parent dies becomes ours instead of init's, however it was forked. */
  return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0;
}

static void meet(pid_t pid, size_t parent) {
  if (met_count == PROCESSES_MAX) return; /* those beyond are met when these are dead */
  /* One that changes parents during the walk is listed twice. Quadratic, so exact in small trees only. */
  for (size_t i = 1; i < met_count && met_count < 1024; i++) {
    if (met[i].pid == pid) return;
  }
  int handle = process_open(pid);
  if (handle < 0) return;
  struct process process;
  /* The pid may have been given to a stranger since it was listed. The order is the proof: open, read, and
     then see that what was opened is still there, so what was read is about it; and that its parent
     is still the process that was met. One that has just become our own child is ours anyway. */
  bool ours = process_read(pid, &process) && process.alive && process_signal(handle, &process, 0) != ESRCH;
  if (ours && process.ppid != met[0].pid) {
    struct process above;
    ours = process.ppid == met[parent].pid && process_read(process.ppid, &above) &&
           above.start_ticks == met[parent].start_ticks;
  }
  if (ours) {
    act_on(walk_act, &process, handle, walk_rows, &walk);
    met[met_count].pid = pid;
    met[met_count++].start_ticks = process.start_ticks;
  }
  process_close(handle);
}

static void meet_children_of_thread(pid_t thread, void *with) {
  size_t parent = *(const size_t *)with;
  char path[96];
  snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)met[parent].pid, (int)thread);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    if (parent == 0 && errno == ENOENT) children_listed = false;
    return;
  }
  char text[4096];
  size_t held = 0;
  for (ssize_t got; (got = read(fd, text + held, sizeof text - 1 - held)) > 0;) {
    size_t bytes = held + (size_t)got;
    text[bytes] = '\0';
    char *at = text;
    for (char *blank; (blank = strchr(at, ' ')) != NULL; at = blank + 1) {
      meet((pid_t)strtol(at, NULL, 10), parent);
    }
    held = bytes - (size_t)(at - text);
    memmove(text, at, held);
  }
  close(fd);
}

static void note_process(pid_t pid, void *with) {
  (void)with;
  struct process process;
  if (all_count == PROCESSES_MAX || !process_read(pid, &process)) return;
  all[all_count].pid = pid;
  all[all_count++].ppid = process.ppid;
}

static int by_parent(const void *a, const void *b) {
  pid_t first = ((const struct one *)a)->ppid, second = ((const struct one *)b)->ppid;
  return (first > second) - (first < second);
}

/* Where the children of that parent begin in the list, or would. */
static size_t first_of(pid_t ppid) {
  size_t from = 0, to = all_count;
  while (from < to) {
    size_t middle = from + (to - from) / 2;
    if (all[middle].ppid < ppid) from = middle + 1;
    else to = middle;
  }
  return from;
}

static void walk_children_of(size_t parent) {
  if (children_listed) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", (int)met[parent].pid);
    each_number(path, meet_children_of_thread, &parent); /* each thread has children of its own */
  }
  if (children_listed) return;
  if (parent == 0) {
    all_count = 0;
    each_process(note_process, NULL);
    qsort(all, all_count, sizeof *all, by_parent);
  }
  pid_t ppid = met[parent].pid;
  for (size_t i = first_of(ppid); i < all_count && all[i].ppid == ppid; i++) meet(all[i].pid, parent);
}

/* All that ancestry can tell comes as SIGCHLD, and ECHILD is the kernel's word that no descendant is left. */
static void hold(const struct process *root, const char *grant) { (void)root, (void)grant; }
static int watch(void) { return -1; }
static void hear(void) {}
static bool empty(void) { return true; }

/* A signal that its receiver can answer with a fork goes out when the walk is over: sent on the way, it would go to
   whoever is born of it too, and processes that answer with two more of themselves would be met without end. */
static void ask_met(enum act act) {
  struct walk asked = {0};
  for (size_t i = 1; i < met_count; i++) {
    struct process process;
    int handle = process_open(met[i].pid);
    bool there = handle >= 0 && process_read(met[i].pid, &process) && process.alive;
    if (there && process.start_ticks == met[i].start_ticks) act_on(act, &process, handle, walk_rows, &asked);
    if (handle >= 0) process_close(handle);
  }
  walk.refused |= asked.refused;
}

static struct walk pass(enum act act, struct rows *rows) {
  walk_act = act == ACT_TERM ? ACT_LOOK : act;
  walk_rows = rows;
  walk = (struct walk){0};
  met[0].pid = getpid();
  met_count = 1;
  for (size_t i = 0; i < met_count; i++) walk_children_of(i);
  if (act == ACT_TERM) ask_met(act);
  return walk;
}

const struct containment containment = {
    .name = "subreaper",
    .prepare = prepare,
    .hold = hold,
    .watch = watch,
    .hear = hear,
    .empty = empty,
    .pass = pass,
};
