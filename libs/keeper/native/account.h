/* The account of a tree: a row for every process that the keeper reaps or meets, bounded. */
#ifndef CUSTODY_ACCOUNT_H
#define CUSTODY_ACCOUNT_H

#include "proc.h"

#define ROWS_MAX 256

struct rows {
  struct row row[ROWS_MAX];
  size_t count;
  pid_t root;    /* of the run: its row gives way to none */
  bool ending;   /* the run has begun to end: who exited before gives way to whom that meets */
  bool surviving; /* during the one walk after the root's exit: who is met is a survivor */
  struct unlisted {
    unsigned exit, signal, killed;
  } unlisted; /* reaped, and no row had room for them */
};

/* The row of a living process that a walk has met; NULL where there is no room. */
struct row *account_met(struct rows *rows, const struct process *process);
/* The row of a dead child that is not collected yet, so that /proc still tells of it; NULL where there is no room. */
struct row *account_dead(struct rows *rows, pid_t pid);
/* What became of it, now that it is collected. `row` may be NULL: it is counted then. */
void account_end(struct rows *rows, struct row *row, char how, int number);
/* The tree was killed from outside since then, and that was custody's doing: its KILLs are, and nobody survived. */
void account_claim(struct rows *rows, int64_t since_boot_us);
/* Adds every row, and what is beyond them, to the frame that is being put together. */
void account_put(struct rows *rows);

#endif
