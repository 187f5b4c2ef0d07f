/* Owns the terminal of the tests: a pty, a command as leader of its session, and a script that drives both.
   Lines on stdin: `s HEX` types bytes, `w ROWS COLUMNS` resizes, `h` hangs up. What the terminal shows is
   stdout; `exit N` or `signal N` of the command comes last on stderr. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int terminal;

static void act(const char *line) {
  struct winsize size = {0};
  if (line[0] == 'h') {
    close(terminal);
    terminal = -1;
  } else if (line[0] == 'w' && sscanf(line, "w %hu %hu", &size.ws_row, &size.ws_col) == 2) {
    ioctl(terminal, TIOCSWINSZ, &size);
  } else if (line[0] == 's') {
    unsigned byte;
    for (const char *at = line + 2; sscanf(at, "%2x", &byte) == 1; at += 2) {
      unsigned char typed = (unsigned char)byte;
      if (write(terminal, &typed, 1) != 1) break;
    }
  }
}

static void hear(void) {
  static char held[65536];
  static size_t held_bytes;
  ssize_t got = read(STDIN_FILENO, held + held_bytes, sizeof held - 1 - held_bytes);
  if (got <= 0) exit(1);
  held_bytes += (size_t)got;
  held[held_bytes] = '\0';
  char *at = held;
  for (char *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
    *end = '\0';
    act(at);
  }
  held_bytes -= (size_t)(at - held);
  memmove(held, at, held_bytes);
}

/* False at the end: nobody has the other side open any more. */
static bool show(void) {
  char bytes[4096];
  ssize_t got = read(terminal, bytes, sizeof bytes);
  if (got <= 0) return got < 0 && errno == EINTR;
  return write(STDOUT_FILENO, bytes, (size_t)got) == got;
}

int main(int count, char **words) {
  terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (count < 2 || terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0) return 2;
  struct winsize size = {.ws_row = 24, .ws_col = 80};
  ioctl(terminal, TIOCSWINSZ, &size);
  pid_t leader = fork();
  if (leader == 0) {
    setsid();
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL); /* as a login would have them */
    int fd = open(ptsname(terminal), O_RDWR); /* a session leader without one gets it as its controlling terminal */
    for (int number = 0; number <= 2; number++) dup2(fd, number);
    if (fd > 2) close(fd);
    execvp(words[1], words + 1);
    _exit(127);
  }
  for (bool more = true; more;) {
    struct pollfd ready[2] = {{.fd = terminal, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
    poll(ready, 2, -1);
    if (ready[0].revents != 0) more = show();
    if (more && ready[1].revents != 0) hear();
    if (terminal < 0) more = false;
  }
  int status;
  waitpid(leader, &status, 0);
  if (WIFEXITED(status)) fprintf(stderr, "exit %d\n", WEXITSTATUS(status));
  else fprintf(stderr, "signal %d\n", WTERMSIG(status));
  return 0;
}
