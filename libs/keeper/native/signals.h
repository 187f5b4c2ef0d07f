/* The signals that come for the run's root, and how the keeper itself ends by one. */
#ifndef CUSTODY_SIGNALS_H
#define CUSTODY_SIGNALS_H

#include "keeper.h"

#include <poll.h>

enum origin {
  ORIGIN_PROCESS,  /* somebody sent it */
  ORIGIN_TERMINAL, /* the kernel, to the whole foreground group of our terminal */
  ORIGIN_KERNEL,   /* the kernel, to this process alone: a child has changed, the alarm rings, a word is there */
};

struct heard {
  int signal;
  enum origin origin;
  pid_t sender;       /* 0 where it is not known */
  uid_t uid;          /* of the sender */
  bool queued;        /* with the value: sigqueue(3) */
  union sigval value;
};

/* Holds every signal there is and gives a descriptor that is readable when one has come; -1 and errno. */
int signals_open(struct inherited *inherited);
/* poll(2), with signals and the alarm let in: the first entry is that descriptor. It waits without an end, or not. */
void signals_wait(struct pollfd *ready, nfds_t count, bool at_once);
/* The next signal that has come; false when there is none. */
bool signals_next(struct heard *heard);
/* In the child: as the caller had them. */
void signals_restore(const struct inherited *inherited);
/* Whether the caller had that signal ignored, as nohup(1) does. */
bool signal_ignored(int signal);
/* The same signal to the root, with its value where it has one. */
void signal_pass(const struct heard *heard, pid_t root);
/* Ends this process by that signal, as it ended the root: whoever waits for us sees what happened. Returns
   where that is not possible, as for the first process of a container. */
void signal_die(int signal);

#endif
