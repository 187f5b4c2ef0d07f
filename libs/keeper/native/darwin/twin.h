/* Who stands in for a stopped keeper: stop.c. */
#ifndef CUSTODY_TWIN_H
#define CUSTODY_TWIN_H

#include <sys/types.h>

/* The last that called the keeper, for whoever hears it; 0 where there was none. */
pid_t stop_twin(void);

#endif
