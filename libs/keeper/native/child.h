/* The run's root process. */
#ifndef CUSTODY_CHILD_H
#define CUSTODY_CHILD_H

#include "keeper.h"

/* Keeps this process, which will hold credentials, out of core files and other people's debuggers. */
void keeper_hide(void);
/* Starts the command with `environ` as it stands. The pid; or -1 and the errno of what failed, where
   *executing says whether it was the command itself that could not be executed. */
pid_t child_start(char **command, const struct inherited *inherited, int *fault, bool *executing);

#endif
