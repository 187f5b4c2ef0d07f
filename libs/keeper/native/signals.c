/* Owns signals: all of them held, each passed on to the root once, the caller's mask and dispositions given back. */
#include "keeper.h"

#include "proc.h"
#include "signals.h"

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ANCESTORS_MAX 4096
#define SET_BYTES 8 /* of the kernel's set; the C library's is larger */

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
  return signalfd(-1, &all, SFD_NONBLOCK | SFD_CLOEXEC);
}

void signals_restore(const struct inherited *inherited) {
  sigaction(SIGCHLD, &inherited->sigchld, NULL);
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &inherited->mask, NULL, SET_BYTES);
}

bool signal_is_inner(const struct signalfd_siginfo *info) {
  if (info->ssi_code > 0 || info->ssi_code == SI_TIMER) return false; /* the kernel's */
  struct process process = {.ppid = (pid_t)info->ssi_pid};
  for (int steps = 0; steps < ANCESTORS_MAX; steps++) {
    if (process.ppid == getpid()) return true;
    if (process.ppid <= 1 || !process_read(process.ppid, &process)) return false;
  }
  return false;
}

void signal_pass(const struct signalfd_siginfo *info, pid_t root) {
  int signal = (int)info->ssi_signo;
  if (info->ssi_code == SI_QUEUE) { /* with a value: sigqueue(3) */
    siginfo_t with = {.si_signo = signal, .si_code = SI_QUEUE};
    with.si_pid = (pid_t)info->ssi_pid;
    with.si_uid = info->ssi_uid;
    with.si_value.sival_ptr = (void *)(uintptr_t)info->ssi_ptr;
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
