/* Where values of a run may stand, and how a fifo is watched: linux/vault.c and darwin/vault.c. */
#ifndef CUSTODY_VAULT_H
#define CUSTODY_VAULT_H

#include <stdbool.h>
#include <stddef.h>

/* deliver.c: writes all of it; false and errno. */
bool vault_put(int fd, const char *value, size_t bytes);
/* A folder under which this user may put the folder of a run; NULL where there is none that may hold values. */
const char *vault_place(void);
/* Whether what stands in that folder is where values may be. */
bool vault_holds(int folder);
/* A file without a name that holds the value and that whoever gets it can only read; -1 and errno. */
int vault_unnamed(const char *value, size_t bytes);

/* Makes room for so much in a fifo that is open both ways. */
void fifo_size(int fd, size_t bytes);
/* Begins to watch such a fifo, filled. Its number, or -1 and errno. */
int fifo_note(int fd, const char *path);
/* Readable when there may be news of a fifo; -1 where none is watched. */
int fifo_watch(void);
/* Calls `opened` with the number of each fifo whose reader has come. */
void fifo_opened(void (*opened)(int note));
void fifo_unwatch(void);

#endif
