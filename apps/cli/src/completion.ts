// Owns `custody completion SHELL`: scripts made from the commands themselves, so that they cannot lag behind.
import type { Command } from 'commander';
import { CustodyError } from '@custody/core/errors';
import { quote } from '@custody/core/names';
import type { Context } from './context.ts';

interface Entry {
  readonly path: string;
  readonly words: readonly string[];
}

export function completionCommand(program: Command, context: Context): void {
  program
    .command('completion')
    .description('print a completion script: eval "$(custody completion bash)"')
    .argument('<shell>', 'bash or zsh')
    .action((shell: string) => {
      if (shell !== 'bash' && shell !== 'zsh')
        throw new CustodyError('bad_request', `${quote(shell)} is neither bash nor zsh`);
      context.stdout.write(script(shell, entriesOf(program, [])));
    });
}

function entriesOf(command: Command, path: readonly string[]): Entry[] {
  const words = [
    ...command.commands.map((each) => each.name()),
    ...command.options.flatMap((option) => option.long ?? []),
  ];
  return [
    { path: path.join(' '), words },
    ...command.commands.flatMap((each) => entriesOf(each, [...path, each.name()])),
  ];
}

function script(shell: 'bash' | 'zsh', entries: readonly Entry[]): string {
  const cases = entries.map(({ path, words }) => `    '${path}') words='${words.join(' ')}' ;;`).join('\n');
  const body = `_custody() {
  local path='' word words=''
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case $word in -*) ;; *) path="\${path:+$path }$word" ;; esac
  done
  while :; do
    case $path in
${cases}
    esac
    [ -n "$words" ] || [ -z "$path" ] && break
    case $path in *' '*) path=\${path% *} ;; *) path='' ;; esac
  done
  COMPREPLY=($(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _custody custody
`;
  return shell === 'bash' ? body : `autoload -U +X bashcompinit && bashcompinit\n${body}`;
}
