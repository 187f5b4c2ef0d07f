// Owns `npm run bench -- NAME`: picks the bench, runs it, writes its results.
import { ceiling } from './ceiling.ts';
import { keeper } from './keeper.ts';
import { revoke } from './revoke.ts';
import { run } from './run.ts';
import { simulation } from './simulation.ts';
import { up } from './up.ts';
import { writeResults, type Bench } from './results.ts';

const benches: Readonly<Record<string, Bench>> = { ceiling, keeper, revoke, run, simulation, up };

const name = process.argv[2] ?? '';
const bench = benches[name];
if (bench === undefined) {
  console.error(`usage: npm run bench -- NAME   (one of: ${Object.keys(benches).join(', ')})`);
  process.exit(2);
}
const results = await bench();
const file = writeResults(name, results);
console.log(`\nwritten to ${file}`);
