/* Owns the terminal: the group that has it in its foreground, handed over and taken back as a shell would.
   The child stays in the process group that the caller gave us. A group of its own would be a job of its own:
   in `custody run -- a | less` the other half of the pipeline would fall into the background. A shell under
   us makes groups of its own and hands them the terminal, which is why it must be taken back. */
#include "keeper.h"
#include "terminal.h"

#include <errno.h>
#include <termios.h>
#include <unistd.h>

static int terminal = -1;
static bool foreground; /* we were received in it */
static struct termios settings;
static bool settings_known;
static pid_t owner; /* the group of the tree that had it when we stopped */
static bool left;   /* since we stopped: by now it may be anybody's */

void terminal_note(void) {
  static const int standard[] = {STDERR_FILENO, STDIN_FILENO, STDOUT_FILENO};
  for (size_t i = 0; i < sizeof standard / sizeof *standard && terminal < 0; i++) {
    pid_t group = tcgetpgrp(standard[i]); /* only a controlling terminal has an answer */
    if (group <= 0) continue;
    terminal = standard[i];
    foreground = group == getpgrp();
  }
  if (foreground) settings_known = tcgetattr(terminal, &settings) == 0;
}

bool terminal_ours(void) { return terminal >= 0 && tcgetpgrp(terminal) == getpgrp(); }

/* tcsetpgrp stops who calls it from the background with a SIGTTOU, unless that is blocked: it is. */
static void take(pid_t group) { (void)tcsetpgrp(terminal, group); }

void terminal_leave(void) {
  if (!foreground || left) return; /* a word of the agent woke us, and nobody has continued us */
  left = true;
  owner = 0;
  pid_t group = tcgetpgrp(terminal);
  if (group <= 0 || group == getpgrp()) return;
  owner = group;
  take(getpgrp());
}

void terminal_return(void) {
  left = false;
  if (owner <= 0 || tcgetpgrp(terminal) != getpgrp()) return; /* sent on in the background */
  take(owner);
  owner = 0;
}

void terminal_back(bool modes) {
  if (!foreground) return;
  pid_t group = tcgetpgrp(terminal);
  /* A group that lives is somebody's who took the terminal from the job, as a shell does for the next one. */
  if (group > 0 && group != getpgrp() && kill(-group, 0) != 0 && errno == ESRCH) take(group = getpgrp());
  if (modes && settings_known && group == getpgrp()) tcsetattr(terminal, TCSANOW, &settings);
}
