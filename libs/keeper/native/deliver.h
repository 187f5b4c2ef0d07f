/* Credentials that reach the child otherwise than in its environment: files, fifos, descriptors. */
#ifndef CUSTODY_DELIVER_H
#define CUSTODY_DELIVER_H

#include "frame.h"

#define DELIVERIES_MAX 64

/* Makes what the grant's `file`, `fifo` and `fd` fields hold. False, with a line said: nothing of it is left. */
bool deliver_make(const struct frame *granted, const char *place, const char *grant);
/* The NAME=PATH or NAME=NUMBER of each, for the child's environment; NULL past the last. */
char *deliver_entry(size_t at);
/* In the child, before exec: each descriptor at its number. */
void deliver_pass(void);
/* In the keeper, once the child has its own: our descriptors are closed. */
void deliver_passed(void);
/* Readable when a fifo has been opened; -1 where there is none. */
int deliver_watch(void);
/* A fifo that has been opened is taken away: no second reader finds it. */
void deliver_opened(void);
/* Nothing of it is left. */
void deliver_clear(void);

#endif
