/* Owns the clock of the benches: one command from vfork to its end, without the weight of whoever asks. */
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (long long)now.tv_sec * 1000000000 + now.tv_nsec;
}

int main(int count, char **words) {
  if (count < 2) return 2;
  long long from_ns = now_ns();
  pid_t pid = vfork();
  if (pid == 0) {
    execvp(words[1], words + 1);
    _exit(127);
  }
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return 1;
  long long ns = now_ns() - from_ns;
  dprintf(3, "%lld\n", ns);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
