// Owns the names of every environment variable of Custody: any other CUSTODY_* is a typing error, and fatal.

/** What a shell, the terminal, a run and an agent know. */
export const shellVariables: readonly string[] = [
  'CUSTODY_API',
  'CUSTODY_TOKEN',
  'CUSTODY_SOCKET',
  'CUSTODY_GRANT',
  'CUSTODY_DATA',
  'CUSTODY_LOG',
  'CUSTODY_JOIN_TOKEN',
  'CUSTODY_CONTAINMENT',
  'CUSTODY_CANARY',
];

/** What the control plane is configured by. */
export const controlPlaneVariables: readonly string[] = [
  'CUSTODY_KEYS_DIR',
  'CUSTODY_DATABASE_URL_FILE',
  'CUSTODY_DATABASE_POOL',
  'CUSTODY_BUS_SERVERS',
  'CUSTODY_BUS_SERVERS_FOR_HOSTS',
  'CUSTODY_LISTEN',
  'CUSTODY_CANARY_INTERVAL',
];

/** The first CUSTODY_* name in an environment that no program of Custody knows. A shell may hold both kinds. */
export function unknownVariable(
  environment: Readonly<Record<string, string | undefined>>,
): string | undefined {
  return Object.keys(environment).find(
    (key) =>
      key.startsWith('CUSTODY_') && !shellVariables.includes(key) && !controlPlaneVariables.includes(key),
  );
}
