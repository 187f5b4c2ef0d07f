// Owns the faults that are planted in the agent's own code as it is loaded: each one a place where its author might have erred.
import { registerHooks } from 'node:module';

interface Edit {
  readonly file: string;
  /** Must stand in the file exactly once. */
  readonly from: string;
  readonly to: string;
}

const link = 'apps/agent/src/link.ts';
const runs = 'apps/agent/src/runs.ts';
const freshness = 'libs/core/src/freshness.ts';

/** An agent that starts believes the cursor it finds. */
const trustCursor: Edit = {
  file: link,
  from: 'epoch: Math.min(kept.epoch, this.#options.openSince())',
  to: 'epoch: kept.epoch',
};

export const plants = {
  'a gap is ignored': [
    {
      file: link,
      from: "if (what === 'gap' || !isOfLog(cursor, claims)) {",
      to: 'if (!isOfLog(cursor, claims)) {',
    },
  ],
  'the cursor is written before what it stands for is applied': [
    trustCursor,
    {
      file: link,
      from: 'this.#options.onRevocation(claims, heardBootMs, heardAt);',
      to:
        'await this.#moveCursor({ ...cursor, epoch: claims.epoch }); ' +
        'this.#options.onRevocation(claims, heardBootMs, heardAt);',
    },
  ],
  'a kill that a dying agent left undone is not taken up': [trustCursor],
  'freshness is not enforced': [
    {
      file: freshness,
      from: "return freshness.kind === 'strict' ? provenBootMs + freshness.ms : Infinity;",
      to: 'return Infinity;',
    },
  ],
  'a beacon counts from when it was heard': [
    {
      file: freshness,
      from: 'provenBootMs: Math.min(madeBootMs, heardBootMs)',
      to: 'provenBootMs: heardBootMs',
    },
  ],
  'a beacon counts for a host that is behind': [
    { file: freshness, from: "if (beacon.epoch > cursor) return verdict('behind');", to: '' },
  ],
  'a grant under way is not held against revocations': [
    {
      file: runs,
      from: 'run.revoked = { claims, heardBootMs, heardAt };',
      to: 'if (run.keeper === undefined) continue; run.revoked = { claims, heardBootMs, heardAt };',
    },
  ],
} as const satisfies Readonly<Record<string, readonly Edit[]>>;

export type PlantName = keyof typeof plants;

/** Modules loaded after this call carry the fault. Throws when its place is not found. */
export function plant(name: PlantName): void {
  const edits: readonly Edit[] = plants[name];
  registerHooks({
    load(url, context, next) {
      const loaded = next(url, context);
      const here = edits.filter(({ file }) => url.endsWith(file));
      if (here.length === 0) return loaded;
      return { ...loaded, source: here.reduce(edited, textOf(loaded.source)) };
    },
  });
}

function edited(source: string, { file, from, to }: Edit): string {
  if (source.split(from).length !== 2) throw new Error(`${file} does not hold ${JSON.stringify(from)} once`);
  return source.replace(from, to);
}

function textOf(source: string | ArrayBuffer | NodeJS.TypedArray | null | undefined): string {
  if (typeof source === 'string') return source;
  if (source === null || source === undefined) throw new Error('a module without a source');
  return new TextDecoder().decode(source);
}
