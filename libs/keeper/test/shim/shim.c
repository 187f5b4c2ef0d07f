/* Owns the stand-in for macOS that the files of native/darwin run over where there is no Mac: kqueue, libproc, sysctl
   and a few calls more, over epoll, pidfd and /proc. For tests alone. It refuses what macOS refuses:
   - NOTE_TRACK, NOTE_TRACKERR, NOTE_CHILD: ENOTSUP. EV_ADD of a process that has ended, its zombie too: ESRCH.
   - NOTE_EXITSTATUS of who is neither a child nor may be signalled: EACCES.
   - NOTE_FORK does not say who was born, and several forks are one event.
   - KERN_PROCARGS2 of another user's process: EINVAL; of a program that came with the system: no environment.
   - No subreaper: an orphan goes to init. No pidfd for the keeper, no /proc, no memfd, no signalfd.
   It is weaker than macOS in one thing: a fork is noticed when the child is still its parent's after TICK_US. And it
   tells of some that were none: a new thread looks like one from outside. */
#undef send
#undef setsockopt

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libproc.h>
#include <limits.h>
#include <mach/mach_time.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/event.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysctl.h>
#include <sys/timerfd.h>

#define TICK_US 500
#define QUEUES_MAX 8
#define BUCKETS 4096
#define NEW_PIDS_MAX 4096 /* of more in one tick, everybody is looked at instead */

struct knote {
  struct knote *next, *next_pending;
  uintptr_t ident;
  int16_t filter;
  uint16_t flags;
  uint32_t fflags, pending;
  int fd; /* pidfd or timerfd */
};

static struct queue {
  int epoll; /* what kqueue() returned */
  int hint;  /* eventfd: there is more to tell than epoll knows of */
  struct knote *buckets[BUCKETS];
  struct knote *pending, **pending_end;
} queues[QUEUES_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool ticking;

/* --- /proc -------------------------------------------------------------------------------------- */

struct stat_line {
  char state, name[17];
  pid_t ppid;
  unsigned long long start_ticks;
  long threads;
};

static ssize_t read_all(const char *path, char *text, size_t bytes) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  size_t held = 0;
  for (ssize_t got; held < bytes - 1 && (got = read(fd, text + held, bytes - 1 - held)) > 0;) held += (size_t)got;
  close(fd);
  text[held] = '\0';
  return (ssize_t)held;
}

static bool stat_of(pid_t pid, struct stat_line *line) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  if (read_all(path, text, sizeof text) <= 0) return false;
  char *open = strchr(text, '('), *shut = strrchr(text, ')');
  if (open == NULL || shut == NULL) return false;
  snprintf(line->name, sizeof line->name, "%.*s", (int)(shut - open - 1), open + 1);
  line->state = shut[2];
  char *at = shut + 3;
  for (int field = 4; field <= 22; field++) {
    unsigned long long number = strtoull(at, &at, 10);
    if (field == 4) line->ppid = (pid_t)number;
    if (field == 20) line->threads = (long)number;
    if (field == 22) line->start_ticks = number;
  }
  return true;
}

static bool is_zombie(const struct stat_line *line) {
  return line->state == 'X' || (line->state == 'Z' && line->threads <= 1);
}

static long last_pid(void) {
  char text[256];
  char *blank = read_all("/proc/loadavg", text, sizeof text) > 0 ? strrchr(text, ' ') : NULL;
  return blank == NULL ? -1 : strtol(blank, NULL, 10);
}

static int numbers_in(const char *path, pid_t *pids, int count_max) {
  DIR *entries = opendir(path);
  int count = 0;
  if (entries == NULL) return 0;
  for (struct dirent *entry; count < count_max && (entry = readdir(entries)) != NULL;) {
    char *end;
    long number = strtol(entry->d_name, &end, 10);
    if (*end == '\0' && number > 0) pids[count++] = (pid_t)number;
  }
  closedir(entries);
  return count;
}

int proc_listallpids(void *buffer, int bytes) {
  return numbers_in("/proc", buffer, bytes / (int)sizeof(pid_t));
}

int proc_listchildpids(pid_t parent, void *buffer, int bytes) {
  pid_t *pids = buffer, threads[1024];
  char path[96], text[16384];
  int count = 0, count_max = bytes / (int)sizeof *pids;
  snprintf(path, sizeof path, "/proc/%d/task", (int)parent);
  int thread_count = numbers_in(path, threads, 1024);
  for (int i = 0; i < thread_count; i++) {
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)parent, (int)threads[i]);
    if (read_all(path, text, sizeof text) <= 0) continue;
    for (char *at = text, *end; count < count_max; at = end) {
      pid_t pid = (pid_t)strtol(at, &end, 10);
      if (end == at) break;
      pids[count++] = pid;
    }
  }
  return count;
}

/* --- sysctl ------------------------------------------------------------------------------------- */

static int kern_proc(pid_t pid, struct kinfo_proc *info, size_t *bytes) {
  struct stat_line line;
  char path[64];
  struct stat owner;
  snprintf(path, sizeof path, "/proc/%d", (int)pid);
  if (!stat_of(pid, &line) || stat(path, &owner) != 0) return *bytes = 0, 0; /* so it is said that there is none */
  memset(info, 0, sizeof *info);
  /* Not a time of day but what the tests compare it with: together they are field 22 of stat. */
  info->kp_proc.p_starttime.tv_sec = (time_t)(line.start_ticks / 1000000);
  info->kp_proc.p_starttime.tv_usec = (suseconds_t)(line.start_ticks % 1000000);
  info->kp_proc.p_stat = is_zombie(&line) ? SZOMB : line.state == 'T' || line.state == 't' ? SSTOP : SRUN;
  memcpy(info->kp_proc.p_comm, line.name, sizeof line.name);
  info->kp_eproc.e_ppid = line.ppid;
  info->kp_eproc.e_ucred.cr_uid = owner.st_uid;
  *bytes = sizeof *info;
  return 0;
}

static bool came_with_the_system(const char *program) {
  static const char *const folders[] = {"/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/"};
  for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
    if (strncmp(program, folders[i], strlen(folders[i])) == 0) return true;
  }
  return false;
}

static int kern_procargs(pid_t pid, char *text, size_t *bytes) {
  static char words[1024 * 1024];
  char path[64], program[PATH_MAX];
  struct stat owner;
  snprintf(path, sizeof path, "/proc/%d", (int)pid);
  if (stat(path, &owner) != 0 || (geteuid() != 0 && geteuid() != owner.st_uid)) return errno = EINVAL, -1;
  snprintf(path, sizeof path, "/proc/%d/exe", (int)pid);
  ssize_t program_bytes = readlink(path, program, sizeof program - 1);
  if (program_bytes <= 0) return errno = EINVAL, -1;
  program[program_bytes] = '\0';
  snprintf(path, sizeof path, "/proc/%d/cmdline", (int)pid);
  ssize_t got = read_all(path, words, sizeof words);
  if (got < 0) return errno = EINVAL, -1;
  int arguments = 0;
  for (ssize_t i = 0; i < got; i++) arguments += words[i] == '\0';
  size_t used = sizeof arguments + (size_t)program_bytes + 4; /* its NUL and those that fill the word */
  if (used + (size_t)got + 1 > *bytes) return errno = ENOMEM, -1;
  memset(text, 0, used);
  memcpy(text, &arguments, sizeof arguments);
  memcpy(text + sizeof arguments, program, (size_t)program_bytes);
  memcpy(text + used, words, (size_t)got);
  used += (size_t)got;
  snprintf(path, sizeof path, "/proc/%d/environ", (int)pid);
  got = came_with_the_system(program) ? 0 : read_all(path, text + used, *bytes - used);
  *bytes = used + (got > 0 ? (size_t)got : 0);
  return 0;
}

int sysctl(int *name, unsigned names, void *old, size_t *old_bytes, void *new, size_t new_bytes) {
  (void)new, (void)new_bytes;
  bool one = names == 4 && name[0] == CTL_KERN && name[1] == KERN_PROC && name[2] == KERN_PROC_PID;
  if (one && *old_bytes >= sizeof(struct kinfo_proc)) return kern_proc((pid_t)name[3], old, old_bytes);
  if (names == 3 && name[0] == CTL_KERN && name[1] == KERN_PROCARGS2) return kern_procargs((pid_t)name[2], old, old_bytes);
  return errno = ENOENT, -1;
}

/* --- kqueue ------------------------------------------------------------------------------------- */

static struct queue *queue_of(int epoll) {
  for (int i = 0; i < QUEUES_MAX; i++) {
    if (queues[i].epoll == epoll && queues[i].hint > 0) return &queues[i];
  }
  return NULL;
}

/* Where that one stands, or where it would. */
static struct knote **place_of(struct queue *queue, uintptr_t ident, int16_t filter) {
  struct knote **at = &queue->buckets[ident % BUCKETS];
  while (*at != NULL && ((*at)->ident != ident || (*at)->filter != filter)) at = &(*at)->next;
  return at;
}

static void pend(struct queue *queue, struct knote *knote, uint32_t what) {
  if (knote->pending == 0) {
    knote->next_pending = NULL;
    *queue->pending_end = knote;
    queue->pending_end = &knote->next_pending;
  }
  knote->pending |= what;
}

static struct knote *take_pending(struct queue *queue) {
  struct knote *first = queue->pending;
  if (first != NULL) queue->pending = first->next_pending;
  if (queue->pending == NULL) queue->pending_end = &queue->pending;
  return first;
}

static void put_away(struct queue *queue, struct knote **place) {
  struct knote *knote = *place;
  *place = knote->next;
  for (struct knote **at = &queue->pending; knote->pending != 0 && *at != NULL; at = &(*at)->next_pending) {
    if (*at != knote) continue;
    *at = knote->next_pending;
    if (*at == NULL) queue->pending_end = at;
    break;
  }
  close(knote->fd); /* which takes it out of the epoll set, too */
  free(knote);
}

static void take_lock(void) { pthread_mutex_lock(&lock); }
static void give_lock(void) { pthread_mutex_unlock(&lock); }

int kqueue(void) {
  static bool known;
  struct epoll_event readable = {.events = EPOLLIN};
  if (!known) pthread_atfork(take_lock, give_lock, give_lock); /* a fork must not come while tick holds it */
  known = true;
  pthread_mutex_lock(&lock);
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  /* Closed by its user, a queue is one no more; its number comes again. */
  struct queue *queue = queue_of(epoll);
  for (int i = 0; queue != NULL && i < BUCKETS; i++) {
    while (queue->buckets[i] != NULL) put_away(queue, &queue->buckets[i]);
  }
  for (int i = 0; queue == NULL && i < QUEUES_MAX; i++) {
    if (queues[i].hint == 0) queue = &queues[i];
  }
  if (epoll >= 0 && queue != NULL) {
    queue->epoll = epoll;
    queue->pending_end = &queue->pending;
    if (queue->hint == 0) queue->hint = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    epoll_ctl(epoll, EPOLL_CTL_ADD, queue->hint, &readable);
  }
  pthread_mutex_unlock(&lock);
  return queue == NULL ? -1 : epoll;
}

/* A process, or a thread, that is new: its parent has forked. False where there is none of that number. */
static bool note_new(pid_t pid) {
  struct stat_line line;
  if (!stat_of(pid, &line)) return false;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < QUEUES_MAX; i++) {
    struct knote *parent = *place_of(&queues[i], (uintptr_t)line.ppid, EVFILT_PROC);
    if (parent == NULL || !(parent->fflags & NOTE_FORK)) continue;
    pend(&queues[i], parent, NOTE_FORK);
    eventfd_write(queues[i].hint, 1);
  }
  pthread_mutex_unlock(&lock);
  return true;
}

/* The last number of /proc/loadavg is the last pid that was given: whoever is new stands between that of the tick
   before and this one. The numbers go round, and a test steers them: then it may be anybody. */
static void *tick(void *with) {
  static pid_t everybody[65536], unborn[NEW_PIDS_MAX]; /* the number is given away before anybody can be seen under it */
  int unborn_count = 0;
  long last = (long)(intptr_t)with;
  for (;;) {
    usleep(TICK_US);
    while (unborn_count > 0) note_new(unborn[--unborn_count]);
    long now = last_pid();
    if (now < 0) return NULL;
    if (now == last) continue;
    if (now > last && now - last <= NEW_PIDS_MAX) {
      while (last < now) {
        if (!note_new((pid_t)++last)) unborn[unborn_count++] = (pid_t)last;
      }
      continue;
    }
    int count = proc_listallpids(everybody, (int)sizeof everybody);
    for (int i = 0; i < count; i++) note_new(everybody[i]);
    last = now;
  }
}

static int watch_process(struct knote *knote) {
  pid_t pid = (pid_t)knote->ident;
  struct stat_line line;
  if (knote->fflags & (NOTE_TRACK | NOTE_TRACKERR | NOTE_CHILD)) return ENOTSUP;
  knote->fd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (knote->fd < 0 || !stat_of(pid, &line) || is_zombie(&line)) return ESRCH;
  bool status = (knote->fflags & NOTE_EXIT) && (knote->fflags & NOTE_EXITSTATUS);
  if (status && line.ppid != getpid() && kill(pid, 0) != 0) return EACCES;
  if (ticking) return 0;
  ticking = true;
  pthread_t thread;
  return pthread_create(&thread, NULL, tick, (void *)(intptr_t)last_pid()); /* with every signal blocked, as here */
}

static int set_timer(struct knote *knote, intptr_t data) {
  bool absolute = knote->fflags & NOTE_ABSOLUTE;
  uint32_t in_ticks = NOTE_MACHTIME | NOTE_MACH_CONTINUOUS_TIME;
  if (absolute && (knote->fflags & in_ticks) != in_ticks) return EINVAL; /* the wall clock: nothing of ours is on it */
  int64_t ns = absolute ? (int64_t)data * 125 / 3 : (int64_t)data * 1000000; /* see mach_timebase_info */
  if (ns < 1) ns = 1;
  struct itimerspec when = {.it_value = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000}};
  if (!absolute && !(knote->flags & EV_ONESHOT)) when.it_interval = when.it_value;
  if (knote->fd < 0) knote->fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
  return timerfd_settime(knote->fd, absolute ? TFD_TIMER_ABSTIME : 0, &when, NULL) == 0 ? 0 : errno;
}

static int change_one(struct queue *queue, const struct kevent *change) {
  struct knote **place = place_of(queue, change->ident, change->filter), *knote = *place;
  if (change->flags & EV_DELETE) return knote == NULL ? ENOENT : (put_away(queue, place), 0);
  bool known = knote != NULL;
  if (!known) knote = calloc(1, sizeof *knote);
  if (knote == NULL) return ENOMEM;
  if (!known) *knote = (struct knote){.ident = change->ident, .filter = change->filter, .fd = -1};
  knote->flags = change->flags;
  knote->fflags = change->fflags;
  int fault = EINVAL;
  if (change->filter == EVFILT_PROC) fault = known ? 0 : watch_process(knote);
  if (change->filter == EVFILT_TIMER) fault = set_timer(knote, change->data);
  if (known) return fault;
  struct epoll_event readable = {.events = EPOLLIN, .data = {.ptr = knote}};
  if (fault == 0 && epoll_ctl(queue->epoll, EPOLL_CTL_ADD, knote->fd, &readable) != 0) fault = errno;
  if (fault == 0) {
    *place = knote;
    return 0;
  }
  if (knote->fd >= 0) close(knote->fd);
  free(knote);
  return fault;
}

static int take_events(struct queue *queue, struct kevent *events, int event_count) {
  eventfd_t hints;
  eventfd_read(queue->hint, &hints);
  struct epoll_event ready[256];
  int ready_count = epoll_wait(queue->epoll, ready, 256, 0), count = 0;
  for (int i = 0; i < ready_count; i++) {
    struct knote *knote = ready[i].data.ptr;
    uint64_t rang;
    if (knote == NULL) continue;
    if (knote->filter == EVFILT_PROC) pend(queue, knote, NOTE_EXIT);
    else if (read(knote->fd, &rang, sizeof rang) == (ssize_t)sizeof rang) pend(queue, knote, 1);
  }
  for (struct knote *knote; count < event_count && (knote = take_pending(queue)) != NULL;) {
    events[count] = (struct kevent){.ident = knote->ident, .filter = knote->filter, .flags = knote->flags};
    if (knote->filter == EVFILT_PROC) events[count].fflags = knote->pending & knote->fflags;
    bool over = knote->filter == EVFILT_PROC ? knote->pending & NOTE_EXIT : knote->flags & EV_ONESHOT;
    if (over) events[count].flags |= EV_EOF | EV_ONESHOT;
    knote->pending = 0;
    count++;
    if (over) put_away(queue, place_of(queue, knote->ident, knote->filter));
  }
  if (queue->pending != NULL) eventfd_write(queue->hint, 1);
  return count;
}

/* Without waiting: nothing of the keeper's waits in kevent(2). */
int kevent(int epoll, const struct kevent *changes, int change_count, struct kevent *events, int event_count,
           const struct timespec *timeout) {
  pthread_mutex_lock(&lock);
  struct queue *queue = queue_of(epoll);
  int fault = queue == NULL ? EBADF : 0, count = 0;
  if (event_count > 0 && (timeout == NULL || timeout->tv_sec != 0 || timeout->tv_nsec != 0)) fault = EINVAL;
  for (int i = 0; i < change_count && fault == 0; i++) fault = change_one(queue, &changes[i]);
  if (fault == 0 && event_count > 0) count = take_events(queue, events, event_count);
  pthread_mutex_unlock(&lock);
  if (fault == 0) return count;
  errno = fault;
  return -1;
}

/* --- the rest ----------------------------------------------------------------------------------- */

int mach_timebase_info(mach_timebase_info_data_t *info) {
  *info = (mach_timebase_info_data_t){.numer = 125, .denom = 3}; /* as on Apple's own processors: 24 MHz */
  return 0;
}

uint64_t mach_continuous_time(void) {
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return ((uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec) * 3 / 125;
}

int getpeereid(int fd, uid_t *uid, gid_t *gid) {
  struct ucred peer;
  socklen_t bytes = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) return -1;
  *uid = peer.uid;
  *gid = peer.gid;
  return 0;
}

/* The folder that macOS makes for each user: here one of the tests' choosing. */
size_t shim_confstr(int name, char *text, size_t bytes) {
  const char *place = getenv("SHIM_USER_TEMP_DIR");
  if (name != _CS_DARWIN_USER_TEMP_DIR || place == NULL) return 0;
  return (size_t)snprintf(text, bytes, "%s/", place) + 1;
}

int shim_setsockopt(int fd, int level, int option, const void *value, socklen_t bytes) {
  return option == SO_NOSIGPIPE ? 0 : setsockopt(fd, level, option, value, bytes);
}

ssize_t shim_send(int fd, const void *bytes, size_t count, int flags) {
  return send(fd, bytes, count, flags | MSG_NOSIGNAL);
}
