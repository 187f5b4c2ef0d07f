// What a command and its caller can rely on is what they would have without us: signals, terminals, exits, limits.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { text } from '../src/frames.ts';
import { underTest } from './builds.ts';
import { alive, FakeAgent, Keeper, started, until, type Link } from './fake-agent.ts';
import { Terminal } from './pty.ts';

const { keeper, containment } = underTest.build;
/** macOS has no real-time signals, and no sigqueue(3). */
const realTime = containment !== 'kqueue';
const { signals } = constants;
/** Tells every signal that it gets; with a number, ends by that one. */
const counter = join(import.meta.dirname, '..', 'build', 'signal-count');

/** An agent that grants whatever is asked, and keeps the links in order. */
let agent: FakeAgent;
const links: Link[] = [];
beforeAll(async () => {
  agent = await FakeAgent.start();
  writeFileSync(join(agent.folder, 'inputrc'), 'set enable-bracketed-paste off\n');
  let grants = 0;
  const answering = (async () => {
    for (;;) {
      const link = await agent.link();
      links.push(link);
      const grant = `invisible-${process.pid}-${++grants}`;
      void link.expect('request').then(
        () => link.grant({ grant, graceMs: 2_000 }),
        () => {},
      );
    }
  })();
  answering.catch(() => {});
});
afterAll(() => agent[Symbol.asyncDispose]());

const base = () => ({
  PATH: process.env['PATH'],
  CUSTODY_SOCKET: agent.path,
  TERM: 'xterm',
  PS1: 'ready> ',
  INPUTRC: join(agent.folder, 'inputrc'),
  HOME: '/nonexistent',
});
const under = (command: readonly string[]) => [keeper, 'run', '--', ...command];
const custody = `${keeper} run --`;

interface Outcome {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Not spawnSync: the agent answers from this process. */
function outcome(command: string, args: readonly string[]): Promise<Outcome> {
  const child = spawn(command, args, { env: base(), stdio: ['ignore', 'pipe', 'pipe'] });
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString('latin1')));
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString('latin1')));
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}

/** Runs without and with the keeper, with everything else the same. */
async function both(script: string, ...command: string[]) {
  const run = (words: readonly string[]) => outcome('sh', ['-c', `${script}\nexec "$@"`, 'sh', ...words]);
  return { bare: await run(command), ours: await run(under(command)) };
}

describe('what is inherited', () => {
  it.each([
    ['limits', 'ulimit -c 0 -n 77 -s 4096', ['cat', '/proc/self/limits']],
    ['the file mode mask', 'umask 0137', ['sh', '-c', 'umask']],
    ['the working directory', 'cd /usr/share', ['pwd']],
    ['users and groups', ':', ['id']],
    ['niceness', 'exec nice -n 7 "$@"', ['nice']],
    ['the OOM score', 'echo 321 > /proc/self/oom_score_adj', ['cat', '/proc/self/oom_score_adj']],
    [
      'scheduling, capabilities, seccomp',
      ':',
      ['grep', '-E', '^(Cap|NoNewPrivs|Seccomp|Cpus_allowed|Mems_allowed|Umask|Groups)', '/proc/self/status'],
    ],
    [
      'signal dispositions and mask',
      'trap "" USR1 PIPE HUP TSTP CHLD',
      ['grep', '^Sig[BIC]', '/proc/self/status'],
    ],
    [
      'descriptors passed on purpose',
      'exec 7</dev/null 9>/dev/null',
      ['sh', '-c', 'for each in /proc/$$/fd/?; do echo "${each##*/}"; done'],
    ],
    [
      'the session and the process group',
      ':',
      [
        'sh',
        '-c',
        'read -r stat < /proc/$$/stat; set -- $stat; [ "$5" != "$1" ] || [ "$5" = "$1" ] && [ "$6" != "$1" ] && echo "$7"',
      ],
    ],
  ] as [string, string, string[]][])('%s', async (_what, script, command) => {
    const { bare, ours } = await both(script, ...command);
    expect(bare.code).toBe(0);
    expect(ours).toEqual(bare);
  });
});

describe('how a command ends is how its caller sees it end', () => {
  const ending = Array.from({ length: 64 }, (_, index) => index + 1).filter(
    (signal) =>
      ![
        signals.SIGSTOP,
        signals.SIGTSTP,
        signals.SIGTTIN,
        signals.SIGTTOU,
        signals.SIGCONT,
        signals.SIGCHLD,
        signals.SIGURG,
        signals.SIGWINCH,
      ].includes(signal) && ![32, 33].includes(signal),
  );
  it.each(ending)('signal %i', async (signal) => {
    const { bare, ours } = await both('ulimit -c 0', counter, String(signal));
    expect(ours).toEqual(bare);
    const told = await outcome('bash', [
      '-c',
      'ulimit -c 0; "$@"; echo "$?"',
      'bash',
      ...under([counter, String(signal)]),
    ]);
    expect(told.stdout).toBe(`${128 + signal}\n`);
  });

  it('a script whose command was interrupted stops, as it does without us', async () => {
    await using terminal = new Terminal(
      [
        'bash',
        '-c',
        `for i in 1 2; do ${custody} sh -c 'echo round; exec sleep 300'; done; echo not-reached`,
      ],
      base(),
    );
    await terminal.shows(/round/);
    await until(() => links.length > 0, 'it runs');
    terminal.type('\x03');
    expect(await terminal.ended).toBe(`signal ${signals.SIGINT}`);
    expect(terminal.shown).not.toContain('not-reached');
  });
});

describe('signals sent to the keeper reach the root once', () => {
  // SIGKILL and SIGSTOP nobody can pass on.
  const passed = Array.from({ length: 64 }, (_, index) => index + 1).filter(
    (signal) => ![signals.SIGKILL, signals.SIGSTOP].includes(signal) && (realTime || signal < 32),
  );
  it.each(passed)('signal %i', async (signal) => {
    await using run = Keeper.run({ keeper, agent, command: [counter] });
    await run.says(/ready\n/);
    process.kill(run.pid, signal);
    await run.says(new RegExp(`^${signal} `, 'm'));
    process.kill(run.pid, signal === signals.SIGTERM ? signals.SIGINT : signals.SIGTERM);
    await run.says(new RegExp(`^${signal === signals.SIGTERM ? signals.SIGINT : signals.SIGTERM} `, 'm'));
    expect(run.stdout.split('\n').filter((line) => line.startsWith(`${signal} `))).toHaveLength(1);
  });

  it.runIf(realTime)('a real-time signal keeps its value and its order', async () => {
    await using run = Keeper.run({ keeper, agent, command: [counter] });
    await run.says(/ready\n/);
    for (const value of [11, 12, 13]) spawnSync('kill', ['-s', '40', '-q', String(value), String(run.pid)]);
    await run.says(/40 13\n/);
    expect(run.stdout).toContain('40 11\n40 12\n40 13\n');
  });

  it('what the tree sends its whole group it gets once', async () => {
    const script = 'trap "echo got" USR1; echo up; kill -USR1 0; sleep 0.05; sleep 0.05; echo end';
    const run = await outcome('setsid', ['-w', ...under(['sh', '-c', script])]);
    expect(run.stdout).toBe('up\ngot\nend\n');
  });

  it('a reader that goes ends a writer by SIGPIPE, under us as without', async () => {
    const piped = (command: string) =>
      outcome('bash', ['-c', `${command} | head -1; echo "\${PIPESTATUS[0]}"`]);
    expect((await piped('yes')).stdout).toBe('y\n141\n');
    expect((await piped(`${custody} yes`)).stdout).toBe('y\n141\n');
  });
});

describe('on a terminal', () => {
  const shell = () => new Terminal(['bash', '--norc', '--noprofile', '-i'], base());

  it('an interactive shell has job control, and its caller has the terminal again', async () => {
    await using terminal = shell();
    terminal.type(`${custody} bash --norc --noprofile -i\r`);
    await terminal.shows(/ready> [^]*ready> $/);
    terminal.type('set -o | grep monitor; echo level $SHLVL\r');
    await terminal.shows(/monitor\s+on\r\nlevel 2/);
    const job = `bash -c 'trap "echo goes on" CONT; echo running; while :; do sleep 0.02; done'`;
    terminal.type(`${job}\r`);
    await terminal.shows(/\nrunning/);
    terminal.type('\x1a');
    await terminal.shows(/Stopped/);
    terminal.type('jobs -l; fg\r');
    await terminal.shows(/Stopped[^]*\ngoes on/);
    terminal.type('\x03');
    terminal.type('echo interrupted $?\r');
    await terminal.shows(/\ninterrupted 130/);
    terminal.type('exit 3\r');
    terminal.type('echo outer $? level $SHLVL\r');
    await terminal.shows(/\nouter 3 level 1/);
    expect(terminal.shown).not.toMatch(/no job control|cannot set terminal/);
  });

  it('a terminal left to a shell that was killed comes back, with its settings', async () => {
    const script = `${custody} bash --norc --noprofile -i; echo code $?; read -r line; echo "read $line"; stty -a`;
    const count = links.length;
    await using terminal = new Terminal(['sh', '-c', script], base());
    await terminal.shows(/ready> $/);
    terminal.type('stty -icanon -isig min 7; echo set\r');
    await terminal.shows(/\nset/);
    links[count]?.send('end', [
      ['cause', 'revoked'],
      ['grace_ms', 0],
    ]);
    await terminal.shows(/code 123/);
    terminal.type('again\r');
    await terminal.shows(/read again/);
    await terminal.shows(/\nisig icanon/);
    expect(await terminal.ended).toBe('exit 0');
  });

  it('Ctrl-C reaches the command once', async () => {
    const script =
      // A trap that comes between bash's look and its read(2) waits for input, unless the read has an end.
      'trap "echo interrupt" INT; echo up; while read -t 0.1 -r line || [ $? -gt 128 ]; do echo "line $line"; done; echo end';
    await using terminal = new Terminal(under(['bash', '-c', script]), base());
    await terminal.shows(/up/);
    terminal.type('\x03');
    await terminal.shows(/interrupt/);
    terminal.type('one\r');
    await terminal.shows(/line one/);
    terminal.type('\x04');
    await terminal.shows(/end/);
    expect(terminal.shown.match(/interrupt/g)).toHaveLength(1);
    expect(await terminal.ended).toBe('exit 0');
  });

  it('a new size reaches the command once', async () => {
    const count = links.length;
    await using terminal = new Terminal(under([counter]), base());
    await terminal.shows(/ready/);
    terminal.resize(33, 99);
    await terminal.shows(/28 0/);
    terminal.type('\x03');
    await terminal.shows(/2 0/);
    expect(terminal.shown.match(/28 0/g)).toHaveLength(1);
    links[count]?.send('end', [
      ['cause', 'revoked'],
      ['grace_ms', 0],
    ]);
    expect(await terminal.ended).toBe('exit 123');
  });

  // The shell hands the terminal over and then continues the job: what is typed before that is the shell's.
  const job = `bash -c 'trap "echo continued" CONT; echo up; read -r line; echo "got $line"'`;
  // A bash that was stopped just before it reads runs its trap only when a line has come: this one reads for a moment,
  // again and again.
  const stopped = job.replace('read -r line;', 'while read -r -t 0.1 line; [ $? -gt 128 ]; do :; done;');

  it('Ctrl-Z stops the job, fg goes on with it, in the foreground', async () => {
    await using terminal = shell();
    terminal.type(`${custody} ${stopped}; echo code $?\r`);
    await terminal.shows(/\nup/);
    terminal.type('\x1a');
    await terminal.shows(/Stopped/);
    terminal.type('echo between; fg\r');
    await terminal.shows(/\nbetween[^]*\ncontinued/);
    terminal.type('word\r');
    await terminal.shows(/\ngot word/);
  });

  it('a command that stops its whole group, as vim does, goes on once', async () => {
    await using terminal = shell();
    const stopping = job.replace('echo up;', 'echo up; kill -TSTP 0;');
    terminal.type(`${custody} ${stopping}\r`);
    await terminal.shows(/\nup/);
    await terminal.shows(/Stopped/);
    terminal.type('fg\r');
    await terminal.shows(/\ncontinued/);
    terminal.type('word\r');
    await terminal.shows(/\ngot word/);
    expect(terminal.shown.match(/\ncontinued/g)).toHaveLength(1);
  });

  it('a shell that suspends itself comes back to its own job control', async () => {
    await using terminal = shell();
    terminal.type(`PS1='inner> ' ${custody} bash --norc --noprofile -i\r`);
    await terminal.shows(/inner> $/);
    terminal.type('suspend\r');
    await terminal.shows(/Stopped/);
    terminal.type('fg\r');
    await terminal.shows(/fg\r\n[^]*bash/);
    terminal.type('echo "inner again"\r');
    await terminal.shows(/\ninner again/);
    terminal.type('sh -c "echo running; exec sleep 300"\r');
    await terminal.shows(/\nrunning/);
    terminal.type('\x03');
    terminal.type('exit 4\r');
    terminal.type('echo outer $?\r');
    await terminal.shows(/\nouter 4/);
  });

  it('in the background it is stopped when it reads, and reads in the foreground', async () => {
    await using terminal = shell();
    terminal.type(`${custody} ${job} &\r`);
    await terminal.shows(/\n\[1\] \d+[^]*up\r/);
    terminal.type('wait; jobs\r');
    await terminal.shows(/Stopped/);
    terminal.type('fg\r');
    await terminal.shows(/\ncontinued/);
    terminal.type('word\r');
    await terminal.shows(/\ngot word/);
  });

  it('in a pipeline both halves have the terminal', async () => {
    await using terminal = shell();
    const page = `sh -c 'cat; read -r line </dev/tty; echo "page $line"'`;
    terminal.type(`${custody} sh -c 'echo up; read -r line </dev/tty; echo "data $line"' | ${page}\r`);
    await terminal.shows(/\nup/);
    terminal.type('one\r');
    await terminal.shows(/\ndata one/);
    terminal.type('two\r');
    await terminal.shows(/\npage two/);
  });

  it('a password prompt turns the echo off and on', async () => {
    await using terminal = new Terminal(
      under(['bash', '-c', 'read -r -s -p "password: " word; echo; echo "$((${#word}))"; stty -a']),
      base(),
    );
    await terminal.shows(/password: /);
    terminal.type('hunter2\r');
    await terminal.shows(/\n7\r/);
    await terminal.shows(/ echo /);
    expect(terminal.shown).not.toContain('hunter2');
  });

  it.runIf(existsSync('/usr/bin/less'))('less pages, and puts the terminal right', async () => {
    await using terminal = shell();
    terminal.type(`seq 500 | ${custody} less; stty -a | grep -o ' icanon'\r`);
    await terminal.shows(/\n?20\r?\n/);
    terminal.type('G');
    await terminal.shows(/500/);
    terminal.type('q');
    await terminal.shows(/ icanon\r/);
  });

  it.runIf(existsSync('/usr/bin/vim'))('vim edits', async () => {
    const file = join(agent.folder, 'edited');
    await using terminal = shell();
    terminal.type(`${custody} vim -u NONE -i NONE -n ${file}\r`);
    await terminal.shows(/~/);
    terminal.type('ihello\x1b:wq\r');
    await terminal.shows(/written[^]*ready> $/); // it throws away what is typed ahead
    terminal.type('echo left $?\r');
    await terminal.shows(/\nleft 0/);
    expect(readFileSync(file, 'utf8')).toBe('hello\n');
  });

  it('as leader of its session it ends with the terminal', async () => {
    const count = links.length;
    const terminal = new Terminal(under(['sh', '-c', 'echo up; exec sleep 300']), base());
    await terminal.shows(/up/);
    const link = links[count];
    if (link === undefined) throw new Error('no link');
    const root = await started(link);
    terminal.hangUp();
    expect(text(await link.expect('ended'), 'root_status')).toBe(`signal:${signals.SIGHUP}`);
    expect(alive(root.pid)).toBe(false);
    expect(await terminal.ended).toBe(`signal ${signals.SIGHUP}`);
  });

  it('under nohup it outlives the terminal, survivors too', async () => {
    const done = join(agent.folder, 'done');
    const script = `nohup ${custody} sh -c 'echo running >&2; sleep 0.3; echo done > ${done}' 2>&1 | cat`;
    const terminal = new Terminal(['bash', '-c', `trap "" HUP; ${script}`], base());
    await terminal.shows(/running/); // not `up`: nohup says its own name
    terminal.hangUp();
    await until(() => existsSync(done), 'it goes on');
    await terminal.ended;
  });

  it('without any terminal, and with its three standard descriptors closed, it runs', async () => {
    const proof = join(agent.folder, 'closed');
    const child = spawn(
      'setsid',
      ['sh', '-c', `exec <&- >&- 2>&-; exec ${custody} sh -c 'echo ran > ${proof}'`],
      { env: base(), stdio: 'ignore' },
    );
    await new Promise((resolve) => child.once('exit', resolve));
    await until(() => existsSync(proof) && readFileSync(proof, 'utf8') === 'ran\n', 'it runs');
  });
});
