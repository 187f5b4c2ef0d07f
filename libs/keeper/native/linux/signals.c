/* Owns signals: all of them held, each passed on to the root once, the caller's mask and dispositions given back. */
#include "keeper.h"

#include "signals.h"

#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SET_BYTES 8 /* of the kernel's set; the C library's is larger */

static int descriptor;

int signals_open(struct inherited *inherited) {
  /* By number: the C library keeps two real-time signals for itself and would leave them out, and a stranger can
     send us those as well. A fault of our own is not held back: the kernel forces it on a thread that blocks it. */
  sigset_t all;
  memset(&all, 0xff, sizeof all);
  memset(&inherited->mask, 0, sizeof inherited->mask);
  if (syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &inherited->mask, SET_BYTES) != 0) return -1;
  /* An ignored SIGCHLD, which a parent can leave us, would make the kernel reap our children behind our back
     (waitpid(2)). Any other that is ignored is held as well, since it is blocked: the root decides on it. */
  struct sigaction standard = {.sa_handler = SIG_DFL};
  sigaction(SIGCHLD, &standard, &inherited->sigchld);
  return descriptor = signalfd(-1, &all, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* The alarm is a signal too. */
void signals_wait(struct pollfd *ready, nfds_t count, bool at_once) { poll(ready, count, at_once ? 0 : -1); }

bool signals_next(struct heard *heard) {
  struct signalfd_siginfo info; /* one at a time: what is not taken stays in the kernel, where poll sees it */
  if (read(descriptor, &info, sizeof info) != (ssize_t)sizeof info) return false;
  *heard = (struct heard){.signal = (int)info.ssi_signo, .uid = info.ssi_uid, .queued = info.ssi_code == SI_QUEUE};
  /* What is written to a terminal has SI_KERNEL, the alarm SI_TIMER; other words of the kernel are positive. */
  if (info.ssi_code == SI_KERNEL) heard->origin = ORIGIN_TERMINAL;
  else if (info.ssi_code > 0 || info.ssi_code == SI_TIMER) heard->origin = ORIGIN_KERNEL;
  else heard->sender = (pid_t)info.ssi_pid;
  heard->value.sival_ptr = (void *)(uintptr_t)info.ssi_ptr;
  return true;
}

bool signal_ignored(int signal) {
  struct sigaction action;
  return sigaction(signal, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

void signals_restore(const struct inherited *inherited) {
  sigaction(SIGCHLD, &inherited->sigchld, NULL);
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &inherited->mask, NULL, SET_BYTES);
}

void signal_pass(const struct heard *heard, pid_t root) {
  int signal = heard->signal;
  if (heard->queued) {
    siginfo_t with = {.si_signo = signal, .si_code = SI_QUEUE};
    with.si_pid = heard->sender;
    with.si_uid = heard->uid;
    with.si_value = heard->value;
    if (syscall(SYS_rt_sigqueueinfo, root, signal, &with) == 0) return;
  }
  kill(root, signal); /* not reaped yet, so the pid is still its own */
}

void signal_die(int signal) {
  struct sigaction standard = {.sa_handler = SIG_DFL};
  sigaction(signal, &standard, NULL);
  kill(getpid(), signal); /* no core: the keeper is not dumpable */
  uint64_t others = ~(UINT64_C(1) << (signal - 1)); /* held: one of them might end us first */
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &others, NULL, SET_BYTES);
}
