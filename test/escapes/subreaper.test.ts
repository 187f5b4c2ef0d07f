// Owns the proof that nothing leaves a tree which subreaper holds: every trick of fixtures/, against a real agent.
import { outlastsNoCeiling, revokesEveryTrick, stage } from './story.ts';

const on = stage('subreaper');
revokesEveryTrick('subreaper', on);
outlastsNoCeiling('subreaper', on, [
  'double-fork.c',
  'ignores-everything.c',
  'stopped.c',
  'handler-respawns.c',
  'floods-the-keeper.c',
  'blinds-the-keeper.c',
  'clears-environment.c',
  'subreaper-stays.c',
  'stops-the-keeper.c',
  'kills-the-keeper.c',
]);
