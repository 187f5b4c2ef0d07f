/* What a mechanism that holds a tree must offer: linux/tree.c and darwin/kqueue.c do. */
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
  /* The root has just been started, with that grant in its marker. */
  void (*hold)(const struct process *root, const char *grant);
  /* A descriptor that is readable when the tree has changed and no SIGCHLD tells of it, or -1. */
  int (*watch)(void);
  /* Takes in what that descriptor tells. */
  void (*hear)(void);
  /* Asked once no child of our own is left: whether that means that nobody of the tree is. */
  bool (*empty)(void);
  /* One walk over the living tree. */
  struct walk (*pass)(enum act act, struct rows *rows);
};

extern const struct containment containment;

/* For lists whose elements begin with a pid, sorted by it: the order, and where the first that is not below it stands. */
static inline int by_pid(const void *a, const void *b) {
  pid_t first = *(const pid_t *)a, second = *(const pid_t *)b;
  return (first > second) - (first < second);
}

static inline size_t place_of_pid(pid_t pid, const void *list, size_t count, size_t element_bytes) {
  size_t from = 0, to = count;
  while (from < to) {
    size_t middle = from + (to - from) / 2;
    if (by_pid((const char *)list + middle * element_bytes, &pid) < 0) from = middle + 1;
    else to = middle;
  }
  return from;
}

/* row.c: puts a process that a walk has met on record, and does to it what the walk is for. */
void act_on(enum act act, const struct process *process, int handle, struct rows *rows, struct walk *walk);

#endif
