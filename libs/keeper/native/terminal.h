/* The terminal of the caller. */
#ifndef CUSTODY_TERMINAL_H
#define CUSTODY_TERMINAL_H

#include "keeper.h"

/* Before the child exists: whose the terminal is, and how it is set. */
void terminal_note(void);
/* Whether our group has it in the foreground now. */
bool terminal_ours(void);
/* Before the keeper stops with its root: the terminal goes back to the group that it was received with. */
void terminal_leave(void);
/* When it goes on in the foreground: the group of the tree that had the terminal gets it again. */
void terminal_return(void);
/* When the tree is empty: a terminal left to a dead group comes back. `modes`: as it was set, too, since
   what set it otherwise was ended before it could put that right. */
void terminal_back(bool modes);

#endif
