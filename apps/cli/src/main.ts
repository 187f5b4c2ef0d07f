// Owns the process of the terminal: refuses an older Node in one line, then runs one command.
const majorMin = 26;
if (Number(process.versions.node.split('.')[0]) < majorMin) {
  process.stderr.write(
    `custody: Node ${majorMin} or newer is needed, this is ${process.versions.node}; npm run setup brings it\n`,
  );
  process.exit(1);
}
const { runCli } = await import('./program.ts');
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // `custody … | head` closes early: that is no failure.
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});
process.exitCode = await runCli(process.argv.slice(2), {
  environment: process.env,
  stdout: process.stdout,
  stderr: process.stderr,
  stdin: process.stdin,
  now: () => new Date(),
});
