/* The directories of /proc whose entries are numbers: processes, and the threads of one. */
#ifndef CUSTODY_NUMBERS_H
#define CUSTODY_NUMBERS_H

#include <stdbool.h>
#include <sys/types.h>

/* Calls visit for every numeric entry; false, with errno, where the directory cannot be read. */
bool each_number(const char *directory, void (*visit)(pid_t number, void *with), void *with);

#endif
