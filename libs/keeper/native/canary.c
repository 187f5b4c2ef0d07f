/* Owns the canary: a tree that does what a process may do against being ended, for a host to prove its kill on. */
#include "keeper.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The root and a daemon of it, which nothing but KILL ends; both leave by themselves after that many seconds, should
   nobody be left to end them. */
int canary(int64_t seconds) {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, NULL);
  pid_t between = fork();
  if (between < 0) return EXIT_CUSTODY;
  if (between == 0) {
    setsid(); /* out of the session and of the process group: no hang-up and no signal to the group reaches it */
    pid_t daemon = fork();
    if (daemon != 0) _exit(daemon < 0 ? EXIT_CUSTODY : 0); /* the parent goes: its child is an orphan */
  }
  waitpid(between, NULL, 0);
  struct timespec left = {.tv_sec = (time_t)seconds};
  nanosleep(&left, NULL); /* with every signal blocked nothing wakes it */
  return 0;
}
