// Owns the simulation as a program: prints what it found, exits 1 where something was violated. Seed, size, fault are flags.
import { parseArgs } from 'node:util';
import { plant, type PlantName } from './plants.ts';

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: String(Date.now()) },
    hosts: { type: 'string', default: '50' },
    hours: { type: 'string', default: '24' },
    plant: { type: 'string' },
    meetings: { type: 'string' },
    'until-found': { type: 'boolean', default: false },
  },
});
if (values.plant !== undefined) plant(values.plant as PlantName);
const seed = Number(values.seed);
// What fails here was meant to: nobody reads where.
Error.stackTraceLimit = 0;
// Only now: what is loaded from here on may carry the planted fault.
const { simulate } = await import('./world.ts');
const { meet } = await import('./meetings.ts');
const from = performance.now();
const findings =
  values.meetings === undefined
    ? await simulate({
        seed,
        hosts: Number(values.hosts),
        hours: Number(values.hours),
        untilFound: values['until-found'],
      })
    : await meet(seed, Number(values.meetings), values['until-found']);
const seconds = (performance.now() - from) / 1_000;
process.stdout.write(`${JSON.stringify({ ...findings, seconds }, null, 2)}\n`);
process.exitCode = findings.violations.length === 0 ? 0 : 1;
