/* A folder of one run on a file system that is memory. */
#ifndef CUSTODY_MEMORY_H
#define CUSTODY_MEMORY_H

#include <stdbool.h>

#define PLACE_BYTES_MAX 256

/* Where this user may put such a folder: $XDG_RUNTIME_DIR, else /dev/shm; NULL where neither is memory. */
const char *memory_place(void);
/* Makes `place/custody-GRANT` for this user alone. A descriptor of it, or -1 and errno. */
int memory_make(const char *place, const char *grant);
/* Removes a run's folder with all that stands in it, with the rights of its owner. True when it is gone. */
bool memory_remove(const char *place, const char *grant);

#endif
