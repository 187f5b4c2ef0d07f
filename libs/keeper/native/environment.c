/* Owns the environment of the run's root: what is inherited, what is left out, what the grant puts in. */
#include "keeper.h"

#include "deliver.h"
#include "environment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool names_same(const char *a, const char *b) {
  while (*a == *b && *a != '=' && *a != '\0') a++, b++;
  return *a == '=' && *b == '=';
}

/* Whether a pattern, in which `*` stands for any bytes, is the name before the "=" of an entry. */
static bool matches(const char *pattern, const char *entry) {
  const char *star = NULL, *from = entry;
  while (*entry != '=' && *entry != '\0') {
    if (*pattern == '*') star = ++pattern, from = entry;
    else if (*pattern == *entry) pattern++, entry++;
    else if (star != NULL) pattern = star, entry = ++from;
    else return false;
  }
  while (*pattern == '*') pattern++;
  return *pattern == '\0';
}

static bool listed(const struct frame *granted, const char *key, const char *entry) {
  size_t cursor = 0;
  struct field field;
  while (frame_next(granted, &cursor, &field)) {
    if (field_is(&field, key) && matches(field.value, entry)) return true;
  }
  return false;
}

static char **entries;
static size_t count;

/* The later of two with one name counts; the marker, which stands first, is ours. */
static void put(char *entry) {
  size_t same = 0;
  while (same < count && !names_same(entries[same], entry)) same++;
  if (same == 0 && count > 0) return;
  entries[same] = entry;
  if (same == count) count++;
}

char **environment(const struct frame *granted, char *marker) {
  size_t room = 2 + DELIVERIES_MAX, cursor = 0;
  struct field field;
  bool clean = frame_one(granted, "keep", &field);
  while (frame_next(granted, &cursor, &field)) room++;
  for (char **entry = environ; *entry != NULL; entry++) room++;
  count = 0;
  entries = calloc(room, sizeof *entries);
  if (entries == NULL) return NULL;
  put(marker);
  for (cursor = 0; frame_next(granted, &cursor, &field);) {
    if (!field_is(&field, "env")) continue;
    if (strchr(field.value, '=') == NULL || field.value[0] == '=') return free(entries), NULL;
    put(field.value);
  }
  for (size_t i = 0; deliver_entry(i) != NULL; i++) put(deliver_entry(i));
  size_t ours = count;
  for (char **entry = environ; *entry != NULL; entry++) {
    bool out = names_same(*entry, "CUSTODY_TOKEN="); /* the operator's, never a run's */
    out = out || (clean && !listed(granted, "keep", *entry)) || listed(granted, "drop", *entry);
    for (size_t i = 0; i < ours && !out; i++) out = names_same(*entry, entries[i]);
    if (!out) entries[count++] = *entry;
  }
  return entries;
}

bool on_path(const char *name) {
  const char *path = getenv("PATH");
  if (path == NULL || strchr(name, '/') != NULL) return true;
  for (const char *at = path, *end; *at != '\0'; at = *end == ':' ? end + 1 : end) {
    end = at + strcspn(at, ":");
    char file[4096];
    int bytes = snprintf(file, sizeof file, "%.*s/%s", (int)(end - at), at, name);
    if (bytes > 0 && (size_t)bytes < sizeof file && access(file, F_OK) == 0) return true;
  }
  return false;
}
