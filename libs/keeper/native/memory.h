/* The folder of one run, where values may stand: vault.h says where that is. */
#ifndef CUSTODY_MEMORY_H
#define CUSTODY_MEMORY_H

#include <stdbool.h>

#define PLACE_BYTES_MAX 256

/* Makes `place/custody-GRANT` for this user alone. A descriptor of it, or -1 and errno. */
int memory_make(const char *place, const char *grant);
/* Removes a run's folder with all that stands in it, with the rights of its owner. True when it is gone. */
bool memory_remove(const char *place, const char *grant);

#endif
