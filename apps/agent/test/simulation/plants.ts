// Owns the faults that are planted in the agent's own code as it is loaded: each one a place where its author might have erred.
import { registerHooks } from 'node:module';

interface Plant {
  readonly file: string;
  /** Must stand in the file exactly once. */
  readonly from: string;
  readonly to: string;
}

export const plants = {
  'a gap is ignored': {
    file: 'apps/agent/src/link.ts',
    from: "if (what === 'gap' || !isOfLog(cursor, claims)) {",
    to: 'if (!isOfLog(cursor, claims)) {',
  },
  'the cursor is written before what it stands for is applied': {
    file: 'apps/agent/src/link.ts',
    from: 'this.#options.onRevocation(claims, heardBootMs, heardAt);',
    to: 'await this.#moveCursor({ ...cursor, epoch: claims.epoch }); this.#options.onRevocation(claims, heardBootMs, heardAt);',
  },
  'freshness is not enforced': {
    file: 'libs/core/src/freshness.ts',
    from: "return freshness.kind === 'strict' ? provenBootMs + freshness.ms : Infinity;",
    to: 'return Infinity;',
  },
  'a beacon counts from when it was heard': {
    file: 'libs/core/src/freshness.ts',
    from: 'provenBootMs: Math.min(madeBootMs, heardBootMs)',
    to: 'provenBootMs: heardBootMs',
  },
  'a beacon counts for a host that is behind': {
    file: 'libs/core/src/freshness.ts',
    from: "if (beacon.epoch > cursor) return verdict('behind');",
    to: '',
  },
  'a grant under way is not held against revocations': {
    file: 'apps/agent/src/runs.ts',
    from: 'if (run.revoked !== undefined || !hits(claims.target, run)) continue;',
    to: 'if (run.revoked !== undefined || run.keeper === undefined || !hits(claims.target, run)) continue;',
  },
} as const satisfies Readonly<Record<string, Plant>>;

export type PlantName = keyof typeof plants;

/** Modules loaded after this call carry the fault. Throws when its place is not found. */
export function plant(name: PlantName): void {
  const { file, from, to }: Plant = plants[name];
  registerHooks({
    load(url, context, next) {
      const loaded = next(url, context);
      if (!url.endsWith(file)) return loaded;
      const source = textOf(loaded.source);
      if (source.split(from).length !== 2)
        throw new Error(`${file} does not hold ${JSON.stringify(from)} once`);
      return { ...loaded, source: source.replace(from, to) };
    },
  });
}

function textOf(source: string | ArrayBuffer | NodeJS.TypedArray | null | undefined): string {
  if (typeof source === 'string') return source;
  if (source === null || source === undefined) throw new Error('a module without a source');
  return new TextDecoder().decode(source);
}
