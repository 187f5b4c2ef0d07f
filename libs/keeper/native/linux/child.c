/* Owns the instant between the keeper and the command: what a child must find, and exec. */
#include "child.h"

#include "deliver.h"
#include "signals.h"

#include <errno.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t keeper_pid;
/* vfork shares memory until exec: where a pipe would cost five system calls, a variable does. */
static volatile int exec_fault;

/* In the child, on the keeper's memory: nothing here may allocate or change anything of the keeper's. */
static _Noreturn void become(char **command, const struct inherited *inherited) {
  /* A keeper that dies takes its root along, whatever killed it. The keeper is single-threaded, so
     "parent thread" in prctl(2) is the keeper. */
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  if (getppid() != keeper_pid) _exit(EXIT_CUSTODY); /* it died before the line above */
  deliver_pass();
  signals_restore(inherited);
  execvp(command[0], command); /* with PATH of the environment that the child gets */
  exec_fault = errno;
  _exit(EXIT_CANNOT_EXECUTE);
}

void keeper_hide(void) {
  /* No core dump, no ptrace and no /proc/PID/mem or environ for anyone but root. exec gives it back to the child. */
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

pid_t child_start(char **command, const struct inherited *inherited, int *fault, bool *executing) {
  keeper_pid = getpid();
  exec_fault = 0;
  /* vfork: no page table is copied and the child runs first; it returns when exec has the environment,
     so that the caller may wipe it. */
  pid_t pid = vfork();
  if (pid == 0) become(command, inherited);
  *executing = pid > 0;
  *fault = pid < 0 ? errno : exec_fault;
  if (*fault == 0) return pid;
  if (pid > 0) waitpid(pid, NULL, 0);
  return -1;
}
