/* Owns what is read from /proc, and the pidfd system calls. */
#include "keeper.h"

#include "numbers.h"
#include "proc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static ssize_t read_file(const char *path, char *text, size_t bytes) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t got = read(fd, text, bytes - 1);
  close(fd);
  if (got >= 0) text[got] = '\0';
  return got;
}

bool process_read(pid_t pid, struct process *process) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  if (read_file(path, text, sizeof text) <= 0) return false;
  /* proc(5): the name stands in parentheses and may hold any byte, ")" and blanks too. */
  char *open = strchr(text, '('), *shut = strrchr(text, ')');
  if (open == NULL || shut == NULL || shut < open || shut[1] == '\0') return false;
  size_t name_bytes = (size_t)(shut - open - 1);
  if (name_bytes >= NAME_BYTES) name_bytes = NAME_BYTES - 1;
  memcpy(process->name, open + 1, name_bytes);
  process->name[name_bytes] = '\0';
  blank_controls(process->name, name_bytes);
  process->pid = pid;
  char state = shut[2];
  long threads = 0;
  process->stopped = state == 'T' || state == 't';
  process->ppid = 0;
  process->start_ticks = 0;
  char *at = shut + 3;
  for (int field = 4; field <= 22; field++) {
    char *end;
    unsigned long long number = strtoull(at, &end, 10);
    if (end == at) return false;
    if (field == 4) process->ppid = (pid_t)number;
    if (field == 20) threads = (long)number;
    if (field == 22) process->start_ticks = number;
    at = end;
  }
  /* A leader that has ended before its other threads shows as a zombie, and the process lives on. */
  process->threaded = threads > 1;
  process->alive = state != 'X' && state != 'x' && (state != 'Z' || threads > 1);
  return true;
}

bool each_process(void (*visit)(pid_t pid, void *with), void *with) { return each_number("/proc", visit, with); }

bool each_number(const char *directory, void (*visit)(pid_t number, void *with), void *with) {
  DIR *entries = opendir(directory);
  if (entries == NULL) return false;
  for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
    char *end;
    long number = strtol(entry->d_name, &end, 10);
    if (*end == '\0' && number > 0) visit((pid_t)number, with);
  }
  closedir(entries);
  return true;
}

bool process_owner(pid_t pid, uid_t *uid) {
  char path[64];
  struct stat about;
  snprintf(path, sizeof path, "/proc/%d", (int)pid);
  if (stat(path, &about) != 0) return false;
  *uid = about.st_uid;
  return true;
}

void process_group_path(pid_t pid, char *group, size_t bytes) {
  char path[64], text[8192];
  group[0] = '\0';
  snprintf(path, sizeof path, "/proc/%d/cgroup", (int)pid);
  if (read_file(path, text, sizeof text) <= 0) return;
  char *line = strncmp(text, "0::", 3) == 0 ? text : strstr(text, "\n0::");
  if (line == NULL) return;
  line += *line == '\n' ? 4 : 3;
  line[strcspn(line, "\n")] = '\0';
  snprintf(group, bytes, "%s", line);
  blank_controls(group, strlen(group));
}

bool process_environment(pid_t pid, bool (*piece)(const char *bytes, size_t count, void *with), void *with) {
  char path[64], text[4096];
  snprintf(path, sizeof path, "/proc/%d/environ", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  bool found = false;
  for (ssize_t got; !found && (got = read(fd, text, sizeof text)) > 0;) found = piece(text, (size_t)got, with);
  close(fd);
  return found;
}

/* A pidfd: a pid that has been given to another process is never hit. By number: glibc has wrappers only since 2.36. */
int process_open(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

int process_signal(int handle, const struct process *process, int signal) {
  (void)process; /* the pidfd is the process */
  return syscall(SYS_pidfd_send_signal, handle, signal, NULL, 0) == 0 ? 0 : errno;
}

void process_close(int handle) { close(handle); }
