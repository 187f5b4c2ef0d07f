/* Owns the command of the tests that tells every signal it gets: one line each, the number and the value.
   With a number it ends by that signal. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **words) {
  uint64_t all = UINT64_MAX; /* by number: the C library would leave two of its own out */
  if (count > 1) {
    int number = atoi(words[1]);
    all = 0;
    signal(number, SIG_DFL);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, sizeof all);
    kill(getpid(), number);
    return 1;
  }
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, sizeof all);
  puts("ready");
  fflush(stdout);
  for (siginfo_t info;;) {
    memset(&info, 0, sizeof info);
    if (syscall(SYS_rt_sigtimedwait, &all, &info, NULL, sizeof all) < 0) continue;
    printf("%d %d\n", info.si_signo, info.si_code == SI_QUEUE ? info.si_value.sival_int : 0);
    fflush(stdout);
  }
}
