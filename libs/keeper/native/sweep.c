/* Owns the sweep: every process that holds the marker of a grant whose keeper is gone, and its descendants. */
#include "keeper.h"

#include "memory.h"
#include "proc.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PASS_MS 10
#define KILL_MS_MAX 2000 /* what a KILL has not ended by then is stuck in the kernel, or not ours to end */

static char marked[GRANT_BYTES_MAX + 1]; /* the grant */

/* What is to die. Once in, a process stays in, whoever becomes its parent. */
static struct row doomed[PROCESSES_MAX];
static size_t doomed_count;
static int living;    /* in this pass */
static int found_new; /* in this pass */
static int pass_signal;
static int refusal; /* errno */

static struct row *doomed_at(const struct process *process) {
  for (size_t i = 0; i < doomed_count; i++) {
    struct row *row = &doomed[i];
    if (row->process.pid == process->pid && row->process.start_ticks == process->start_ticks) return row;
  }
  return NULL;
}

static bool doomed_parent(pid_t ppid) {
  struct process parent;
  for (size_t i = 0; i < doomed_count; i++) {
    if (doomed[i].process.pid == ppid && process_read(ppid, &parent) && doomed_at(&parent) != NULL) return true;
  }
  return false;
}

static bool is_ours(const char *grant, void *with) { return strcmp(grant, with) == 0; }
static bool holds_marker(pid_t pid) { return process_marked(pid, is_ours, marked); }

static void send_to(int handle, struct row *row) {
  int fault = 0;
  if (pass_signal == SIGTERM) {
    fault = process_signal(handle, &row->process, SIGTERM);
    process_signal(handle, &row->process, SIGCONT);
    if (fault == 0) row->sent |= SENT_TERM;
  } else {
    fault = process_signal(handle, &row->process, pass_signal);
    if (fault == 0 && pass_signal == SIGKILL) row->sent |= SENT_KILL;
  }
  if (fault == EPERM) refusal = fault;
  row->ended_boot_us = boot_us();
}

static void visit(pid_t pid, void *with) {
  (void)with;
  struct process process;
  if (pid == getpid() || !process_read(pid, &process) || !process.alive) return;
  struct row *row = doomed_at(&process);
  if (row == NULL && !holds_marker(pid) && !doomed_parent(process.ppid)) return;
  /* Opened, and only then looked at again: what the handle holds is what is judged, whatever the pid became. */
  int handle = process_open(pid);
  if (handle < 0) return;
  struct process again;
  bool same = process_read(pid, &again) && again.alive && again.start_ticks == process.start_ticks &&
              (row != NULL || holds_marker(pid) || doomed_parent(again.ppid)) && process_signal(handle, &again, 0) != ESRCH;
  if (same && row == NULL && doomed_count < PROCESSES_MAX) {
    row = &doomed[doomed_count++];
    *row = (struct row){.process = again};
    found_new++;
  }
  if (same) living++;
  if (same && row != NULL) send_to(handle, row);
  process_close(handle);
}

/* TERM goes to who is there when the sweep begins, and to nobody who is born of it: one that answers TERM with two more
   of itself would be met, and asked, without end. */
static void ask(void) {
  struct process process;
  pass_signal = SIGTERM;
  for (size_t i = 0; i < doomed_count; i++) {
    int handle = process_open(doomed[i].process.pid);
    bool there = handle >= 0 && process_read(doomed[i].process.pid, &process) && process.alive;
    if (there && process.start_ticks == doomed[i].process.start_ticks) send_to(handle, &doomed[i]);
    if (handle >= 0) process_close(handle);
  }
}

static bool pass(int signal) {
  living = found_new = 0;
  pass_signal = signal;
  return each_process(visit, NULL);
}

static void print_dead(void) {
  for (size_t i = 0; i < doomed_count; i++) {
    struct row *row = &doomed[i];
    struct process now;
    if (process_read(row->process.pid, &now) && now.alive && now.start_ticks == row->process.start_ticks) {
      say("could not kill %d (%s): %s", (int)row->process.pid, row->process.name,
          refusal != 0 ? strerror(refusal) : "it does not end");
      continue;
    }
    if (row->sent == 0) continue; /* it ended before it was reached */
    char text[256];
    row->how = 'k'; /* not our child: what was sent is all that can be known */
    row->how_number = row->sent & SENT_KILL ? SIGKILL : SIGTERM;
    row_print(row, text, sizeof text);
    puts(text);
  }
}

/* A keeper that is stopped, or does not do its work; the root of one that is gone, where the kernel does not end that
   with it. Doomed from the start, and by its ancestry whatever it holds. */
static void doom(const struct process *named) {
  struct process now;
  if (named->pid == 0 || !process_read(named->pid, &now) || now.start_ticks != named->start_ticks) return;
  doomed[doomed_count++] = (struct row){.process = now};
}

int sweep(const char *grant, int64_t grace_ms, const struct process *keeper, const struct process *root, const char *place) {
  doom(keeper);
  doom(root);
  snprintf(marked, sizeof marked, "%s", grant);
  int64_t kill_boot_ms = boot_ms() + grace_ms;
  if (grace_ms > 0 && pass(0)) ask();
  while (living > 0 && boot_ms() < kill_boot_ms && pass(0)) poll(NULL, 0, PASS_MS);
  int64_t give_up_boot_ms = boot_ms() + KILL_MS_MAX;
  for (;;) {
    /* Nobody holds these: a child whose parent is killed first goes to init, and if it has dropped the marker
       nothing leads to it any more. So all are stopped before the first is killed. */
    bool read = true;
    do read = pass(SIGSTOP);
    while (read && found_new > 0 && boot_ms() < give_up_boot_ms);
    if (!read) {
      say("cannot list the processes: %s", strerror(errno));
      return 1;
    }
    if (living == 0) break;
    pass(SIGKILL);
    if (boot_ms() >= give_up_boot_ms) break;
    poll(NULL, 0, PASS_MS / 5);
  }
  int64_t empty_boot_ms = boot_ms();
  print_dead();
  if (living == 0 && place != NULL && !memory_remove(place, grant)) {
    say("could not remove the files of %s in %s", grant, place);
  }
  if (living == 0) printf("empty %lld\n", (long long)empty_boot_ms);
  return fflush(stdout) == 0 && living == 0 ? 0 : 1;
}
