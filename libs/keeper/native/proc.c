/* Owns what is read from /proc, the form of a `proc` row, and the pidfd system calls. */
#include "keeper.h"
#include "proc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
  process->alive = state != 'X' && state != 'x' && (state != 'Z' || threads > 1);
  return true;
}

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

const char *how_name(char how) {
  return how == 'e' ? "exit" : how == 's' ? "signal" : how == 'k' ? "killed" : "gone";
}

int row_print(const struct row *row, char *text, size_t bytes) {
  return snprintf(text, bytes, "%d %d %llu %lld %s %s:%d %s", (int)row->process.pid, (int)row->process.ppid,
                  (unsigned long long)row->process.start_ticks, (long long)row->ended_boot_us,
                  row->survivor ? "survivor" : "-", how_name(row->how), row->how_number, row->process.name);
}

/* By number: glibc has wrappers only since 2.36. */
int pidfd_open_of(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

int pidfd_signal(int pidfd, int signal) {
  return syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0) == 0 ? 0 : errno;
}
