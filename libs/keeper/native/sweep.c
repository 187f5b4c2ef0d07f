/* Owns the sweep: every process that holds the marker of a grant whose keeper is gone, and its descendants. */
#include "keeper.h"

#include "memory.h"
#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PASS_MS 10
#define KILL_MS_MAX 2000 /* what a KILL has not ended by then is stuck in the kernel, or not ours to end */

static char marker[sizeof "CUSTODY_GRANT=" + GRANT_BYTES_MAX];
static size_t marker_bytes; /* with its NUL */

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

/* Reads /proc/PID/environ, the environment as exec got it, and looks for the marker as one whole entry. */
static bool holds_marker(pid_t pid) {
  char path[64], text[4096];
  snprintf(path, sizeof path, "/proc/%d/environ", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  size_t same = 0; /* bytes of the marker seen since the entry began */
  bool possible = true, found = false;
  for (ssize_t got; !found && (got = read(fd, text, sizeof text)) > 0;) {
    for (ssize_t i = 0; i < got && !found; i++) {
      possible = possible && text[i] == marker[same];
      if (possible) same++;
      found = possible && same == marker_bytes;
      if (text[i] == '\0') same = 0, possible = true;
    }
  }
  close(fd);
  return found;
}

static void send_to(int pidfd, struct row *row) {
  int fault = 0;
  if (pass_signal == SIGTERM && row->sent == 0) {
    fault = pidfd_signal(pidfd, SIGTERM);
    pidfd_signal(pidfd, SIGCONT);
    if (fault == 0) row->sent |= SENT_TERM;
  } else if (pass_signal != SIGTERM) {
    fault = pidfd_signal(pidfd, pass_signal);
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
  /* Opened, and only then looked at again: what the pidfd holds is what is judged, whatever the pid became. */
  int pidfd = pidfd_open_of(pid);
  if (pidfd < 0) return;
  struct process again;
  bool same = process_read(pid, &again) && again.alive && again.start_ticks == process.start_ticks &&
              (row != NULL || holds_marker(pid) || doomed_parent(again.ppid)) && pidfd_signal(pidfd, 0) != ESRCH;
  if (same && row == NULL && doomed_count < PROCESSES_MAX) {
    row = &doomed[doomed_count++];
    *row = (struct row){.process = again};
    found_new++;
  }
  if (same) living++;
  if (same && row != NULL) send_to(pidfd, row);
  close(pidfd);
}

static bool pass(int signal) {
  living = found_new = 0;
  pass_signal = signal;
  return each_number("/proc", visit, NULL);
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

/* A keeper that is stopped, or does not do its work: doomed from the start, and by its ancestry whatever it holds. */
static void doom_keeper(const struct process *keeper) {
  struct process now;
  if (keeper->pid == 0 || !process_read(keeper->pid, &now) || now.start_ticks != keeper->start_ticks) return;
  doomed[doomed_count++] = (struct row){.process = now};
}

int sweep(const char *grant, int64_t grace_ms, const struct process *keeper, const char *place) {
  doom_keeper(keeper);
  int bytes = snprintf(marker, sizeof marker, "CUSTODY_GRANT=%s", grant);
  marker_bytes = (size_t)bytes + 1;
  int64_t kill_boot_ms = boot_ms() + grace_ms;
  living = grace_ms > 0;
  while (living > 0 && boot_ms() < kill_boot_ms) {
    if (!pass(SIGTERM)) break;
    if (living > 0) poll(NULL, 0, PASS_MS);
  }
  int64_t give_up_boot_ms = boot_ms() + KILL_MS_MAX;
  for (;;) {
    /* Nobody holds these: a child whose parent is killed first goes to init, and if it has dropped the marker
       nothing leads to it any more. So all are stopped before the first is killed. */
    bool read = true;
    do read = pass(SIGSTOP);
    while (read && found_new > 0 && boot_ms() < give_up_boot_ms);
    if (!read) {
      say("cannot read /proc: %s", strerror(errno));
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
