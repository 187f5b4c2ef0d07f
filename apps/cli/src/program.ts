// Owns the tree of commands and what every one of them does with a mistake.
import { Command, CommanderError } from 'commander';
import { CustodyError, exitCodeOf } from '@custody/core/errors';
import { completionCommand } from './completion.ts';
import type { Context } from './context.ts';
import { eventsCommand } from './events.ts';
import { grantCommands } from './grant.ts';
import { agentCommands, hostCommands } from './host.ts';
import { ledgerCommands } from './ledger.ts';
import { policyCommands } from './policy.ts';
import { revokeCommands } from './revoke.ts';
import { secretCommands } from './secret.ts';
import { upCommands } from './up.ts';

const version = '0.1.0';

export function createProgram(context: Context): Command {
  const program = new Command('custody')
    .description(
      'Credentials for exactly one process tree, for exactly as long as policy says, with a record.',
    )
    .version(version, '--version', 'print the version')
    .helpOption('-h, --help', 'show help')
    .showSuggestionAfterError(true)
    // `secret get --version 1` is for the command: the program's own flags stand before its name.
    .enablePositionalOptions()
    .configureOutput({
      writeOut: (text) => context.stdout.write(text),
      // One clear line; `run` adds what to do next.
      writeErr: (text) =>
        context.stderr.write(text.replace(/^error: /, 'custody: ').replace(/\n\((?=Did)/, ' (')),
    });
  upCommands(program, context);
  secretCommands(program, context);
  policyCommands(program, context);
  hostCommands(program, context);
  agentCommands(program, context);
  // Served by the keeper, before Node is ever started: this row is for the help.
  program
    .command('run')
    .description(
      'run a command that holds credentials: custody run --env KEY=custody://prod/stripe/api_key -- cmd',
    )
    .helpOption(false);
  grantCommands(program, context);
  revokeCommands(program, context);
  eventsCommand(program, context);
  ledgerCommands(program, context);
  completionCommand(program, context);
  strict(program);
  return program;
}

/** Commander's own exits become errors, everywhere. */
function strict(command: Command): void {
  command.exitOverride();
  if (command.parent !== null) command.copyInheritedSettings(command.parent);
  for (const each of command.commands) strict(each);
}

/** Runs one command line. Returns the exit code; errors become one line on stderr. */
export async function runCli(argv: readonly string[], context: Context): Promise<number> {
  try {
    await createProgram(context).parseAsync([...argv], { from: 'user' });
    return Number(process.exitCode ?? 0);
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    if (!(error instanceof CustodyError)) {
      context.stderr.write(`custody: ${error instanceof Error ? error.message : 'failed'}\n`);
      return 1;
    }
    const next = error.next === undefined ? '' : `; ${error.next}`;
    context.stderr.write(`custody: ${error.publicMessage}${next}\n`);
    // 125 belongs to `custody run`.
    const code = exitCodeOf(error.code);
    return code === 125 ? 1 : code;
  }
}
