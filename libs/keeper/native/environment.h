/* The environment of the run's root. */
#ifndef CUSTODY_ENVIRONMENT_H
#define CUSTODY_ENVIRONMENT_H

#include "frame.h"

/* unistd.h declares it on some systems alone. */
extern char **environ;

/* Ours, without what the grant's `keep` and `drop` leave out, and what the grant gives, where it was received.
   The caller frees the array. NULL when memory is out or an `env` is no NAME=VALUE. */
char **environment(const struct frame *granted, char *marker);
/* Whether PATH leads to such a file at all: execvpe(3) says EACCES also for a folder that it may not search,
   where a shell says "not found". */
bool on_path(const char *name);

#endif
