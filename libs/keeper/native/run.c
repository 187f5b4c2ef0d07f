/* Owns one run: asks the agent, starts the root, ends the tree, accounts for every process of it. */
#include "keeper.h"

#include "child.h"
#include "containment.h"
#include "deliver.h"
#include "environment.h"
#include "link.h"
#include "signals.h"
#include "stop.h"
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define RECONNECT_MS_MIN 250
#define RECONNECT_MS_MAX 2000
#define DELIVER_MS_MAX 2000
#define PASS_MS_MIN 5
#define PASS_MS_MAX 200
#define ANCESTORS_MAX 4096
#define TURN_MS_MAX 10 /* signals, then deaths: a flood of either must not keep us from the clock and the agent */
#define GROUP_DEATH_US 1000000 /* a group that is killed is dead within moments: who died before that had another reason */
#define SEND_MS_MAX 100 /* after the request our frames are small: an agent that takes none is as good as gone */

static const struct request *request;
static struct inherited inherited;
static int signals; /* readable when one has come */

static char grant[GRANT_BYTES_MAX + 1];
static int64_t ceiling_boot_ms;
static int64_t fresh_until_boot_ms = NEVER; /* a strict grant's; the agent moves it on as beacons come */
static int64_t grace_ms;
static bool waits; /* --on-exit wait, until somebody asks it to end */
static struct said said;
static int64_t silent_boot_ms; /* until when the agent may be silent before it has answered */

static struct process root;
static bool root_gone, root_stopped;
static bool unreaped; /* more have ended than one turn could take in */
static struct row root_end; /* how and how_number */

static const char *cause; /* NULL: the run has not begun to end */
static int64_t signalled_boot_us = NEVER, kill_boot_ms = NEVER, pass_boot_ms;
static int64_t pass_pause_ms = PASS_MS_MIN;
static unsigned kill_passes;
static int survivors, processes;
static struct rows rows;
static bool refusal_said;

static bool attached; /* the agent on the link knows this run */
static bool asked_why; /* what a KILL was for, since the link was last made */
static int64_t unexplained_boot_us = NEVER; /* about when the root died of a KILL that nobody has accounted for */
static int64_t reconnect_boot_ms, reconnect_pause_ms = RECONNECT_MS_MIN;

static int64_t earlier(int64_t a, int64_t b) { return a < b ? a : b; }

/* After this instant the run must end, whoever else is dead or stopped. */
static int64_t bound_boot_ms(void) { return earlier(ceiling_boot_ms, fresh_until_boot_ms); }

/* --- before anything else --------------------------------------------------------------------- */

static bool prepare(void) {
  /* A descriptor of ours must never land on 0, 1 or 2: a message on stderr would go to the agent. */
  for (int fd = 0; fd <= 2; fd++) {
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR | O_CLOEXEC) < 0) return false;
  }
  /* Held first, so that none is lost from here on. */
  signals = signals_open(&inherited);
  keeper_hide();
  terminal_note();
  return signals >= 0 && alarm_open() && containment.prepare();
}

/* --- the grant -------------------------------------------------------------------------------- */

static int broke_protocol(const char *what) {
  say("the agent broke the keeper protocol: %s; are the agent and `custody run` of one version?", what);
  return EXIT_CUSTODY;
}

static void failed(int fault) {
  deliver_clear();
  frame_begin("failed");
  frame_print("errno", "%d", fault);
  link_send(SEND_MS_MAX);
}

static int cannot_deliver(void) {
  failed(EIO);
  return EXIT_CUSTODY;
}

static int cannot_run(int fault, bool executing) {
  failed(fault);
  say("cannot run %s: %s", request->command[0], strerror(fault));
  if (!executing) return EXIT_CUSTODY;
  return fault == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE;
}

/* An agent ignores what it does not know. What the caller relies on must not be ignored. */
static const char *unmet(const struct frame *granted) {
  struct field field;
  size_t asked = 0, given = 0, cursor = 0;
  for (size_t i = 0; i < request->wish_count; i++) {
    const char *key = request->wishes[i].key;
    if (strcmp(key, "file") == 0 || strcmp(key, "fifo") == 0 || strcmp(key, "fd") == 0) asked++;
  }
  while (frame_next(granted, &cursor, &field)) {
    if (field_is(&field, "file") || field_is(&field, "fifo") || field_is(&field, "fd")) given++;
  }
  bool answered = frame_one(granted, "on_exit", &field);
  waits = answered && strcmp(field.value, "wait") == 0;
  if (request->on_exit != NULL && !answered) return "--on-exit";
  if (said.manifest && !answered) return "the manifest";
  if (request->clean && !frame_one(granted, "keep", &field)) return "--clean";
  if (request->scrub && !frame_one(granted, "drop", &field)) return "--scrub";
  return asked > 0 && given == 0 ? "--file, --fifo or --fd" : NULL;
}

/* Starts the root with what was granted; 0 or the exit code. The frame is wiped either way. */
static int start(const struct frame *granted) {
  static char marker[sizeof "CUSTODY_GRANT=" + GRANT_BYTES_MAX] = "CUSTODY_GRANT=";
  static char *nothing[] = {NULL};
  struct field id, until;
  if (!frame_one(granted, "grant", &id) || id.value_bytes < 1 || id.value_bytes > GRANT_BYTES_MAX ||
      !frame_number(granted, "ceiling_boot_ms", &ceiling_boot_ms) ||
      !frame_number(granted, "grace_ms", &grace_ms) || grace_ms > GRACE_MS_MAX ||
      (frame_one(granted, "fresh_until_boot_ms", &until) &&
       !frame_number(granted, "fresh_until_boot_ms", &fresh_until_boot_ms))) {
    link_drop(granted);
    return broke_protocol("a grant without a usable id, ceiling, grace or freshness");
  }
  memcpy(grant, id.value, id.value_bytes + 1);
  strcat(marker, grant);
  const char *missing = unmet(granted);
  if (missing != NULL) {
    link_drop(granted);
    say("the agent did not answer to %s; it is older than this `custody run`: restart it", missing);
    return EXIT_CUSTODY;
  }
  if (!deliver_make(granted, said.place, grant)) {
    link_drop(granted);
    return cannot_deliver();
  }
  char **entries = environment(granted, marker);
  if (entries == NULL) {
    link_drop(granted);
    deliver_clear();
    return broke_protocol("a grant whose environment is not NAME=VALUE");
  }
  environ = entries;
  int fault = 0;
  bool executing = false;
  pid_t pid = child_start(request->command, &inherited, &fault, &executing);
  if (pid < 0 && fault == EACCES && !on_path(request->command[0])) fault = ENOENT;
  environ = nothing;
  free(entries);
  link_drop(granted);
  deliver_passed();
  if (pid < 0) return cannot_run(fault, executing);
  process_read(pid, &root); /* a child that has ended stays readable until it is reaped */
  root.pid = rows.root = pid;
  containment.hold(&root, grant);
  frame_begin("started");
  frame_print("pid", "%d", (int)root.pid);
  frame_print("start_ticks", "%llu", (unsigned long long)root.start_ticks);
  attached = link_send(SEND_MS_MAX);
  reconnect_boot_ms = 0;
  return 0;
}

static void say_lines(const struct frame *frame, const char *first_after, bool indented) {
  size_t cursor = 0;
  struct field field;
  bool first = true;
  while (frame_next(frame, &cursor, &field)) {
    if (!field_is(&field, "line")) continue;
    if (first || !indented) say("%s%s", first_after, field.value);
    else say_more("%s", field.value);
    first = false;
  }
}

/* What the agent has said so far; 0 to go on waiting, -1 when the root was started, or the exit code. */
static int hear_answer(void) {
  struct frame frame;
  enum frame_fault fault;
  link_receive();
  for (enum link_news news; (news = link_next(&frame, &fault)) != LINK_QUIET;) {
    if (news == LINK_LOST) {
      say("agent closed the connection before it answered (%s); `custody agent status` shows why", link_path());
      return EXIT_CUSTODY;
    }
    if (news == LINK_BROKEN) return broke_protocol(frame_fault_name(fault));
    if (frame_is(&frame, "granted")) {
      int code = start(&frame);
      return code == 0 ? -1 : code;
    }
    if (frame_is(&frame, "refused")) {
      int64_t code = 0;
      say_lines(&frame, "refused: ", true);
      return frame_number(&frame, "exit", &code) && code == EXIT_USAGE ? EXIT_USAGE : EXIT_CUSTODY;
    }
    if (!frame_is(&frame, "note")) return broke_protocol("an unexpected word before the grant");
    say_lines(&frame, "", false);
    link_drop(&frame);
    silent_boot_ms = boot_ms() + ANSWER_MS_MAX;
  }
  return 0;
}

/* A signal while there is no child yet does to us what it would do to any program; 0 or the exit code. */
static int before_start(int signal) {
  if (signal == SIGCONT || signal == SIGCHLD || signal == SIGWINCH || signal == SIGURG) return 0;
  if (signal_ignored(signal)) return 0; /* as under nohup */
  if (signal != SIGTSTP && signal != SIGTTIN && signal != SIGTTOU) return signal_die(signal), 128 + signal;
  stop_self();
  return 0;
}

static int ask(void) {
  silent_boot_ms = boot_ms() + ANSWER_MS_MAX;
  for (;;) {
    alarm_at(silent_boot_ms);
    struct pollfd ready[2] = {{.fd = signals, .events = POLLIN}, {.fd = link_fd(), .events = POLLIN}};
    signals_wait(ready, 2, false);
    struct heard heard;
    while (ready[0].revents != 0 && signals_next(&heard)) {
      bool own = heard.sender == getpid(); /* the SIGPIPE of a closed stderr */
      int code = own ? 0 : before_start(heard.signal);
      if (code != 0) return code;
    }
    int code = ready[1].revents != 0 ? hear_answer() : 0;
    if (code != 0) return code;
    if (boot_ms() < silent_boot_ms) continue;
    say("no answer from the agent at %s in %d s; `custody agent status` shows why", link_path(),
        ANSWER_MS_MAX / 1000);
    return EXIT_CUSTODY;
  }
}

/* --- the end of a tree ------------------------------------------------------------------------ */

/* Returns how many were alive; a process that has been sent a KILL is as good as dead. */
static int act(enum act what) {
  int64_t now_boot_us = boot_us();
  struct walk walk = containment.pass(what, &rows);
  if (walk.living > 0 && what != ACT_LOOK && signalled_boot_us == NEVER) signalled_boot_us = now_boot_us;
  if (walk.refused && !refusal_said) {
    refusal_said = true;
    say("a process of the run may not be signalled from here (it changed its user); waiting for it to end");
  }
  return walk.spared;
}

static int kill_pass(void) {
  /* The first kills at once. What outlives it forks faster than we walk: stopped processes neither fork nor
     take the processor that we need to reach the others. */
  int64_t began_boot_ms = boot_ms();
  if (kill_passes++ > 0) act(ACT_STOP), act(ACT_STOP);
  int living = act(ACT_KILL);
  int64_t took_ms = boot_ms() - began_boot_ms; /* and as long again for what else there is to do */
  pass_boot_ms = began_boot_ms + took_ms + (took_ms > pass_pause_ms ? took_ms : pass_pause_ms);
  pass_pause_ms = earlier(pass_pause_ms * 2, PASS_MS_MAX);
  return living;
}

/* Begins to end the tree, or shortens the end that has begun. Returns how many processes were alive. */
static int end_tree(const char *why, int64_t within_ms) {
  if (cause == NULL) cause = why;
  rows.ending = true;
  int64_t now_boot_ms = boot_ms();
  kill_boot_ms = earlier(kill_boot_ms, earlier(now_boot_ms + within_ms, bound_boot_ms() + grace_ms));
  return now_boot_ms >= kill_boot_ms ? kill_pass() : act(ACT_TERM);
}

static void hear_agent(void);
static bool resume(void);

/* Waits for the agent's word on a link that was made again. */
static void await_agent(int64_t until_boot_ms) {
  for (int64_t now_boot_ms; !attached && link_fd() >= 0 && (now_boot_ms = boot_ms()) < until_boot_ms;) {
    struct pollfd answer = {.fd = link_fd(), .events = POLLIN};
    poll(&answer, 1, (int)(until_boot_ms - now_boot_ms));
    hear_agent();
  }
}

/* Somebody killed a process of the tree, and no agent is on the link to say whether it was the agent's doing: asked
   for once per link, and not for longer than the run may last anyway. An agent that is not there yet, or is there
   only to kill, may still say so later: hear_end. */
static void ask_why(void) {
  int64_t until_boot_ms = earlier(boot_ms() + DELIVER_MS_MAX, bound_boot_ms());
  bool linked = link_fd() >= 0 || resume();
  asked_why = true;
  if (linked) await_agent(until_boot_ms);
}

/* How a dead child ended. Once KILLs go out, a KILL is custody's: the keeper's own, or that of the agent which
   empties the group. */
static char how_of(const siginfo_t *dead, const struct row *row) {
  if (dead->si_code == CLD_EXITED) return 'e';
  bool termed = row != NULL ? row->sent & SENT_TERM : cause != NULL;
  bool ours = (dead->si_status == SIGTERM && termed) || (dead->si_status == SIGKILL && kill_passes > 0);
  return ours ? 'k' : 's';
}

/* Looks at a dead child, collects it, and puts it on record. */
static void collect(siginfo_t *dead) {
  /* An agent on the link writes its `end` before it kills: who died of that, the word for it is here already. */
  bool killed = dead->si_code == CLD_KILLED && dead->si_status == SIGKILL;
  if (cause == NULL && killed) {
    if (attached) hear_agent();
    if (cause == NULL && !attached && !asked_why) ask_why();
  }
  struct row *row = account_dead(&rows, dead->si_pid);
  waitid(P_PID, (id_t)dead->si_pid, NULL, WEXITED);
  processes++;
  char how = how_of(dead, row);
  account_end(&rows, row, how, dead->si_status);
  if (dead->si_pid != root.pid || root_gone) return;
  root_gone = true;
  root_stopped = false;
  root_end = (struct row){.how = how, .how_number = dead->si_status};
  if (cause == NULL && killed && !attached) unexplained_boot_us = boot_us() - GROUP_DEATH_US;
}

/* Takes in the children that have ended or stopped; true when nobody is left. */
static bool reap(void) {
  bool before = root_gone, none = unreaped = false;
  for (int64_t until_boot_ms = boot_ms() + TURN_MS_MAX; !unreaped; unreaped = boot_ms() >= until_boot_ms) {
    siginfo_t info = {0};
    /* Not collected yet: until then /proc still tells of it. */
    if (waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WCONTINUED | WNOHANG | WNOWAIT) != 0) {
      if (errno == EINTR) continue;
      none = true; /* ECHILD */
      break;
    }
    if (info.si_pid == 0) break;
    if (info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED) {
      collect(&info);
      continue;
    }
    int news = info.si_code == CLD_CONTINUED ? WCONTINUED : WSTOPPED;
    if (waitid(P_PID, (id_t)info.si_pid, NULL, news | WNOHANG) == 0 && info.si_pid == root.pid) {
      root_stopped = news == WSTOPPED;
    }
  }
  if (none && containment.empty()) return true;
  if (root_gone && !before) {
    /* Where all are being killed at once, by us or through their group, the order of their deaths says nothing. */
    bool killing = kill_passes > 0;
    rows.surviving = !killing;
    int left = waits && cause == NULL ? act(ACT_LOOK) : end_tree("exit", grace_ms);
    survivors = killing ? 0 : left;
    rows.surviving = false;
  }
  return false;
}

/* --- signals ---------------------------------------------------------------------------------- */

/* Sent by a process of our own tree: it was meant for the whole group, or for us alone. */
static bool is_inner(const struct heard *heard) {
  struct process process = {.ppid = heard->sender};
  for (int steps = 0; heard->origin == ORIGIN_PROCESS && steps < ANCESTORS_MAX; steps++) {
    if (process.ppid == getpid()) return true;
    if (process.ppid <= 1 || !process_read(process.ppid, &process)) return false;
  }
  return false;
}

static void forward(const struct heard *heard) {
  int signal = heard->signal;
  bool asks_to_end = signal == SIGINT || signal == SIGTERM || signal == SIGHUP || signal == SIGQUIT;
  if (signal_ignored(signal)) asks_to_end = false; /* under nohup */
  if (heard->sender == getpid()) return; /* stop.c; the SIGPIPE of a closed stderr */
  /* `kill 0`, as vim says it to stop: the root is in our group and has had it. What the tree sends us alone, it
     would without us have sent its caller. */
  if (is_inner(heard)) return;
  siginfo_t dead = {0};
  if (!root_gone && waitid(P_PID, (id_t)root.pid, &dead, WEXITED | WNOHANG | WNOWAIT) == 0 && dead.si_pid != 0) {
    if (asks_to_end) waits = false; /* the word for the root came after it: it is for what the root left behind */
    return;
  }
  if (root_gone) {
    /* The command is over: whoever asks again does not want to wait. */
    if (asks_to_end) end_tree("exit", waits && cause == NULL ? grace_ms : 0);
    return;
  }
  bool with_us = getpgid(root.pid) == getpgrp();
  if (signal == SIGCONT) {
    if (heard->origin != ORIGIN_PROCESS) return; /* the alarm; link_wakes */
    struct process now;
    bool had = root_stopped && with_us && process_read(root.pid, &now) && !now.stopped;
    root_stopped = false;
    terminal_return();
    if (had) return; /* a shell continues the whole group at once, and the root is in it */
    if (!with_us) kill(-getpgid(root.pid), SIGCONT); /* the whole job, as the shell would if it saw this group */
  } else if (heard->origin == ORIGIN_TERMINAL && with_us && (signal != SIGHUP || getsid(0) != getpid())) {
    return; /* from the terminal, to the whole foreground group: the root has had it. Only a hang-up is for the
               leader of the session alone, which the root would be without us. */
  }
  signal_pass(heard, root.pid);
}

static void hear_signals(void) {
  int64_t until_boot_ms = boot_ms() + TURN_MS_MAX;
  for (struct heard heard; boot_ms() < until_boot_ms && signals_next(&heard);) {
    if (heard.signal != SIGCHLD || heard.origin == ORIGIN_PROCESS) forward(&heard);
  }
}

/* --- the agent, while the run lasts ------------------------------------------------------------ */

static void lost(void) {
  link_close();
  attached = false;
  reconnect_boot_ms = boot_ms() + reconnect_pause_ms;
  reconnect_pause_ms = earlier(reconnect_pause_ms * 2, RECONNECT_MS_MAX);
}

/* What looked like the end of the command was the agent's doing. */
static void explain(void) {
  if (cause != NULL && strcmp(cause, "exit") == 0) cause = NULL;
  account_claim(&rows, unexplained_boot_us);
  survivors = 0;
}

static bool hear_end(const struct frame *frame) {
  static const char *const causes[] = {"revoked", "ceiling", "agent"};
  struct field why;
  int64_t within_ms;
  if (!frame_one(frame, "cause", &why) || !frame_number(frame, "grace_ms", &within_ms)) return false;
  for (size_t i = 0; i < sizeof causes / sizeof *causes; i++) {
    if (strcmp(why.value, causes[i]) != 0) continue;
    if (unexplained_boot_us != NEVER) explain();
    end_tree(causes[i], earlier(within_ms, GRACE_MS_MAX));
    return true;
  }
  return false;
}

/* Moves the bound on, never back: a word that was under way for long may be older than one before it. */
static bool hear_fresh(const struct frame *frame) {
  int64_t until;
  if (!frame_number(frame, "until_boot_ms", &until)) return false;
  if (cause == NULL && fresh_until_boot_ms != NEVER && until > fresh_until_boot_ms) fresh_until_boot_ms = until;
  return true;
}

static void hear_agent(void) {
  struct frame frame;
  enum frame_fault fault;
  link_receive();
  for (enum link_news news; (news = link_next(&frame, &fault)) != LINK_QUIET;) {
    bool good = news == LINK_FRAME;
    if (good && frame_is(&frame, "end")) good = hear_end(&frame);
    else if (good && frame_is(&frame, "fresh")) good = hear_fresh(&frame);
    else if (good && frame_is(&frame, "note")) say_lines(&frame, "", false);
    else if (good) good = frame_is(&frame, "adopted");
    if (!good) {
      lost();
      return;
    }
    attached = true;
    unexplained_boot_us = NEVER;
    reconnect_pause_ms = RECONNECT_MS_MIN;
    link_drop(&frame);
  }
}

static bool resume(void) {
  if (link_again() != 0) return false;
  asked_why = false;
  frame_begin("resume");
  frame_text("version", "1");
  frame_text("grant", grant);
  frame_print("pid", "%d", (int)root.pid);
  frame_print("start_ticks", "%llu", (unsigned long long)root.start_ticks);
  frame_print("ceiling_boot_ms", "%lld", (long long)ceiling_boot_ms);
  if (fresh_until_boot_ms != NEVER) frame_print("fresh_until_boot_ms", "%lld", (long long)fresh_until_boot_ms);
  frame_text("containment", containment.name);
  return link_send(SEND_MS_MAX);
}

/* A keeper that was stopped, or slept with its machine, wakes late: what the agent wrote in time still counts. */
static void end_when_due(void) {
  if (cause == NULL && link_fd() >= 0 && boot_ms() >= fresh_until_boot_ms) hear_agent();
  if (cause != NULL || boot_ms() < bound_boot_ms()) return;
  bool stale = fresh_until_boot_ms < ceiling_boot_ms;
  if (stale)
    say("this host has been cut off from the control plane for longer than the policy allows (its @freshness): "
        "ending the run");
  end_tree(stale ? "stale" : "ceiling", grace_ms);
}

/* Does what is due and sets the alarm to what is due next. */
static void keep_time(void) {
  int64_t now_boot_ms, next_boot_ms;
  end_when_due();
  now_boot_ms = boot_ms();
  if (cause != NULL && now_boot_ms >= kill_boot_ms && now_boot_ms >= pass_boot_ms) kill_pass();
  if (link_fd() < 0 && now_boot_ms >= reconnect_boot_ms && !resume()) lost();
  next_boot_ms = cause == NULL ? bound_boot_ms() : kill_passes == 0 ? kill_boot_ms : pass_boot_ms;
  if (link_fd() < 0) next_boot_ms = earlier(next_boot_ms, reconnect_boot_ms);
  alarm_at(next_boot_ms);
}

static void supervise(void) {
  hear_agent(); /* an `end` may have come in one read with the grant */
  for (;;) {
    keep_time();
    struct pollfd ready[4] = {{.fd = signals, .events = POLLIN},
                              {.fd = link_fd(), .events = POLLIN},
                              {.fd = deliver_watch(), .events = POLLIN},
                              {.fd = containment.watch(), .events = POLLIN}};
    signals_wait(ready, 4, unreaped);
    if (ready[2].revents != 0) deliver_opened();
    if (ready[3].revents != 0) containment.hear();
    if (ready[0].revents != 0) hear_signals();
    /* Whatever the signal was: a flood of others can keep a SIGCHLD from its turn. */
    if ((ready[0].revents != 0 || ready[3].revents != 0 || unreaped) && reap()) return;
    if (ready[1].revents != 0) hear_agent();
    if (!root_stopped || cause != NULL || !attached) continue;
    terminal_leave();
    stop_self();
  }
}

/* --- the account ------------------------------------------------------------------------------ */

static void put_ended(int64_t empty_boot_us) {
  frame_begin("ended");
  frame_text("cause", cause == NULL ? "exit" : cause);
  frame_print("root_status", "%s:%d", root_end.how == 'e' ? "exit" : "signal", root_end.how_number);
  if (signalled_boot_us != NEVER) frame_print("signalled_boot_us", "%lld", (long long)signalled_boot_us);
  frame_print("empty_boot_us", "%lld", (long long)empty_boot_us);
  frame_print("survivors", "%d", survivors);
  frame_print("processes", "%d", processes);
  account_put(&rows);
}

static void report(void) {
  int64_t empty_boot_us = boot_us(), until_boot_ms = boot_ms() + DELIVER_MS_MAX;
  for (;;) {
    if (link_fd() >= 0 || resume()) {
      if (unexplained_boot_us != NEVER) await_agent(until_boot_ms);
      put_ended(empty_boot_us);
      if (link_send(SEND_MS_MAX)) return;
    }
    if (boot_ms() >= until_boot_ms) return; /* the agent finds the open run in its own ledger */
    poll(NULL, 0, RECONNECT_MS_MIN);
  }
}

static int exit_code(void) {
  if (cause != NULL && strcmp(cause, "revoked") == 0) return EXIT_REVOKED;
  if (cause != NULL && strcmp(cause, "ceiling") == 0) return EXIT_CEILING;
  if (cause != NULL && strcmp(cause, "stale") == 0) return EXIT_STALE;
  return root_end.how == 'e' ? root_end.how_number : 128 + root_end.how_number;
}

int run(const struct request *wanted) {
  request = wanted;
  if (!prepare()) {
    /* The alarm of clock.c is a signal, for which the kernel sets one aside. */
    say("cannot prepare to hold a run: %s%s", strerror(errno), errno == EAGAIN ? " (pending signals: ulimit -i)" : "");
    return EXIT_CUSTODY;
  }
  int code = put_request(request, &said);
  if (code != 0) return code;
  int fault = link_open(request->socket_path);
  if (fault != 0) {
    say("no agent at %s: %s; `custody agent status` tells more, `custody up` starts one on this machine",
        link_path(), fault == EPERM ? "the socket belongs to another user" : strerror(fault));
    return EXIT_CUSTODY;
  }
  if (!link_send(ANSWER_MS_MAX)) {
    say("agent closed the connection before it took the request (%s)", link_path());
    return EXIT_CUSTODY;
  }
  code = ask();
  if (code >= 0) return code;
  supervise();
  deliver_clear();
  bool by_itself = (cause == NULL || strcmp(cause, "exit") == 0) && root_end.how == 'e';
  terminal_back(!by_itself);
  report();
  code = exit_code();
  if (root_end.how != 'e' && code == 128 + root_end.how_number) signal_die(root_end.how_number);
  return code;
}
