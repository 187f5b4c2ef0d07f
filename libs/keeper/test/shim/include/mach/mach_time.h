/* The part of macOS's <mach/mach_time.h> that the keeper uses. */
#ifndef SHIM_MACH_TIME_H
#define SHIM_MACH_TIME_H

#include <stdint.h>

typedef struct {
  uint32_t numer, denom;
} mach_timebase_info_data_t;

int mach_timebase_info(mach_timebase_info_data_t *info);
uint64_t mach_continuous_time(void);

#endif
