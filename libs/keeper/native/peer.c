/* Owns what Node cannot ask the kernel for: who is at the other end of a Unix socket, what a process is, the boot-time
   clock, no core dumps. */
#include "keeper.h"

#include "proc.h"

#include <node_api.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifdef __APPLE__
#include <mach/mach_time.h>
#include <sys/types.h>
#include <sys/ucred.h>
#include <sys/un.h>
#else
#include <sys/prctl.h>
#endif

static int peer_of(int fd, int64_t *pid, int64_t *uid, int64_t *gid) {
#ifdef __APPLE__
  struct xucred who;
  socklen_t who_bytes = sizeof who;
  pid_t peer;
  socklen_t peer_bytes = sizeof peer;
  if (getsockopt(fd, SOL_LOCAL, LOCAL_PEERCRED, &who, &who_bytes) != 0) return errno;
  if (getsockopt(fd, SOL_LOCAL, LOCAL_PEERPID, &peer, &peer_bytes) != 0) return errno;
  *pid = peer;
  *uid = who.cr_uid;
  *gid = who.cr_groups[0];
#else
  /* unix(7): the credentials of the peer at the time of its connect. */
  struct ucred who;
  socklen_t bytes = sizeof who;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &bytes) != 0) return errno;
  /* A TCP socket answers too, with pid 0 and uid -1: nobody. */
  if (who.pid <= 0) return ENOTCONN;
  *pid = who.pid;
  *uid = who.uid;
  *gid = who.gid;
#endif
  return 0;
}

static napi_value throw_code(napi_env env, const char *code, const char *message) {
  napi_throw_error(env, code, message);
  return NULL;
}

static bool put(napi_env env, napi_value object, const char *name, int64_t number) {
  napi_value value;
  return napi_create_int64(env, number, &value) == napi_ok &&
         napi_set_named_property(env, object, name, value) == napi_ok;
}

static napi_value peer(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value argument, result;
  int32_t fd = -1;
  if (napi_get_cb_info(env, info, &count, &argument, NULL, NULL) != napi_ok || count != 1 ||
      napi_get_value_int32(env, argument, &fd) != napi_ok) {
    return throw_code(env, "EINVAL", "peer wants a file descriptor");
  }
  int64_t pid = 0, uid = 0, gid = 0;
  int fault = peer_of(fd, &pid, &uid, &gid);
  if (fault != 0) return throw_code(env, fault == ENOTCONN ? "ENOTCONN" : "ENOTSOCK", strerror(fault));
  if (napi_create_object(env, &result) != napi_ok || !put(env, result, "pid", pid) ||
      !put(env, result, "uid", uid) || !put(env, result, "gid", gid)) {
    return throw_code(env, "ENOMEM", "peer could not make its answer");
  }
  return result;
}

static bool put_flag(napi_env env, napi_value object, const char *name, bool flag) {
  napi_value value;
  return napi_get_boolean(env, flag, &value) == napi_ok && napi_set_named_property(env, object, name, value) == napi_ok;
}

/* Undefined where there is no such process. */
static napi_value process(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value argument, result, start;
  int32_t pid = 0;
  struct process found;
  if (napi_get_cb_info(env, info, &count, &argument, NULL, NULL) != napi_ok || count != 1 ||
      napi_get_value_int32(env, argument, &pid) != napi_ok) {
    return throw_code(env, "EINVAL", "process wants a pid");
  }
  if (pid < 1 || !process_read(pid, &found)) return NULL;
  if (napi_create_object(env, &result) != napi_ok || !put(env, result, "ppid", found.ppid) ||
      !put_flag(env, result, "alive", found.alive) || !put_flag(env, result, "stopped", found.stopped) ||
      napi_create_bigint_uint64(env, found.start_ticks, &start) != napi_ok ||
      napi_set_named_property(env, result, "startTicks", start) != napi_ok) {
    return throw_code(env, "ENOMEM", "process could not make its answer");
  }
  return result;
}

static napi_value boot_time_ms(napi_env env, napi_callback_info info) {
  (void)info;
  double ms;
#ifdef __APPLE__
  mach_timebase_info_data_t base;
  mach_timebase_info(&base);
  ms = (double)mach_continuous_time() * base.numer / base.denom / 1e6;
#else
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  ms = (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
#endif
  napi_value result;
  return napi_create_double(env, ms, &result) == napi_ok ? result : NULL;
}

static napi_value undumpable(napi_env env, napi_callback_info info) {
  (void)info;
  /* A core file of the agent would hold credentials in the clear. */
  struct rlimit none = {0, 0};
  if (setrlimit(RLIMIT_CORE, &none) != 0) return throw_code(env, "setrlimit", strerror(errno));
#ifndef __APPLE__
  /* prctl(2): also closes /proc/PID/mem and ptrace to other processes of the same user. */
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) return throw_code(env, "prctl", strerror(errno));
#endif
  return NULL;
}

NAPI_MODULE_INIT() {
  napi_value function;
  if (napi_create_function(env, "peer", NAPI_AUTO_LENGTH, peer, NULL, &function) != napi_ok ||
      napi_set_named_property(env, exports, "peer", function) != napi_ok ||
      napi_create_function(env, "process", NAPI_AUTO_LENGTH, process, NULL, &function) != napi_ok ||
      napi_set_named_property(env, exports, "process", function) != napi_ok ||
      napi_create_function(env, "bootTimeMs", NAPI_AUTO_LENGTH, boot_time_ms, NULL, &function) != napi_ok ||
      napi_set_named_property(env, exports, "bootTimeMs", function) != napi_ok ||
      napi_create_function(env, "undumpable", NAPI_AUTO_LENGTH, undumpable, NULL, &function) != napi_ok ||
      napi_set_named_property(env, exports, "undumpable", function) != napi_ok) {
    return NULL;
  }
  return exports;
}
