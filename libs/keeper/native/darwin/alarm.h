/* The alarm of clock.c, for whoever waits. */
#ifndef CUSTODY_ALARM_H
#define CUSTODY_ALARM_H

#include <stdint.h>

/* Readable when it rings. */
int alarm_fd(void);
/* What it is set to; NEVER where it is not. */
int64_t alarm_set(void);
/* It has rung; the next alarm_at sets it again. */
void alarm_heard(void);

#endif
