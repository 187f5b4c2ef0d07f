/* Owns time: the boot-time clock and the one alarm, which rings for a stopped keeper too. */
#include "keeper.h"

#include <time.h>

static timer_t alarm_timer;

int64_t boot_us(void) {
  struct timespec now;
  /* CLOCK_BOOTTIME counts through suspends and no wall-clock change moves it. */
  clock_gettime(CLOCK_BOOTTIME, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int64_t boot_ms(void) { return boot_us() / 1000; }

bool alarm_open(void) {
  /* A timerfd would leave a keeper that job control has stopped asleep past its ceiling. SIGCONT wakes
     a stopped process even while it is blocked, and being blocked it is read from the signalfd. */
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGCONT};
  return timer_create(CLOCK_BOOTTIME, &event, &alarm_timer) == 0;
}

void alarm_at(int64_t at_boot_ms) {
  static int64_t set_boot_ms = NEVER;
  if (at_boot_ms == set_boot_ms) return;
  set_boot_ms = at_boot_ms;
  struct itimerspec when = {0};
  if (at_boot_ms != NEVER) {
    if (at_boot_ms < 1) at_boot_ms = 1; /* all zero would disarm */
    when.it_value.tv_sec = (time_t)(at_boot_ms / 1000);
    when.it_value.tv_nsec = (long)(at_boot_ms % 1000) * 1000000;
    when.it_interval.tv_sec = 1; /* a stop signal deletes a pending SIGCONT: ring again */
  }
  timer_settime(alarm_timer, TIMER_ABSTIME, &when, NULL);
}
