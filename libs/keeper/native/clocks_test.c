/* Owns sight of time: runs a command and prints which clock each of its system calls asked, "CALL CLOCK" a line, on fd 3.
   The vDSO is hidden from it, so that no question stays inside the process. Exits with 77 where tracing is refused. */
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define REFUSED 77
#define CALLS_MAX 64
#define SYSCALL_INFO 0x420e /* PTRACE_GET_SYSCALL_INFO (ptrace(2)); the C library's header clashes with the kernel's */
#define SYSCALL_ENTRY 1

struct info {
  uint8_t op;
  uint8_t pad[3];
  uint32_t arch;
  uint64_t instruction_pointer, stack_pointer, nr, args[6];
};

static const struct {
  long nr;
  const char *name;
  bool names_clock; /* its first argument is one */
} calls[] = {
    {SYS_clock_gettime, "clock_gettime", true},
    {SYS_clock_settime, "clock_settime", true},
    {SYS_clock_nanosleep, "clock_nanosleep", true},
    {SYS_timer_create, "timer_create", true},
    {SYS_timerfd_create, "timerfd_create", true},
    {SYS_gettimeofday, "gettimeofday", false},
    {SYS_adjtimex, "adjtimex", false},
#ifdef SYS_time
    {SYS_time, "time", false},
#endif
};

static struct seen {
  size_t call;
  uint64_t clock;
} seen[CALLS_MAX];
static size_t seen_count;

static bool ask(pid_t pid, struct info *info) {
  *info = (struct info){0};
  return ptrace((enum __ptrace_request)SYSCALL_INFO, pid, (void *)sizeof *info, info) > 0;
}

static void note(const struct info *info) {
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
    if ((uint64_t)calls[i].nr != info->nr) continue;
    uint64_t clock = calls[i].names_clock ? info->args[0] : 0; /* CLOCK_REALTIME */
    for (size_t k = 0; k < seen_count; k++) {
      if (seen[k].call == i && seen[k].clock == clock) return;
    }
    if (seen_count < CALLS_MAX) seen[seen_count++] = (struct seen){i, clock};
  }
}

/* After exec the stack holds argc, argv, NULL, environ, NULL, and pairs (getauxval(3)). */
static bool hide_vdso(pid_t pid, uint64_t at) {
  const uint64_t word = sizeof(long);
  errno = 0;
  for (int nulls = 0; nulls < 2 && errno == 0; at += word) {
    if (ptrace(PTRACE_PEEKDATA, pid, (void *)(at + word), NULL) == 0) nulls++;
  }
  for (at += word; errno == 0; at += 2 * word) {
    long type = ptrace(PTRACE_PEEKDATA, pid, (void *)at, NULL);
    if (type == AT_NULL) return true;
    if (type == AT_SYSINFO_EHDR) return ptrace(PTRACE_POKEDATA, pid, (void *)at, (void *)(long)AT_IGNORE) == 0;
  }
  return false;
}

int main(int count, char **words) {
  if (count < 2) return 2;
  pid_t pid = fork();
  if (pid == 0) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(REFUSED);
    close(3);
    raise(SIGSTOP);
    execvp(words[1], words + 1);
    _exit(127);
  }
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status)) return REFUSED;
  ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)(long)(PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL));
  for (long signal = 0;; ) {
    if (ptrace(PTRACE_SYSCALL, pid, NULL, (void *)signal) != 0 || waitpid(pid, &status, 0) != pid) return 1;
    if (!WIFSTOPPED(status)) break;
    struct info info;
    signal = 0;
    if (status >> 8 == (SIGTRAP | PTRACE_EVENT_EXEC << 8)) {
      if (!ask(pid, &info) || !hide_vdso(pid, info.stack_pointer)) return fprintf(stderr, "no stack to be read\n"), 1;
    } else if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      if (ask(pid, &info) && info.op == SYSCALL_ENTRY) note(&info);
    } else {
      signal = WSTOPSIG(status);
    }
  }
  for (size_t i = 0; i < seen_count; i++) dprintf(3, "%s %llu\n", calls[seen[i].call].name, (unsigned long long)seen[i].clock);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
