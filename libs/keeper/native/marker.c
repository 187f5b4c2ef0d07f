/* Owns the marker: finds the grants that an environment names, wherever it is cut. */
#include "keeper.h"

#include "proc.h"

struct search {
  bool (*is)(const char *grant, void *with);
  void *with;
  size_t at;     /* in the entry */
  bool possible; /* the entry may be a marker, as far as it has come */
  char grant[GRANT_BYTES_MAX + 1];
};

static bool piece(const char *bytes, size_t count, void *with) {
  static const char name[] = "CUSTODY_GRANT=";
  struct search *search = with;
  for (size_t i = 0; i < count; i++) {
    size_t value = search->at - (sizeof name - 1);
    if (bytes[i] == '\0') {
      bool whole = search->possible && search->at > sizeof name - 1;
      search->at = 0, search->possible = true;
      if (!whole) continue;
      search->grant[value] = '\0';
      if (search->is(search->grant, search->with)) return true;
      continue;
    }
    if (search->at < sizeof name - 1) search->possible = search->possible && bytes[i] == name[search->at];
    else if (search->possible && value < GRANT_BYTES_MAX) search->grant[value] = bytes[i];
    else search->possible = false;
    search->at++;
  }
  return false;
}

bool process_marked(pid_t pid, bool (*is)(const char *grant, void *with), void *with) {
  struct search search = {.is = is, .with = with, .possible = true};
  return process_environment(pid, piece, &search);
}
