/* What the systems do each in their own way with the socket to the agent: linux/socket.c and darwin/socket.c. */
#ifndef CUSTODY_SOCKET_H
#define CUSTODY_SOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* A Unix stream socket that blocks nobody and that no child inherits; -1 and errno. */
int socket_open(void);
/* As send(2). An agent that has gone is an error to handle, not a SIGPIPE. */
ssize_t socket_send(int fd, const void *bytes, size_t count);
/* Who listens at the other end, by the word of the kernel; false and errno. */
bool socket_peer(int fd, uid_t *uid);
/* Keeps what is received there out of swap, which is disk. Best effort: the limit may be lower. */
void socket_lock(void *bytes, size_t count);

#endif
