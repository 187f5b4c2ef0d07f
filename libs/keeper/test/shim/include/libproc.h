/* The part of macOS's <libproc.h> that the keeper uses. */
#ifndef SHIM_LIBPROC_H
#define SHIM_LIBPROC_H

#include <sys/types.h>

/* Pids into a buffer of so many bytes; how many. What does not fit is left out. Zombies are among them. */
int proc_listallpids(void *buffer, int bytes);
int proc_listchildpids(pid_t parent, void *buffer, int bytes);

#endif
