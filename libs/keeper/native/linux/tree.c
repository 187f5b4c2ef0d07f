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

#define HANDLES_MAX 64

/* Who has been met in this walk; the queue of the walk itself. */
static struct met {
  pid_t pid;
  int handle; /* -1: closed, or not kept */
  bool over;  /* it had no children, and has been acted on */
  uint64_t start_ticks;
} met[PROCESSES_MAX];
static size_t met_count;
static struct process read_as[PROCESSES_MAX]; /* the same, where they are acted on later */
static size_t handles; /* kept */

/* Where the kernel lists no children (CONFIG_PROC_CHILDREN): all processes, read once a walk; by parent. */
static struct {
  pid_t ppid;
  pid_t pid;
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

/* Where the children of that parent begin in the list, or would. */
static size_t first_of(pid_t ppid) { return place_of_pid(ppid, all, all_count, sizeof *all); }

static bool childless(const struct process *process) {
  if (!children_listed) {
    size_t first = first_of(process->pid);
    return first == all_count || all[first].ppid != process->pid;
  }
  char path[96], byte;
  snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)process->pid, (int)process->pid);
  int fd = process->threaded ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t got = read(fd, &byte, 1);
  close(fd);
  return got == 0;
}

static void give_up(size_t i) {
  if (met[i].handle < 0) return;
  process_close(met[i].handle);
  met[i].handle = -1;
  handles--;
}

/* Where descriptors are short, those that were kept are the first to go. */
static int open_one(pid_t pid) {
  int handle = process_open(pid);
  if (handle >= 0 || errno == ESRCH || handles == 0) return handle;
  for (size_t i = 1; i < met_count; i++) give_up(i);
  return process_open(pid);
}

/* What the walk is for, to one that was met before. */
static void act_on_met(size_t i) {
  struct process now;
  int handle = met[i].handle >= 0 ? met[i].handle : open_one(met[i].pid);
  bool same = handle >= 0 && (handle == met[i].handle || (process_read(met[i].pid, &now) && now.alive &&
                                                           now.start_ticks == met[i].start_ticks));
  if (same) act_on(walk_act, &read_as[i], handle, walk_rows, &walk);
  if (met[i].handle >= 0) give_up(i);
  else if (handle >= 0) process_close(handle);
}

/* The pid may have been given to a stranger since it was listed. The order is the proof: it was opened, is read, and is
   then seen to be still there, so what was read is about it; and its parent is still the process that was met. One
   that has just become our own child is ours anyway. */
static bool is_ours(pid_t pid, int handle, size_t parent, struct process *process) {
  if (!process_read(pid, process) || !process->alive || process_signal(handle, process, 0) == ESRCH) return false;
  if (process->ppid == met[0].pid) return true;
  struct process above;
  return process->ppid == met[parent].pid && process_read(process->ppid, &above) &&
         above.start_ticks == met[parent].start_ticks;
}

static void meet(pid_t pid, size_t parent) {
  if (met_count == PROCESSES_MAX) return; /* those beyond are met when these are dead */
  /* One that changes parents during the walk is listed twice. Quadratic, so exact in small trees only. */
  for (size_t i = 1; i < met_count && met_count < 1024; i++) {
    if (met[i].pid == pid) return;
  }
  struct process process;
  int handle = open_one(pid);
  bool ours = handle >= 0 && is_ours(pid, handle, parent, &process);
  bool over = ours && walk_act == ACT_KILL && childless(&process);
  bool later = ours && !over && (walk_act == ACT_KILL || walk_act == ACT_TERM);
  bool keep = later && handles < HANDLES_MAX;
  if (ours && !later) act_on(walk_act, &process, handle, walk_rows, &walk);
  /* A parent is not to see its children die: it would collect them behind our back, or start others. */
  if (later && walk_act == ACT_KILL) process_signal(handle, &process, SIGSTOP);
  if (later) read_as[met_count] = process;
  if (ours) met[met_count++] = (struct met){pid, keep ? handle : -1, over, process.start_ticks};
  if (keep) handles++;
  else if (handle >= 0) process_close(handle);
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
    qsort(all, all_count, sizeof *all, by_pid);
  }
  pid_t ppid = met[parent].pid;
  for (size_t i = first_of(ppid); i < all_count && all[i].ppid == ppid; i++) meet(all[i].pid, parent);
}

/* All that ancestry can tell comes as SIGCHLD, and ECHILD is the kernel's word that no descendant is left. */
static void hold(const struct process *root, const char *grant) { (void)root, (void)grant; }
static int watch(void) { return -1; }
static void hear(void) {}
static bool empty(void) { return true; }

static struct walk pass(enum act act, struct rows *rows) {
  walk_act = act;
  walk_rows = rows;
  walk = (struct walk){0};
  met[0] = (struct met){.pid = getpid(), .handle = -1};
  met_count = 1;
  for (size_t i = 0; i < met_count; i++) {
    if (met[i].over) continue;
    walk_children_of(i);
    /* Not before: the children of who dies are ours from then on, and would be met in the next walk only. */
    if (i > 0 && act == ACT_KILL) act_on_met(i);
  }
  /* To nobody before all have been met: sent on the way, TERM would go to whoever is born of it too, and of processes
     that answer with two more of themselves there would be no end. */
  for (size_t i = 1; act == ACT_TERM && i < met_count; i++) act_on_met(i);
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
