/* The part of macOS's <sys/event.h> that the keeper uses, with the numbers that it has there. */
#ifndef SHIM_SYS_EVENT_H
#define SHIM_SYS_EVENT_H

#include <stdint.h>
#include <time.h>

#define EVFILT_PROC (-5)
#define EVFILT_TIMER (-7)

#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_ONESHOT 0x0010
#define EV_CLEAR 0x0020
#define EV_EOF 0x8000

#define NOTE_EXIT 0x80000000U
#define NOTE_FORK 0x40000000U
#define NOTE_EXEC 0x20000000U
#define NOTE_EXITSTATUS 0x04000000U
#define NOTE_TRACK 0x00000001U
#define NOTE_TRACKERR 0x00000002U
#define NOTE_CHILD 0x00000004U

#define NOTE_ABSOLUTE 0x00000008U
#define NOTE_CRITICAL 0x00000020U
#define NOTE_MACH_CONTINUOUS_TIME 0x00000080U
#define NOTE_MACHTIME 0x00000100U

struct kevent {
  uintptr_t ident;
  int16_t filter;
  uint16_t flags;
  uint32_t fflags;
  intptr_t data;
  void *udata;
};

#define EV_SET(event, a, b, c, d, e, f)                                                                              \
  (*(event) = (struct kevent){.ident = (uintptr_t)(a),                                                               \
                              .filter = (int16_t)(b),                                                                \
                              .flags = (uint16_t)(c),                                                                \
                              .fflags = (uint32_t)(d),                                                               \
                              .data = (intptr_t)(e),                                                                 \
                              .udata = (f)})

int kqueue(void);
int kevent(int queue, const struct kevent *changes, int change_count, struct kevent *events, int event_count,
           const struct timespec *timeout);

#endif
