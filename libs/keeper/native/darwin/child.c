/* Owns the instant between the keeper and the command: what a child must find, and exec. */
#include "child.h"

#include "deliver.h"
#include "signals.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define OURS_FROM 100 /* above the numbers that deliver.c gives to the child */

static struct rlimit core; /* as the caller had it */

void keeper_hide(void) {
  /* No core file. Debuggers are kept out by the system: task_for_pid wants root or an entitlement of the program. */
  struct rlimit none;
  if (getrlimit(RLIMIT_CORE, &core) != 0) return;
  none = (struct rlimit){.rlim_cur = 0, .rlim_max = core.rlim_max};
  setrlimit(RLIMIT_CORE, &none);
}

static _Noreturn void become(char **command, const struct inherited *inherited, int tell) {
  deliver_pass();
  setrlimit(RLIMIT_CORE, &core);
  signals_restore(inherited);
  execvp(command[0], command); /* with PATH of the environment that the child gets */
  int fault = errno;
  ssize_t ignored = write(tell, &fault, sizeof fault);
  (void)ignored;
  _exit(EXIT_CANNOT_EXECUTE);
}

/* fork, since vfork is nothing else here, and a pipe, since memory is not shared: exec closes it. A keeper that dies
   does not take its root along: there is no PR_SET_PDEATHSIG, and the agent sweeps. */
pid_t child_start(char **command, const struct inherited *inherited, int *fault, bool *executing) {
  int ends[2];
  *executing = false;
  if (pipe(ends) != 0) return *fault = errno, -1;
  int tell = fcntl(ends[1], F_DUPFD_CLOEXEC, OURS_FROM);
  close(ends[1]);
  fcntl(ends[0], F_SETFD, FD_CLOEXEC);
  pid_t pid = tell < 0 ? -1 : fork();
  if (pid == 0) become(command, inherited, tell);
  *fault = pid < 0 ? errno : 0;
  *executing = pid > 0;
  if (tell >= 0) close(tell);
  if (pid > 0 && read(ends[0], fault, sizeof *fault) != (ssize_t)sizeof *fault) *fault = 0;
  close(ends[0]);
  if (*fault == 0) return pid;
  if (pid > 0) waitpid(pid, NULL, 0);
  return -1;
}
