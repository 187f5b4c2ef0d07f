/* Owns how the keeper stops with its root without going deaf to the ceiling or to the agent. */
#include "keeper.h"
#include "link.h"
#include "stop.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

/* A SIGCONT for whatever arrives: it wakes this process where job control has stopped it. */
static void link_wakes(bool on) {
  if (link_fd() < 0) return;
  int flags = fcntl(link_fd(), F_GETFL);
  if (on) {
    fcntl(link_fd(), F_SETOWN, getpid());
    fcntl(link_fd(), F_SETSIG, SIGCONT);
  }
  fcntl(link_fd(), F_SETFL, on ? flags | O_ASYNC : flags & ~O_ASYNC);
}

void stop_self(void) {
  struct sigaction stop = {.sa_handler = SIG_DFL};
  sigaction(SIGTSTP, &stop, NULL);
  /* TSTP and not STOP, for two kernel reasons. In an orphaned process group, where no shell could wake us
     again, TSTP does nothing. And it can wait, blocked, while the socket is looked at: a SIGCONT that comes
     meanwhile deletes it, so no word of the agent falls between the look and the stop. */
  kill(getpid(), SIGTSTP);
  link_wakes(true);
  struct pollfd word = {.fd = link_fd(), .events = POLLIN};
  if (poll(&word, 1, 0) > 0) kill(getpid(), SIGCONT);
  sigset_t tstp;
  sigemptyset(&tstp);
  sigaddset(&tstp, SIGTSTP);
  sigprocmask(SIG_UNBLOCK, &tstp, NULL); /* stops here */
  sigprocmask(SIG_BLOCK, &tstp, NULL);
  link_wakes(false);
}
