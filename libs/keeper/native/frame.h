/* Frames of docs/spec/keeper.md: a parser that trusts nothing and an encoder that cannot overrun. */
#ifndef CUSTODY_FRAME_H
#define CUSTODY_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_HEAD_BYTES 4
#define FRAME_PAYLOAD_BYTES_MAX 1048576
#define FRAME_BYTES_MAX (FRAME_HEAD_BYTES + FRAME_PAYLOAD_BYTES_MAX)
#define FRAME_NAME_BYTES_MAX 32
#define FRAME_VALUE_BYTES_MAX 131072
#define FRAME_FIELDS_MAX 16384
#define FRAME_NUMBER_MAX INT64_C(9007199254740991)

enum frame_fault {
  FRAME_OK,
  FRAME_SHORT,        /* no violation yet: more bytes are needed */
  FRAME_LENGTH,       /* length out of range */
  FRAME_GRAMMAR,      /* a NUL or "=" is missing */
  FRAME_VERB,         /* not a name */
  FRAME_UNKNOWN_VERB, /* a name, but none of ours */
  FRAME_KEY,          /* not a name */
  FRAME_VALUE,        /* too long */
  FRAME_FIELDS,       /* too many */
};

/* Points into the bytes that were parsed. */
struct frame {
  const char *verb; /* NUL-terminated */
  unsigned char *fields;
  size_t fields_bytes;
  size_t bytes; /* of the whole frame */
};

struct field {
  const char *key; /* followed by "=" */
  size_t key_bytes;
  char *value; /* NUL-terminated */
  size_t value_bytes;
};

enum frame_fault frame_parse(unsigned char *bytes, size_t count, struct frame *frame);
const char *frame_fault_name(enum frame_fault fault);
bool frame_is(const struct frame *frame, const char *verb);
/* The next field from *cursor (0 at first); false at the end. */
bool frame_next(const struct frame *frame, size_t *cursor, struct field *field);
bool field_is(const struct field *field, const char *key);
/* The first field with that key. */
bool frame_one(const struct frame *frame, const char *key, struct field *field);
bool frame_number(const struct frame *frame, const char *key, int64_t *number);
/* Decimal ASCII without sign or leading zero, at most FRAME_NUMBER_MAX. */
bool decimal(const char *text, size_t bytes, int64_t *number);

/* The one frame under construction. Past a bound every call is a no-op and frame_done says so. */
void frame_begin(const char *verb);
void frame_put(const char *key, const void *value, size_t value_bytes);
void frame_text(const char *key, const char *value);
__attribute__((format(printf, 2, 3))) void frame_print(const char *key, const char *format, ...);
/* The finished frame, or NULL when it passed a bound. */
const unsigned char *frame_done(size_t *bytes);
void frame_wipe(void);

#endif
