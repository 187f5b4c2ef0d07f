/* What the C library of macOS has under another name; every file of the keeper is compiled with it there. */
#ifndef CUSTODY_LIBC_H
#define CUSTODY_LIBC_H

#define __STDC_WANT_LIB_EXT1__ 1
#include <string.h>

static inline void explicit_bzero(void *bytes, size_t count) { memset_s(bytes, count, 0, count); }

#endif
