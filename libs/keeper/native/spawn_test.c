/* Owns the clock of the benches: starts commands in turn and tells how long each took, from before the fork to after
   the wait. spawn-times ROUNDS COMMAND... [--- COMMAND...]...; a line is the command's number and nanoseconds. */
#include <fcntl.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COMMANDS_MAX 16

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int main(int count, char **words) {
  char **commands[COMMANDS_MAX];
  int command_count = 0;
  for (int at = 2; at < count; at++) {
    if (command_count == COMMANDS_MAX) return 2;
    commands[command_count++] = words + at;
    while (at < count && strcmp(words[at], "---") != 0) at++;
    if (at < count) words[at] = NULL;
  }
  if (command_count == 0) return 2;
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, null, STDOUT_FILENO);
  for (long round = atol(words[1]); round > 0; round--) {
    for (int each = 0; each < command_count; each++) {
      pid_t pid;
      int status;
      int64_t from = now_ns();
      if (posix_spawnp(&pid, commands[each][0], &actions, NULL, commands[each], environ) != 0) return 1;
      if (waitpid(pid, &status, 0) != pid || status != 0) {
        fprintf(stderr, "%s ended with status %d\n", commands[each][0], status);
        return 1;
      }
      printf("%d %lld\n", each, (long long)(now_ns() - from));
    }
  }
  return 0;
}
