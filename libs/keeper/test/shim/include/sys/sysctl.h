/* The part of macOS's <sys/sysctl.h> that the keeper uses, with the numbers that it has there. */
#ifndef SHIM_SYS_SYSCTL_H
#define SHIM_SYS_SYSCTL_H

#include <stddef.h>
#include <sys/time.h>
#include <sys/types.h>

#define CTL_KERN 1
#define KERN_PROC 14
#define KERN_PROC_PID 1
#define KERN_PROCARGS2 49

#define SRUN 2
#define SSTOP 4
#define SZOMB 5

struct kinfo_proc {
  struct {
    struct timeval p_starttime;
    char p_stat;
    char p_comm[17];
  } kp_proc;
  struct {
    struct {
      uid_t cr_uid;
    } e_ucred;
    pid_t e_ppid;
  } kp_eproc;
};

int sysctl(int *name, unsigned names, void *old, size_t *old_bytes, void *new, size_t new_bytes);

#endif
