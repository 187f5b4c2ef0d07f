/* What headers that both systems have hold on macOS alone: included before every file of the build over the shim. */
#ifndef SHIM_DARWIN_H
#define SHIM_DARWIN_H

#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#define _CS_DARWIN_USER_TEMP_DIR 65537
#define SO_NOSIGPIPE 0x1022

int getpeereid(int fd, uid_t *uid, gid_t *gid);
size_t shim_confstr(int name, char *text, size_t bytes);
int shim_setsockopt(int fd, int level, int option, const void *value, socklen_t bytes);
ssize_t shim_send(int fd, const void *bytes, size_t count, int flags);

#define confstr shim_confstr
#define setsockopt shim_setsockopt
#define send shim_send

#endif
