// Owns the proof of what the mechanism of macOS holds, over its shim: every trick of fixtures/, against a real agent.
import { outlastsNoCeiling, revokesEveryTrick, stage } from './story.ts';

const on = stage('kqueue');
revokesEveryTrick('kqueue', on);
outlastsNoCeiling('kqueue', on, [
  'double-fork.c',
  'ignores-everything.c',
  'stopped.c',
  'handler-respawns.c',
  'floods-the-keeper.c',
  'blinds-the-keeper.c',
  'subreaper-stays.c',
]);
