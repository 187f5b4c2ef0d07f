/* Job control. */
#ifndef CUSTODY_STOP_H
#define CUSTODY_STOP_H

/* Stops this process as the shell expects of a job whose command has stopped, and returns when it goes on:
   by SIGCONT from anyone, by the alarm, or by a word from the agent. */
void stop_self(void);

#endif
