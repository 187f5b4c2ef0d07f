/* Owns what the bench of ceilings needs of the kernel: when others die, keeping one stopped, moving the wall clock. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WATCHED_MAX 1024
#define HOLD_PAUSE_NS 200000
#define NS INT64_C(1000000000)

static int64_t ns_of(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * NS + now.tv_nsec;
}

static int pidfd_of(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

/* Reads pids, a line each, and prints `PID BOOT_US` for each when it dies; until stdin ends and all are dead.
   The instant is that of the wake-up, so it is never too early. */
static int watch(void) {
  static struct pollfd ready[WATCHED_MAX] = {{.fd = STDIN_FILENO, .events = POLLIN}};
  static pid_t pids[WATCHED_MAX];
  nfds_t count = 1;
  char text[4096];
  size_t held = 0;
  while (ready[0].fd >= 0 || count > 1) {
    poll(ready, count, -1);
    int64_t boot_us = ns_of(CLOCK_BOOTTIME) / 1000;
    for (nfds_t i = count; i-- > 1;) {
      if (ready[i].revents == 0) continue;
      printf("%d %lld\n", (int)pids[i], (long long)boot_us);
      close(ready[i].fd);
      ready[i] = ready[--count];
      pids[i] = pids[count];
    }
    fflush(stdout);
    if (ready[0].fd < 0 || ready[0].revents == 0) continue;
    ssize_t got = read(STDIN_FILENO, text + held, sizeof text - 1 - held);
    if (got <= 0) ready[0].fd = -1;
    if (got <= 0) continue;
    held += (size_t)got;
    text[held] = '\0';
    char *at = text;
    for (char *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
      pid_t pid = (pid_t)strtol(at, NULL, 10);
      int fd = count < WATCHED_MAX ? pidfd_of(pid) : -1;
      if (fd < 0) return fprintf(stderr, "cannot watch %d: %s\n", (int)pid, strerror(errno)), 1;
      pids[count] = pid;
      ready[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    held -= (size_t)(at - text);
    memmove(text, at, held);
  }
  return 0;
}

/* SIGSTOP, again and again, until every one of them is dead. */
static int hold(char **words, int count) {
  int fds[WATCHED_MAX], left = 0;
  for (int i = 0; i < count && i < WATCHED_MAX; i++) fds[left++] = pidfd_of((pid_t)atoi(words[i]));
  while (left > 0) {
    for (int i = left; i-- > 0;) {
      if (syscall(SYS_pidfd_send_signal, fds[i], SIGSTOP, NULL, 0) != 0) fds[i] = fds[--left];
    }
    nanosleep(&(struct timespec){.tv_nsec = HOLD_PAUSE_NS}, NULL);
  }
  return 0;
}

static bool set_wall(int64_t ns) {
  struct timespec when = {.tv_sec = (time_t)(ns / NS), .tv_nsec = (long)(ns % NS)};
  return clock_settime(CLOCK_REALTIME, &when) == 0;
}

static void sleep_until_boot(int64_t ns) {
  struct timespec when = {.tv_sec = (time_t)(ns / NS), .tv_nsec = (long)(ns % NS)};
  while (clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &when, NULL) == EINTR) continue;
}

/* The wall clock an hour ahead for the first half of that time, an hour behind for the second, and then as it was: by
   this process, and by one in a session of its own, whichever is left. The wall clock is where it would have been:
   its distance from the boot-time clock is what is put back. */
static int move(int64_t ms) {
  int64_t from_ns = ns_of(CLOCK_BOOTTIME), until_ns = from_ns + ms * 1000000;
  int64_t apart_ns = ns_of(CLOCK_REALTIME) - from_ns, hour_ns = 3600 * NS;
  pid_t guard = fork();
  if (guard < 0) return perror("fork"), 1;
  if (guard == 0) {
    setsid();
    sleep_until_boot(until_ns + NS / 10);
    _exit(set_wall(ns_of(CLOCK_BOOTTIME) + apart_ns) ? 0 : 1);
  }
  bool moved = set_wall(ns_of(CLOCK_BOOTTIME) + apart_ns + hour_ns);
  if (!moved) perror("clock_settime");
  sleep_until_boot(moved ? from_ns + (until_ns - from_ns) / 2 : from_ns);
  if (moved) set_wall(ns_of(CLOCK_BOOTTIME) + apart_ns - hour_ns);
  sleep_until_boot(moved ? until_ns : from_ns);
  if (moved) set_wall(ns_of(CLOCK_BOOTTIME) + apart_ns);
  int status = 0;
  if (!moved) kill(guard, SIGKILL);
  waitpid(guard, &status, 0);
  int64_t off_us = (ns_of(CLOCK_REALTIME) - ns_of(CLOCK_BOOTTIME) - apart_ns) / 1000;
  printf("%lld\n", (long long)off_us);
  return moved && status == 0 ? 0 : 1;
}

int main(int count, char **words) {
  const char *what = count > 1 ? words[1] : "";
  if (strcmp(what, "watch") == 0) return watch();
  if (strcmp(what, "hold") == 0) return hold(words + 2, count - 2);
  if (strcmp(what, "move") == 0 && count == 3) return move(atoll(words[2]));
  return 2;
}
