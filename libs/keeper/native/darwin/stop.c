/* Owns how the keeper stops with its root without going deaf to the ceiling or to the agent. */
#include "stop.h"

#include "alarm.h"
#include "twin.h"
#include "keeper.h"
#include "link.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#define AGAIN_MS 1000 /* a stop signal deletes a pending SIGCONT: call again */

static pid_t twin;

pid_t stop_twin(void) { return twin; }

/* Neither a timer nor a socket sends a SIGCONT here, and nothing else wakes a stopped process. So a twin waits in
   its place, for the alarm, for a word of the agent and for the end of the keeper, and calls it. Every signal is
   blocked in it; it holds no credential, since those were wiped when the root had them. */
static _Noreturn void call(pid_t keeper, int64_t until_boot_ms, int end_of_keeper) {
  if (!alarm_open()) _exit(1); /* no kqueue outlives a fork */
  alarm_at(until_boot_ms);
  struct pollfd ready[3] = {{.fd = end_of_keeper, .events = POLLIN},
                            {.fd = alarm_fd(), .events = POLLIN},
                            {.fd = link_fd(), .events = POLLIN}};
  poll(ready, 3, -1);
  while (ready[0].revents == 0 && getppid() == keeper) {
    kill(keeper, SIGCONT);
    poll(ready, 1, AGAIN_MS);
  }
  _exit(0);
}

void stop_self(void) {
  pid_t keeper = getpid();
  int ends[2];
  if (pipe(ends) != 0) return; /* better not stopped than deaf */
  twin = fork();
  if (twin == 0) {
    close(ends[1]);
    call(keeper, alarm_set(), ends[0]);
  }
  close(ends[0]);
  struct sigaction stop = {.sa_handler = SIG_DFL}, noting;
  sigaction(SIGTSTP, &stop, &noting);
  /* TSTP and not STOP. In an orphaned process group, where no shell could wake us again, TSTP does nothing. And it
     waits, blocked: a SIGCONT of the twin that comes before the stop deletes it. */
  if (twin > 0) kill(keeper, SIGTSTP);
  /* CONT too, so that it is noted at once who sent it: while one is pending, another is lost. */
  sigset_t both;
  sigemptyset(&both);
  sigaddset(&both, SIGTSTP);
  sigaddset(&both, SIGCONT);
  sigprocmask(SIG_UNBLOCK, &both, NULL); /* stops here */
  sigprocmask(SIG_BLOCK, &both, NULL);
  sigaction(SIGTSTP, &noting, NULL);
  close(ends[1]);
  if (twin <= 0) return;
  kill(twin, SIGKILL);
  waitpid(twin, NULL, 0);
}
