/* Owns what the kernel says about a process through sysctl(3) and libproc, and how one is signalled. */
#include "keeper.h"

#include "proc.h"

#include <errno.h>
#include <libproc.h>
#include <string.h>
#include <sys/sysctl.h>

#define ARGUMENTS_BYTES_MAX (1024 * 1024) /* ARG_MAX: the kernel takes no more for exec */

/* KERN_PROC, which ps(1) uses, and not PROC_PIDTBSDINFO: that one tells nothing about the processes of other
   users, and a program that is setuid runs as one. */
static bool ask(pid_t pid, struct kinfo_proc *info) {
  int name[] = {CTL_KERN, KERN_PROC, KERN_PROC_PID, pid};
  size_t bytes = sizeof *info;
  return sysctl(name, 4, info, &bytes, NULL, 0) == 0 && bytes >= sizeof *info; /* 0 bytes: no such process */
}

bool process_read(pid_t pid, struct process *process) {
  struct kinfo_proc info;
  if (!ask(pid, &info)) return false;
  process->pid = pid;
  process->ppid = info.kp_eproc.e_ppid;
  /* When it was forked, on the wall clock of that time; it never changes after that. */
  process->start_ticks =
      (uint64_t)info.kp_proc.p_starttime.tv_sec * 1000000 + (uint64_t)info.kp_proc.p_starttime.tv_usec;
  process->alive = info.kp_proc.p_stat != SZOMB;
  process->threaded = false;
  process->stopped = info.kp_proc.p_stat == SSTOP;
  size_t name_bytes = strnlen(info.kp_proc.p_comm, sizeof info.kp_proc.p_comm);
  memcpy(process->name, info.kp_proc.p_comm, name_bytes);
  process->name[name_bytes] = '\0';
  blank_controls(process->name, name_bytes);
  return true;
}

bool each_process(void (*visit)(pid_t pid, void *with), void *with) {
  static pid_t pids[PROCESSES_MAX];
  int count = proc_listallpids(pids, (int)sizeof pids);
  for (int i = 0; i < count; i++) {
    if (pids[i] > 0) visit(pids[i], with);
  }
  return count > 0;
}

bool process_owner(pid_t pid, uid_t *uid) {
  struct kinfo_proc info;
  if (!ask(pid, &info)) return false;
  *uid = info.kp_eproc.e_ucred.cr_uid;
  return true;
}

void process_group_path(pid_t pid, char *path, size_t bytes) {
  (void)pid, (void)bytes;
  path[0] = '\0'; /* there are no such groups */
}

/* Those of the same user may be read, and of every user by root. Of a program that came with the system and is
   protected (CS_RESTRICT: /bin/sh, /bin/sleep) the kernel gives the arguments and leaves the environment out,
   to root too. */
bool process_environment(pid_t pid, bool (*piece)(const char *bytes, size_t count, void *with), void *with) {
  static char text[ARGUMENTS_BYTES_MAX];
  int name[] = {CTL_KERN, KERN_PROCARGS2, pid}, arguments;
  size_t bytes = sizeof text;
  if (sysctl(name, 3, text, &bytes, NULL, 0) != 0 || bytes < sizeof arguments) return false;
  /* Their number, the path that was executed, NULs up to a word, the arguments, the environment. */
  memcpy(&arguments, text, sizeof arguments);
  size_t at = sizeof arguments;
  while (at < bytes && text[at] != '\0') at++;
  while (at < bytes && text[at] == '\0') at++;
  for (; arguments > 0 && at < bytes; arguments--) at += strnlen(text + at, bytes - at) + 1;
  return at < bytes && piece(text + at, bytes - at, with);
}

int process_open(pid_t pid) { return pid; }

/* No pidfd: the pid is looked up, seen to be the process that was meant, and signalled. Between those two calls it
   could end, be collected, and its number be given away; numbers go round only after 99,999 others, so within
   microseconds that takes a fork rate which no machine has. It cannot be ruled out. */
int process_signal(int handle, const struct process *process, int signal) {
  struct process now;
  if (!process_read(handle, &now) || now.start_ticks != process->start_ticks) return ESRCH;
  return kill(handle, signal) == 0 ? 0 : errno;
}

void process_close(int handle) { (void)handle; }
