/* Owns the account of a tree: who was reaped or met, how and when each ended, and counts of what is past the bound. */
#include "keeper.h"

#include "account.h"
#include "frame.h"

/* In a full table those make room that ended by themselves before the run began to end: a loop that leaves a
   thousand orphans must not hide whom custody had to kill. */
static struct row *make_room(struct rows *rows, bool displacing) {
  if (rows->count < ROWS_MAX) return &rows->row[rows->count++];
  for (size_t i = 0; displacing && i < ROWS_MAX; i++) {
    struct row *row = &rows->row[i];
    if ((row->how != 'e' && row->how != 's') || row->survivor || row->process.pid == rows->root) continue;
    account_end(rows, NULL, row->how, 0);
    return row;
  }
  return NULL;
}

struct row *account_met(struct rows *rows, const struct process *process) {
  struct row *row = NULL;
  for (size_t i = 0; i < rows->count && row == NULL; i++) {
    struct row *each = &rows->row[i];
    if (each->process.pid == process->pid && each->process.start_ticks == process->start_ticks) row = each;
  }
  if (row == NULL) {
    row = make_room(rows, rows->ending || rows->surviving);
    if (row == NULL) return NULL;
    *row = (struct row){.process = *process};
  }
  row->ended_boot_us = boot_us();
  if (rows->surviving && !(row->sent & SENT_KILL)) row->survivor = true;
  return row;
}

struct row *account_dead(struct rows *rows, pid_t pid) {
  /* Past the bound nothing is read: orphans by the thousand cost what they would cost under init. */
  bool displacing = rows->ending || pid == rows->root;
  struct process process;
  if (rows->count == ROWS_MAX && !displacing) return NULL;
  if (!process_read(pid, &process)) return NULL;
  for (size_t i = rows->count; i-- > 0;) {
    struct row *row = &rows->row[i];
    if (row->how != 0 || row->process.pid != pid || row->process.start_ticks != process.start_ticks) continue;
    row->process = process; /* its last name, and who was its parent in the end */
    return row;
  }
  struct row *row = make_room(rows, displacing);
  if (row != NULL) *row = (struct row){.process = process};
  return row;
}

void account_end(struct rows *rows, struct row *row, char how, int number) {
  if (row != NULL) {
    row->how = how;
    row->how_number = number;
    row->ended_boot_us = boot_us();
  } else if (how == 'e') {
    rows->unlisted.exit++;
  } else if (how == 's') {
    rows->unlisted.signal++;
  } else {
    rows->unlisted.killed++;
  }
}

void account_claim(struct rows *rows, int64_t since_boot_us) {
  for (size_t i = 0; i < rows->count; i++) {
    struct row *row = &rows->row[i];
    row->survivor = false;
    if (row->how == 's' && row->how_number == SIGKILL && row->ended_boot_us >= since_boot_us) row->how = 'k';
  }
}

static void put_unlisted(const char *how, unsigned count) {
  if (count > 0) frame_print("unlisted", "%s %u", how, count);
}

void account_put(struct rows *rows) {
  for (size_t i = 0; i < rows->count; i++) {
    struct row *row = &rows->row[i];
    if (row->how == 0) { /* its own parent reaped it: what was sent is all that is known */
      row->how = row->sent == 0 ? 'g' : 'k';
      row->how_number = row->sent == 0 ? 0 : row->sent & SENT_KILL ? SIGKILL : SIGTERM;
    }
    char text[256];
    int bytes = row_print(row, text, sizeof text);
    frame_put("proc", text, (size_t)bytes);
  }
  put_unlisted("exit", rows->unlisted.exit);
  put_unlisted("signal", rows->unlisted.signal);
  put_unlisted("killed", rows->unlisted.killed);
}
