/* Owns the view of the C parser that the tests compare with the TypeScript one: cases in, lines out.
   A case is 4 bytes of length, big endian, and that many bytes of stream; a line is what they hold. */
#include "frame.h"

#include <stdio.h>
#include <stdlib.h>

static void show(const struct frame *frame) {
  fputs(frame->verb, stdout);
  size_t cursor = 0;
  struct field field;
  while (frame_next(frame, &cursor, &field)) {
    printf(" %.*s=", (int)field.key_bytes, field.key);
    for (size_t i = 0; i < field.value_bytes; i++) printf("%02x", (unsigned)(unsigned char)field.value[i]);
  }
  fputs("; ", stdout);
}

int main(void) {
  unsigned char head[4];
  while (fread(head, 1, sizeof head, stdin) == sizeof head) {
    size_t count = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
    /* Exactly as large as the case, so that the sanitizer sees one byte too far. */
    unsigned char *bytes = malloc(count > 0 ? count : 1);
    if (bytes == NULL || fread(bytes, 1, count, stdin) != count) return 1;
    size_t at = 0;
    enum frame_fault fault = FRAME_OK;
    while (at < count && fault == FRAME_OK) {
      struct frame frame;
      fault = frame_parse(bytes + at, count - at, &frame);
      if (fault == FRAME_OK) {
        show(&frame);
        at += frame.bytes;
      }
    }
    puts(frame_fault_name(fault));
    free(bytes);
  }
  return 0;
}
