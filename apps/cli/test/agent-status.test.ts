// Owns the proof that a person reads from `custody agent status` what becomes of each run when its host is cut off.
import { expect, it } from 'vitest';
import { runTable, type RunStatus } from '../src/host.ts';

const run: RunStatus = {
  grantId: 'g_00000001',
  uid: 1000,
  ceilingInMs: 900_000,
  freshness: { kind: 'strict', ms: 60_000 },
  staleInMs: 41_500,
  renewable: true,
  command: ['node', 'agent.js'],
};

it.each<[string, Partial<RunStatus>, string]>([
  ['of a strict run when it ends', {}, 'ends in 42 s unless a beacon comes (strict 1m)'],
  [
    'of a strict run whose log was set back that nothing helps it',
    { renewable: false },
    'ends in 42 s whatever comes: the revocation log was set back (strict 1m)',
  ],
  [
    'of a strict run that is near its ceiling that this is earlier',
    { ceilingInMs: 41_000 },
    'lives to its ceiling (strict 1m)',
  ],
  ['of any other that it lives', { freshness: { kind: 'best_effort' } }, 'lives to its ceiling'],
])('says %s', (_, more, what) => {
  const [headings, row] = runTable([{ ...run, ...more }]).split('\n');
  expect(headings).toMatch(/^GRANT +UID +CEILING +WHEN CUT OFF +COMMAND$/);
  expect(row?.split(/ {2,}/)).toEqual([
    'g_00000001',
    '1000',
    `in ${(more.ceilingInMs ?? 900_000) / 1_000} s`,
    what,
    'node agent.js',
  ]);
});
