/* What /proc says about a process. */
#ifndef CUSTODY_PROC_H
#define CUSTODY_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define NAME_BYTES 65 /* TASK_COMM_LEN is 16; kernel threads show up to 64 */
#define PROCESSES_MAX 32768

struct process {
  pid_t pid;
  pid_t ppid;
  uint64_t start_ticks; /* with pid, names a process for ever */
  bool alive;           /* false: a zombie */
  bool stopped;         /* by job control or a tracer */
  char name[NAME_BYTES];
};

/* Reads /proc/PID/stat; false when there is no such process. */
bool process_read(pid_t pid, struct process *process);
/* Calls visit for every numeric entry of a directory of /proc. */
bool each_number(const char *directory, void (*visit)(pid_t number, void *with), void *with);

enum { SENT_TERM = 1, SENT_KILL = 2 };
/* A process of a tree, and what became of it. */
struct row {
  struct process process;
  unsigned sent;    /* SENT_* */
  bool survivor;    /* alive when the root had exited */
  char how;         /* 0: still open, 'e' exit, 's' signal, 'k' killed, 'g' gone */
  int how_number;
  int64_t ended_boot_us; /* when it was reaped; until then, and where its own parent did it, when it was last met */
};
const char *how_name(char how);
/* "pid ppid start_ticks ended_boot_us mark how name", as docs/spec/keeper.md has it. */
int row_print(const struct row *row, char *text, size_t bytes);

/* Sends through a pidfd, so that a pid that has been given to another process is never hit.
   0 or an errno. */
int pidfd_open_of(pid_t pid);
int pidfd_signal(int pidfd, int signal);

#endif
