// Owns the demo's example agent: it holds a key, starts a tool, and shows the tree that it lives in.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';

const key = process.env.STRIPE_KEY ?? '';
if (key === '') {
  console.error('agent: no key, nothing to do');
  process.exit(1);
}
console.log(`agent: I hold a key of ${key.length} characters that ends in …${key.slice(-4)}`);

const tool = spawn('sh', ['-c', 'echo "tool: so do I, …${STRIPE_KEY#"${STRIPE_KEY%????}"}"; read _'], {
  stdio: ['pipe', 'inherit', 'inherit'],
});
await once(tool, 'spawn');
console.log('agent: the tree of this run is');
for (const [depth, pid] of [process.ppid, process.pid, tool.pid].entries()) {
  console.log(`${'   '.repeat(depth + 1)}${pid} ${nameOf(pid)}`);
}
tool.stdin.end('\n');
await once(tool, 'exit');
console.log(`agent: done, grant ${process.env.CUSTODY_GRANT}`);

function nameOf(pid) {
  if (process.platform !== 'linux')
    return execFileSync('ps', ['-o', 'comm=', '-p', String(pid)], { encoding: 'utf8' }).trim();
  return readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
}
