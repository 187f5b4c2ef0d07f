/* Owns signals: all of them held, each passed on to the root once, the caller's mask and dispositions given back. */
#include "keeper.h"

#include "alarm.h"
#include "signals.h"
#include "terminal.h"
#include "twin.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define ENTRIES_MAX 8

/* What a handler leaves in the pipe; smaller than PIPE_BUF, so that it is written whole or not at all. */
struct noted {
  int signal, code;
  pid_t pid;
  uid_t uid;
};

static int ends[2] = {-1, -1};
static struct sigaction had[NSIG]; /* as the caller had them */

static void note(int signal, siginfo_t *info, void *context) {
  int fault = errno;
  struct noted noted = {.signal = signal, .code = info->si_code, .pid = info->si_pid, .uid = info->si_uid};
  ssize_t ignored = write(ends[1], &noted, sizeof noted); /* thousands are held already where this one is lost */
  (void)ignored;
  /* One in each wait: as long as others send faster than this runs, the next would come before poll is reached. */
  for (int each = 1; each < NSIG; each++) sigaddset(&((ucontext_t *)context)->uc_sigmask, each);
  errno = fault;
}

/* There is no signalfd, and EVFILT_SIGNAL counts without saying who sent. So each has a handler that writes into a
   pipe; but all stay blocked, and are let in where we wait and nowhere else: no call is cut short, and no handler
   runs in the child. */
int signals_open(struct inherited *inherited) {
  sigset_t all;
  sigfillset(&all);
  if (sigprocmask(SIG_BLOCK, &all, &inherited->mask) != 0 || pipe(ends) != 0) return -1;
  for (int end = 0; end < 2; end++) {
    if (fcntl(ends[end], F_SETFD, FD_CLOEXEC) != 0 || fcntl(ends[end], F_SETFL, O_NONBLOCK) != 0) return -1;
  }
  struct sigaction noting = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_RESTART, .sa_mask = all};
  for (int signal = 1; signal < NSIG; signal++) sigaction(signal, &noting, &had[signal]); /* not KILL, not STOP */
  return ends[0];
}

void signals_wait(struct pollfd *ready, nfds_t count, bool at_once) {
  struct pollfd entries[ENTRIES_MAX];
  if (count > ENTRIES_MAX - 1) count = ENTRIES_MAX - 1;
  memcpy(entries, ready, count * sizeof *ready);
  entries[count] = (struct pollfd){.fd = alarm_fd(), .events = POLLIN};
  sigset_t none, held;
  sigemptyset(&none);
  /* One that comes before poll has left its word in the pipe, which poll looks at. */
  sigprocmask(SIG_SETMASK, &none, &held);
  int found = poll(entries, count + 1, at_once ? 0 : -1);
  sigprocmask(SIG_SETMASK, &held, NULL);
  if (found < 0) poll(entries, count + 1, 0); /* a handler cut it short: who is ready now? */
  memcpy(ready, entries, count * sizeof *ready);
  if (entries[count].revents != 0) alarm_heard();
}

/* The kernel does not mark what a terminal sends: the sender is whoever typed, a terminal's own program. So a signal of
   those that keys send, to a group in the foreground, from outside of the session, is taken for the terminal's. */
static bool from_terminal(const struct noted *noted) {
  bool key = noted->signal == SIGINT || noted->signal == SIGQUIT || noted->signal == SIGTSTP || noted->signal == SIGWINCH;
  return key && terminal_ours() && (noted->pid <= 0 || getsid(noted->pid) != getsid(0));
}

bool signals_next(struct heard *heard) {
  struct noted noted;
  if (read(ends[0], &noted, sizeof noted) != (ssize_t)sizeof noted) return false;
  *heard = (struct heard){.signal = noted.signal, .sender = noted.pid, .uid = noted.uid};
  /* Of a child the kernel says CLD_*; what kill(2) sends has 0 here, whatever the manual says, or SI_USER. */
  bool child = noted.signal == SIGCHLD && (noted.pid <= 0 || (noted.code > 0 && noted.code != SI_USER));
  bool called = noted.signal == SIGCONT && noted.pid > 0 && noted.pid == stop_twin();
  if (child || called) heard->origin = ORIGIN_KERNEL;
  else if (from_terminal(&noted)) heard->origin = ORIGIN_TERMINAL;
  return true;
}

void signals_restore(const struct inherited *inherited) {
  for (int signal = 1; signal < NSIG; signal++) sigaction(signal, &had[signal], NULL);
  sigprocmask(SIG_SETMASK, &inherited->mask, NULL);
}

bool signal_ignored(int signal) { return had[signal].sa_handler == SIG_IGN; }

void signal_pass(const struct heard *heard, pid_t root) {
  kill(root, heard->signal); /* not reaped yet, so the pid is still its own; there is no sigqueue(3) here */
}

void signal_die(int signal) {
  struct sigaction standard = {.sa_handler = SIG_DFL};
  sigaction(signal, &standard, NULL);
  kill(getpid(), signal); /* no core: see keeper_hide */
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, signal);
  sigprocmask(SIG_UNBLOCK, &one, NULL); /* the others are held: one of them might end us first */
}
