/* Owns time: the boot-time clock and the one alarm. */
#include "keeper.h"

#include "alarm.h"

#include <mach/mach_time.h>
#include <sys/event.h>
#include <unistd.h>

#define ALARM 1 /* its ident */

static int queue = -1;
static int64_t set_boot_ms = NEVER;
static mach_timebase_info_data_t base; /* ticks * numer / denom are nanoseconds */

/* mach_continuous_time counts through sleep, no change of the wall clock moves it, and the agent reads the same. */
int64_t boot_us(void) {
  if (base.denom == 0) mach_timebase_info(&base);
  return (int64_t)(mach_continuous_time() * base.numer / base.denom / 1000);
}

int64_t boot_ms(void) { return boot_us() / 1000; }

/* A descriptor, not a signal: no timer of this system can wake a process that job control has stopped (stop.c). A
   queue of its own, because the descriptor says by itself that the alarm rings. */
bool alarm_open(void) {
  set_boot_ms = NEVER;
  return (queue = kqueue()) >= 0;
}

int alarm_fd(void) { return queue; }
int64_t alarm_set(void) { return set_boot_ms; }

void alarm_heard(void) {
  struct kevent event;
  struct timespec now = {0};
  kevent(queue, NULL, 0, &event, 1, &now);
  set_boot_ms = NEVER;
}

void alarm_at(int64_t at_boot_ms) {
  if (at_boot_ms == set_boot_ms) return;
  set_boot_ms = at_boot_ms;
  struct kevent change;
  if (at_boot_ms == NEVER) {
    EV_SET(&change, ALARM, EVFILT_TIMER, EV_DELETE, 0, 0, NULL);
  } else {
    if (at_boot_ms < 1) at_boot_ms = 1;
    if (base.denom == 0) mach_timebase_info(&base);
    uint64_t at_ns = (uint64_t)at_boot_ms * 1000000;
    /* An instant of mach_continuous_time, so that it passes during sleep too; a relative one would wait on. */
    uint32_t notes = NOTE_ABSOLUTE | NOTE_MACHTIME | NOTE_MACH_CONTINUOUS_TIME | NOTE_CRITICAL;
    intptr_t ticks = (intptr_t)(at_ns / base.numer * base.denom);
    EV_SET(&change, ALARM, EVFILT_TIMER, EV_ADD | EV_ONESHOT, notes, ticks, NULL);
  }
  kevent(queue, &change, 1, NULL, 0, NULL); /* one that has rung is not there to delete */
}
