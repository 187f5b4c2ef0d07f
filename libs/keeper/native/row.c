/* Owns the form of a `proc` row, and what is done to a process that a mechanism has met. */
#include "keeper.h"

#include "containment.h"

#include <errno.h>
#include <stdio.h>

static const char *how_name(char how) {
  return how == 'e' ? "exit" : how == 's' ? "signal" : how == 'k' ? "killed" : "gone";
}

int row_print(const struct row *row, char *text, size_t bytes) {
  return snprintf(text, bytes, "%d %d %llu %lld %s %s:%d %s", (int)row->process.pid, (int)row->process.ppid,
                  (unsigned long long)row->process.start_ticks, (long long)row->ended_boot_us,
                  row->survivor ? "survivor" : "-", how_name(row->how), row->how_number, row->process.name);
}

void act_on(enum act act, const struct process *process, int handle, struct rows *rows, struct walk *walk) {
  struct row *row = account_met(rows, process);
  int fault = 0;
  walk->living++;
  if (row == NULL || !(row->sent & SENT_KILL)) walk->spared++;
  if (act == ACT_STOP) {
    fault = process_signal(handle, process, SIGSTOP);
  } else if (act == ACT_KILL) {
    fault = process_signal(handle, process, SIGKILL);
    if (fault == 0 && row != NULL) row->sent |= SENT_KILL;
  } else if (act == ACT_TERM && (row == NULL || row->sent == 0)) {
    fault = process_signal(handle, process, SIGTERM);
    if (fault == 0 && row != NULL) row->sent |= SENT_TERM;
    process_signal(handle, process, SIGCONT); /* a stopped process acts on TERM only when it goes on */
  }
  if (fault == EPERM) walk->refused = true;
}
