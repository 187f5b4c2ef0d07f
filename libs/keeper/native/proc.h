/* What the kernel says about a process, and how one is signalled: linux/proc.c and darwin/proc.c. */
#ifndef CUSTODY_PROC_H
#define CUSTODY_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define NAME_BYTES 65 /* TASK_COMM_LEN is 16; kernel threads show up to 64. macOS: MAXCOMLEN is 16, names have 32 */
#define PROCESSES_MAX 32768

struct process {
  pid_t pid;
  pid_t ppid;
  uint64_t start_ticks; /* with pid, names a process for ever. Linux: clock ticks; macOS: microseconds */
  bool alive;           /* false: a zombie */
  bool stopped;         /* by job control or a tracer */
  bool threaded;        /* Linux: its threads have children of their own */
  char name[NAME_BYTES];
};

/* False when there is no such process. A zombie is one until its parent has collected it. */
bool process_read(pid_t pid, struct process *process);
/* Calls visit for every process there is; false, with errno, when the kernel lists none. */
bool each_process(void (*visit)(pid_t pid, void *with), void *with);
/* Who it runs as. */
bool process_owner(pid_t pid, uid_t *uid);
/* Its path in the v2 hierarchy of groups, as this process sees it; empty where there is none. */
void process_group_path(pid_t pid, char *path, size_t bytes);
/* Gives `piece` the environment as exec got it, entry by entry or cut anywhere, until that says true. True when
   it did; false where nothing was found or nothing may be read. */
bool process_environment(pid_t pid, bool (*piece)(const char *bytes, size_t count, void *with), void *with);

/* A handle on a process, to be looked at after it was opened, so that what was seen is about what is signalled.
   -1 and errno where there is none. */
int process_open(pid_t pid);
/* 0 or an errno; ESRCH where the process that was opened, or looked at, is no more. Signal 0 only asks. */
int process_signal(int handle, const struct process *process, int signal);
void process_close(int handle);

/* marker.c: whether `is` says true of the value of a marker in that environment. */
bool process_marked(pid_t pid, bool (*is)(const char *grant, void *with), void *with);

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
/* row.c: "pid ppid start_ticks ended_boot_us mark how name", as docs/spec/keeper.md has it. */
int row_print(const struct row *row, char *text, size_t bytes);

#endif
