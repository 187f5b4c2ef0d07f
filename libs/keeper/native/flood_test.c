/* Owns the command of the tests that floods its parent with signals: from the end of a long line of processes, so that
   to find out whose they are takes longer than to send the next. Only KILL ends it before a minute is over. */
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(void) {
  pid_t parent = getppid();
  time_t until = time(NULL) + 60;
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, NULL);
  for (int i = 0; i < 300; i++) {
    pid_t pid = fork();
    if (pid < 0) return 1;
    if (pid > 0) return sleep(60), 0;
  }
  puts("up"), fflush(stdout);
  while (time(NULL) < until) kill(parent, SIGUSR1), kill(parent, SIGUSR2), kill(parent, SIGCHLD);
}
