/* Owns the bytes of a frame: parse, look up, encode. */
#include "frame.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

void explicit_bzero(void *, size_t);

static const char *const verbs[] = {"request", "note",  "granted", "refused", "started", "failed",
                                    "fresh",   "end",   "ended",   "resume",  "adopted", "status"};

static bool is_name(const unsigned char *text, size_t bytes) {
  if (bytes < 1 || bytes > FRAME_NAME_BYTES_MAX) return false;
  for (size_t i = 0; i < bytes; i++) {
    if ((text[i] < 'a' || text[i] > 'z') && text[i] != '_') return false;
  }
  return true;
}

static enum frame_fault fields_fault(const unsigned char *at, size_t left) {
  for (size_t fields = 0; left > 0; fields++) {
    if (fields == FRAME_FIELDS_MAX) return FRAME_FIELDS;
    const unsigned char *nul = memchr(at, 0, left);
    if (nul == NULL) return FRAME_GRAMMAR;
    size_t field_bytes = (size_t)(nul - at);
    const unsigned char *equals = memchr(at, '=', field_bytes);
    if (equals == NULL) return FRAME_GRAMMAR;
    size_t key_bytes = (size_t)(equals - at);
    if (!is_name(at, key_bytes)) return FRAME_KEY;
    if (field_bytes - key_bytes - 1 > FRAME_VALUE_BYTES_MAX) return FRAME_VALUE;
    at = nul + 1;
    left -= field_bytes + 1;
  }
  return FRAME_OK;
}

enum frame_fault frame_parse(unsigned char *bytes, size_t count, struct frame *frame) {
  if (count < FRAME_HEAD_BYTES) return FRAME_SHORT;
  uint32_t length = (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
  if (length < 1 || length > FRAME_PAYLOAD_BYTES_MAX) return FRAME_LENGTH;
  if (count - FRAME_HEAD_BYTES < length) return FRAME_SHORT;
  unsigned char *payload = bytes + FRAME_HEAD_BYTES;
  const unsigned char *nul = memchr(payload, 0, length);
  if (nul == NULL) return FRAME_GRAMMAR;
  size_t verb_bytes = (size_t)(nul - payload);
  if (!is_name(payload, verb_bytes)) return FRAME_VERB;
  bool known = false;
  for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
    if (strcmp((const char *)payload, verbs[i]) == 0) known = true;
  }
  if (!known) return FRAME_UNKNOWN_VERB;
  frame->verb = (const char *)payload;
  frame->fields = payload + verb_bytes + 1;
  frame->fields_bytes = length - verb_bytes - 1;
  frame->bytes = FRAME_HEAD_BYTES + length;
  return fields_fault(frame->fields, frame->fields_bytes);
}

const char *frame_fault_name(enum frame_fault fault) {
  static const char *const names[] = {"ok",   "short",        "length", "grammar",
                                      "verb", "unknown_verb", "key",    "value", "fields"};
  return names[fault];
}

bool frame_is(const struct frame *frame, const char *verb) { return strcmp(frame->verb, verb) == 0; }

bool frame_next(const struct frame *frame, size_t *cursor, struct field *field) {
  if (*cursor >= frame->fields_bytes) return false;
  char *at = (char *)frame->fields + *cursor;
  char *equals = strchr(at, '='); /* frame_parse has seen it, and the NUL after it */
  if (equals == NULL) return false;
  field->key = at;
  field->key_bytes = (size_t)(equals - at);
  field->value = equals + 1;
  field->value_bytes = strlen(field->value);
  *cursor += field->key_bytes + 1 + field->value_bytes + 1;
  return true;
}

bool field_is(const struct field *field, const char *key) {
  return strlen(key) == field->key_bytes && memcmp(field->key, key, field->key_bytes) == 0;
}

bool frame_one(const struct frame *frame, const char *key, struct field *field) {
  size_t cursor = 0;
  while (frame_next(frame, &cursor, field)) {
    if (field_is(field, key)) return true;
  }
  return false;
}

bool decimal(const char *text, size_t bytes, int64_t *number) {
  if (bytes < 1 || bytes > 16 || (text[0] == '0' && bytes > 1)) return false;
  int64_t sum = 0;
  for (size_t i = 0; i < bytes; i++) {
    if (text[i] < '0' || text[i] > '9') return false;
    sum = sum * 10 + (text[i] - '0');
  }
  if (sum > FRAME_NUMBER_MAX) return false;
  *number = sum;
  return true;
}

bool frame_number(const struct frame *frame, const char *key, int64_t *number) {
  struct field field;
  return frame_one(frame, key, &field) && decimal(field.value, field.value_bytes, number);
}

/* Static, so that no allocator keeps a copy; pages that no frame reaches are never touched. */
static unsigned char out[FRAME_BYTES_MAX];
static size_t out_bytes;
static size_t out_fields;
static bool out_over;

static void append(const void *from, size_t bytes) {
  if (out_over || bytes > sizeof out - out_bytes) {
    out_over = true;
    return;
  }
  memcpy(out + out_bytes, from, bytes);
  out_bytes += bytes;
}

void frame_begin(const char *verb) {
  out_bytes = FRAME_HEAD_BYTES;
  out_fields = 0;
  out_over = false;
  append(verb, strlen(verb) + 1);
}

void frame_put(const char *key, const void *value, size_t value_bytes) {
  if (++out_fields > FRAME_FIELDS_MAX || value_bytes > FRAME_VALUE_BYTES_MAX) out_over = true;
  append(key, strlen(key));
  append("=", 1);
  append(value, value_bytes);
  append("", 1);
}

void frame_text(const char *key, const char *value) { frame_put(key, value, strlen(value)); }

void frame_print(const char *key, const char *format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  int bytes = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (bytes < 0 || (size_t)bytes >= sizeof text) {
    out_over = true;
    return;
  }
  frame_put(key, text, (size_t)bytes);
}

const unsigned char *frame_done(size_t *bytes) {
  if (out_over) return NULL;
  size_t length = out_bytes - FRAME_HEAD_BYTES;
  for (size_t i = 0; i < FRAME_HEAD_BYTES; i++) out[i] = (unsigned char)(length >> (24 - 8 * i));
  *bytes = out_bytes;
  return out;
}

void frame_wipe(void) {
  explicit_bzero(out, out_bytes);
  out_bytes = 0;
}
