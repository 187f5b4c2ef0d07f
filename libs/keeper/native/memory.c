/* Owns the folder that a run's files stand in: for one user, gone with the tree. */
#include "keeper.h"
#include "memory.h"
#include "vault.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH_MAX 16
#define FOLDER_BYTES_MAX (PLACE_BYTES_MAX + sizeof "/custody-" + GRANT_BYTES_MAX)

static bool path_of(char path[FOLDER_BYTES_MAX], const char *place, const char *grant) {
  int bytes = snprintf(path, FOLDER_BYTES_MAX, "%s/custody-%s", place, grant);
  return place[0] == '/' && strchr(grant, '/') == NULL && bytes > 0 && (size_t)bytes < FOLDER_BYTES_MAX;
}

int memory_make(const char *place, const char *grant) {
  char path[FOLDER_BYTES_MAX];
  if (!path_of(path, place, grant)) return errno = EINVAL, -1;
  /* The mask is the caller's and goes on to the child: put back at once. */
  mode_t mask = umask(077);
  int made = mkdir(path, 0700);
  umask(mask);
  if (made != 0) return -1; /* EEXIST too: in a shared folder somebody else may have been first */
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd >= 0 && vault_holds(fd)) return fd;
  int fault = fd < 0 ? errno : ENOTSUP;
  if (fd >= 0) close(fd);
  rmdir(path);
  errno = fault;
  return -1;
}

/* By descriptor from here on: a name that is swapped for a link leads nowhere. */
static void empty(int fd, int depth) {
  DIR *entries = fdopendir(fd);
  if (entries == NULL) {
    close(fd);
    return;
  }
  for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
    const char *name = entry->d_name;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
    if (unlinkat(fd, name, 0) == 0 || depth == DEPTH_MAX) continue;
    int below = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (below < 0) continue;
    empty(below, depth + 1);
    unlinkat(fd, name, AT_REMOVEDIR);
  }
  closedir(entries);
}

bool memory_remove(const char *place, const char *grant) {
  char path[FOLDER_BYTES_MAX];
  if (!path_of(path, place, grant)) return true;
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT;
  struct stat about;
  bool ours = fstat(fd, &about) == 0 && vault_holds(fd);
  uid_t uid = geteuid();
  /* The place is the word of a process of that user. With no more than the owner's rights, a sweep by root
     can remove nothing that the owner could not have. */
  if (ours && uid == 0 && about.st_uid != 0) ours = seteuid(about.st_uid) == 0;
  if (ours && geteuid() == about.st_uid) {
    empty(fd, 0);
    ours = rmdir(path) == 0;
  } else {
    close(fd);
    ours = false;
  }
  if (geteuid() != uid && seteuid(uid) != 0) return false;
  return ours;
}
