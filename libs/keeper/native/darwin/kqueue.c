/* Owns containment on macOS: who belongs to the tree is remembered, watched by kevents, and looked for.

   There is no subreaper: a process whose parent dies becomes launchd's, and nothing says whose it was. So ECHILD means
   nothing, and a tree is empty when everybody who was ever seen in it has ended and a last look finds nobody new.
   Somebody belongs to the tree
   - whose parent does: seen by a look at the children when the kernel says that a parent has forked. The kernel does
     not say whom (NOTE_TRACK is refused since 10.5), so a child that has left a dead parent before that look is missed;
   - whose session or process group was made in the tree, or the keeper's where it leads one: only a descendant gets
     into those;
   - who holds the marker of the grant, where the kernel lets us read it (proc.c says where it does not).
   What none of the three leads to is not held: docs/containment.md says so. */
#include "keeper.h"

#include "containment.h"

#include <errno.h>
#include <libproc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/event.h>
#include <unistd.h>

#define EVENTS 64
#define GROUPS_MAX 1024
#define STOPS_MAX 32
#define LOOK_MS 20 /* between two looks at everybody, which cost a call or two a process */
#define LOOK_AGAIN_MS 10000 /* while there are groups: before the number of one that is gone could come round */
#define LOOK 1              /* ident of that timer */

static int queue = -1;
static const char *grant;
static pid_t own_session; /* the caller's */
static uint64_t root_ticks;

/* Everybody of the tree who is alive, as far as we know; by pid. */
static struct member {
  pid_t pid;
  uint64_t start_ticks;
} members[PROCESSES_MAX];
static size_t member_count;

/* The sessions and process groups that were made in the tree. A group of the caller's session counts where one of the
   tree leads it: into others of that session anyone of the tree could go, and would draw in who is there. */
static struct group {
  pid_t id;              /* the pid of who made it: not given away as long as somebody is in it */
  uint64_t leader_ticks; /* 0: it had ended before it was met */
} groups[GROUPS_MAX];
static size_t group_count;

/* Everybody of the system, in one look; by pid. */
static struct anybody {
  struct process process;
  pid_t group, session;
} all[PROCESSES_MAX];
static size_t all_count;

static int64_t look_boot_ms; /* the next look at everybody may be then */
static bool look_due;

static bool prepare(void) { return (queue = kqueue()) >= 0; }
static int watch(void) { return queue; }

/* Where a pid stands in the list, or would. */
static size_t place_of(pid_t pid) { return place_of_pid(pid, members, member_count, sizeof *members); }

static struct member *member_of(pid_t pid) {
  size_t place = place_of(pid);
  return place < member_count && members[place].pid == pid ? &members[place] : NULL;
}

static void forget(const struct member *member) {
  size_t place = (size_t)(member - members);
  memmove(&members[place], &members[place + 1], (--member_count - place) * sizeof *members);
}

static struct group *group_of(pid_t id) {
  for (size_t i = 0; i < group_count; i++) {
    if (groups[i].id == id) return &groups[i];
  }
  return NULL;
}

static void note_group(pid_t id, uint64_t leader_ticks) {
  if (group_of(id) == NULL && group_count < GROUPS_MAX) groups[group_count++] = (struct group){id, leader_ticks};
}

static void note_groups(const struct member *member, pid_t group, pid_t session) {
  if (group == member->pid) note_group(group, member->start_ticks);
  if (session > 0 && session != own_session) note_group(session, session == member->pid ? member->start_ticks : 0);
}

/* Remembers a process and has its exit, its forks and its execs told. NOTE_EXITSTATUS is not asked for: it is given for
   one's own children, whom waitid tells of. False where it has ended, or was remembered. */
static bool take(const struct process *process) {
  struct member *known = member_of(process->pid);
  if (known != NULL && known->start_ticks == process->start_ticks) return false;
  if (known != NULL) forget(known); /* that one ended, and its number was given away */
  if (member_count == PROCESSES_MAX) return false; /* those beyond are found when these are dead */
  struct kevent change;
  EV_SET(&change, process->pid, EVFILT_PROC, EV_ADD | EV_CLEAR, NOTE_EXIT | NOTE_FORK | NOTE_EXEC, 0, NULL);
  if (kevent(queue, &change, 1, NULL, 0, NULL) != 0 && errno == ESRCH) return false;
  /* Watched, and only then looked at again: whose exit will be told is who was meant. */
  struct process again;
  if (!process_read(process->pid, &again) || !again.alive || again.start_ticks != process->start_ticks) return false;
  size_t place = place_of(process->pid);
  memmove(&members[place + 1], &members[place], (member_count++ - place) * sizeof *members);
  members[place] = (struct member){.pid = process->pid, .start_ticks = process->start_ticks};
  note_groups(&members[place], getpgid(process->pid), getsid(process->pid));
  return true;
}

/* Takes the children of a member, and theirs; true when one of its own was new. */
static bool take_children(pid_t parent, int depth) {
  pid_t pids[256]; /* of one with more children, the rest is found by the look at everybody */
  int count = proc_listchildpids(parent, pids, (int)sizeof pids);
  bool found = false;
  for (int i = 0; i < count && i < (int)(sizeof pids / sizeof *pids); i++) {
    struct process child;
    if (!process_read(pids[i], &child) || child.ppid != parent || !child.alive || !take(&child)) continue;
    found = true;
    if (depth > 0) take_children(child.pid, depth - 1); /* it may have forked before it was watched */
  }
  return found;
}

static void note_anybody(pid_t pid, void *with) {
  (void)with;
  struct anybody *one = &all[all_count];
  if (pid == getpid() || all_count == PROCESSES_MAX || !process_read(pid, &one->process)) return;
  if (!one->process.alive) return;
  one->group = getpgid(pid);
  one->session = getsid(pid);
  all_count++;
}

static bool is_ours(const char *marked, void *with) { return strcmp(marked, with) == 0; }

static const struct anybody *anybody(pid_t pid) {
  struct anybody key = {.process = {.pid = pid}};
  return bsearch(&key, all, all_count, sizeof *all, by_pid);
}

/* Whether somebody is of the tree, by the account of this look. A member's number may have been given away since it was
   remembered: the start of the parent says. */
static bool belongs(const struct anybody *one) {
  if (one->process.ppid == getpid() || group_of(one->group) != NULL || group_of(one->session) != NULL) return true;
  const struct member *parent = member_of(one->process.ppid);
  if (parent == NULL) return false;
  const struct anybody *above = anybody(one->process.ppid);
  return above != NULL && above->process.start_ticks == parent->start_ticks;
}

/* Forgets who has ended, and the groups in which nobody is left or whose number somebody else has by now. */
static void forget_ended(void) {
  for (size_t i = member_count; i-- > 0;) {
    const struct anybody *now = anybody(members[i].pid);
    if (now == NULL || now->process.start_ticks != members[i].start_ticks) forget(&members[i]);
    else note_groups(&members[i], now->group, now->session);
  }
  for (size_t i = group_count; i-- > 0;) {
    const struct anybody *leader = anybody(groups[i].id);
    bool used = leader == NULL || leader->process.start_ticks == groups[i].leader_ticks || groups[i].leader_ticks == 0;
    bool found = false;
    for (size_t j = 0; used && !found && j < all_count; j++) {
      found = all[j].group == groups[i].id || all[j].session == groups[i].id;
    }
    if (!found) groups[i] = groups[--group_count];
  }
}

/* A look at everybody. Returns how many were new. */
static int look(void) {
  int found = 0, round;
  look_due = false;
  look_boot_ms = boot_ms() + LOOK_MS;
  all_count = 0;
  if (!each_process(note_anybody, NULL)) return 0;
  qsort(all, all_count, sizeof *all, by_pid);
  forget_ended();
  /* The leader of a session, as under ssh or a CI runner: whoever is in it descends from us. */
  if (own_session == getpid()) note_group(own_session, 0);
  for (size_t i = 0; i < all_count; i++) {
    /* A holder that is older than the root is somebody's who was handed the marker: the agent's scan tells of it. */
    if (all[i].process.start_ticks < root_ticks || member_of(all[i].process.pid) != NULL || belongs(&all[i])) continue;
    if (process_marked(all[i].process.pid, is_ours, (void *)(uintptr_t)grant)) found += take(&all[i].process);
  }
  do { /* a child may stand before its parent in the list, and its group before the process that made it */
    round = 0;
    for (size_t i = 0; i < all_count; i++) round += belongs(&all[i]) && take(&all[i].process);
    found += round;
  } while (round > 0);
  return found;
}

static void hold(const struct process *root, const char *of_grant) {
  grant = of_grant;
  own_session = getsid(0);
  root_ticks = root->start_ticks;
  if (take(root)) take_children(root->pid, 16);
}

static void look_in(int64_t ms) {
  struct kevent change;
  EV_SET(&change, LOOK, EVFILT_TIMER, EV_ADD | EV_ONESHOT, 0, (intptr_t)ms, NULL);
  kevent(queue, &change, 1, NULL, 0, NULL);
}

/* Somebody has forked, and the child was gone from its parent when we looked: it may be dead, or somebody's who is
   not of the tree any more. Its groups or its marker lead to it, now or after LOOK_MS. */
static void look_when_due(void) {
  int64_t now_boot_ms = boot_ms();
  if (look_due && now_boot_ms < look_boot_ms) {
    look_in(look_boot_ms - now_boot_ms);
    return;
  }
  if (look_due) look();
  if (group_count > 0) look_in(LOOK_AGAIN_MS);
}

static void hear(void) {
  struct kevent events[EVENTS]; /* once: the rest keeps the queue readable, and a storm of forks nobody waiting */
  struct timespec now = {0};
  int count = kevent(queue, NULL, 0, events, EVENTS, &now);
  for (int i = 0; i < count; i++) {
    pid_t pid = (pid_t)events[i].ident;
    if (events[i].filter == EVFILT_TIMER) look_due = true;
    const struct member *member = events[i].filter == EVFILT_PROC ? member_of(pid) : NULL;
    if (member == NULL) continue;
    if (events[i].fflags & (NOTE_FORK | NOTE_EXEC)) note_groups(member, getpgid(pid), getsid(pid));
    if ((events[i].fflags & NOTE_FORK) && !take_children(pid, 16)) look_due = true;
    if ((events[i].fflags & NOTE_EXIT) && (member = member_of(pid)) != NULL) forget(member);
  }
  look_when_due();
}

static bool empty(void) {
  look();
  return member_count == 0;
}

/* Stops whole groups: one call reaches those too who fork and exit faster than a look lists them. A group that we
   are in ourselves is not among them. */
static void stop_groups(void) {
  for (size_t i = 0; i < group_count; i++) {
    if (groups[i].id != getpgrp()) kill(-groups[i].id, SIGSTOP); /* of a session's id there may be no group */
  }
}

static void act_on_members(enum act act, struct rows *rows, struct walk *walk) {
  for (size_t i = 0; i < member_count; i++) {
    struct process process;
    int handle = process_open(members[i].pid);
    bool there = handle >= 0 && process_read(members[i].pid, &process) && process.alive;
    if (there && process.start_ticks == members[i].start_ticks) act_on(act, &process, handle, rows, walk);
    if (handle >= 0) process_close(handle);
  }
}

static struct walk pass(enum act act, struct rows *rows) {
  struct walk walk = {0};
  look();
  /* The children of who is killed first go to launchd, and who of them has forked by then is found no more. So all are
     stopped, until a look finds nobody new, before the first is killed. */
  for (int stops = 0; act == ACT_KILL && stops < STOPS_MAX; stops++) {
    struct walk stopped = {0};
    stop_groups();
    act_on_members(ACT_STOP, rows, &stopped);
    if (look() == 0) break;
  }
  act_on_members(act, rows, &walk);
  return walk;
}

const struct containment containment = {
    .name = "kqueue",
    .prepare = prepare,
    .hold = hold,
    .watch = watch,
    .hear = hear,
    .empty = empty,
    .pass = pass,
};
