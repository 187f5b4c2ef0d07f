/* The one connection to the agent. */
#ifndef CUSTODY_LINK_H
#define CUSTODY_LINK_H

#include "frame.h"

enum link_news { LINK_QUIET, LINK_FRAME, LINK_LOST, LINK_BROKEN };

/* Connects: the path given, else $CUSTODY_SOCKET, else the two well-known ones.
   0, or an errno; link_path() is the path that was tried last. */
int link_open(const char *path);
/* Connects to that same path again. */
int link_again(void);
const char *link_path(void);
int link_fd(void); /* -1 while there is no connection */
void link_close(void);
/* Sends the frame under construction and wipes it. False: lost, and closed. */
bool link_send(int64_t wait_ms_max);
/* Takes in what the socket holds, without waiting. */
void link_receive(void);
/* The next frame; it stays valid until link_drop. LINK_BROKEN: the agent broke the grammar. */
enum link_news link_next(struct frame *frame, enum frame_fault *fault);
/* Wipes the frame that link_next gave. */
void link_drop(const struct frame *frame);

#endif
