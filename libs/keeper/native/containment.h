/* What a mechanism that holds a tree must offer. tree.c is Linux's; kqueue will be macOS's. */
#ifndef CUSTODY_CONTAINMENT_H
#define CUSTODY_CONTAINMENT_H

#include "account.h"

enum act {
  ACT_LOOK, /* nothing: who is there */
  ACT_TERM, /* TERM and CONT to every process that has had none yet */
  ACT_STOP, /* no fork from here on */
  ACT_KILL,
};

struct walk {
  int living;   /* how many were met */
  int spared;   /* how many of them had had no KILL before */
  bool refused; /* the kernel does not let us signal one of them */
};

struct containment {
  const char *name; /* as `containment` has it in the protocol */
  /* Before the child exists. False, with errno: nothing can be held. */
  bool (*prepare)(void);
  /* One walk over the living tree, parents before children. */
  struct walk (*pass)(enum act act, struct rows *rows);
};

extern const struct containment containment;

#endif
