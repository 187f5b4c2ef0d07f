/* Owns a test's way into a network of its own, which Node cannot ask the kernel for. */
#include <node_api.h>

#include <errno.h>
#include <sched.h>
#include <string.h>

/* unshare(2): for the calling thread alone, and for what it starts from then on. */
static napi_value own_network(napi_env env, napi_callback_info info) {
  (void)info;
  if (unshare(CLONE_NEWNET) != 0) napi_throw_error(env, "unshare", strerror(errno));
  return NULL;
}

NAPI_MODULE_INIT() {
  napi_value function;
  if (napi_create_function(env, "ownNetwork", NAPI_AUTO_LENGTH, own_network, NULL, &function) != napi_ok ||
      napi_set_named_property(env, exports, "ownNetwork", function) != napi_ok) {
    return NULL;
  }
  return exports;
}
