/* The signals that come for the run's root, and how the keeper itself ends by one. */
#ifndef CUSTODY_SIGNALS_H
#define CUSTODY_SIGNALS_H

#include "keeper.h"

#include <sys/signalfd.h>

/* Blocks every signal there is and gives a descriptor to read them from; -1 and errno. */
int signals_open(struct inherited *inherited);
/* In the child: as the caller had them. */
void signals_restore(const struct inherited *inherited);
/* Sent by a process of our own tree: it was meant for the whole group, or for us alone. */
bool signal_is_inner(const struct signalfd_siginfo *info);
/* The same signal to the root, with its value where it has one. */
void signal_pass(const struct signalfd_siginfo *info, pid_t root);
/* Ends this process by that signal, as it ended the root: whoever waits for us sees what happened. Returns
   where that is not possible, as for the first process of a container. */
void signal_die(int signal);

#endif
