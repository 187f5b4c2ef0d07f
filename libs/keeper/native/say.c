/* Owns the keeper's only output: lines on stderr. stdout belongs to the child. */
#include "keeper.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void blank_controls(char *text, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) {
    unsigned char byte = (unsigned char)text[i];
    if (byte < 0x20 || byte == 0x7f) text[i] = '?';
  }
}

static void line(const char *prefix, const char *format, va_list arguments) {
  char text[4096];
  size_t used = strlen(prefix);
  memcpy(text, prefix, used);
  size_t room = sizeof text - used - 1;
  int wanted = vsnprintf(text + used, room, format, arguments);
  if (wanted < 0) return;
  size_t bytes = (size_t)wanted < room ? (size_t)wanted : room - 1;
  blank_controls(text + used, bytes);
  used += bytes;
  text[used++] = '\n';
  /* One write, so that lines of keepers that share a terminal do not mix. Where stderr is gone
     there is nobody left to tell. */
  ssize_t ignored = write(STDERR_FILENO, text, used);
  (void)ignored;
}

void say(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  line("custody: ", format, arguments);
  va_end(arguments);
}

void say_more(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  line("  ", format, arguments);
  va_end(arguments);
}
