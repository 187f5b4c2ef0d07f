// Owns the proof that nothing leaves a tree which cgroup holds: every trick of fixtures/, against a real agent.
import { outlastsNoCeiling, revokesEveryTrick, stage } from './story.ts';

const on = stage('cgroup');
revokesEveryTrick('cgroup', on);
outlastsNoCeiling('cgroup', on, [
  'double-fork.c',
  'ignores-everything.c',
  'stopped.c',
  'handler-respawns.c',
  'clears-environment.c',
  'subreaper-stays.c',
  'stops-the-keeper.c',
  'kills-the-keeper.c',
  'kills-the-keeper-unmarked.c',
]);
