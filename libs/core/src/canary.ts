// Owns the name of the canary: the credential of the run on which each host proves that it can kill.
import { CustodyError } from './errors.ts';

/** What no operator stores and no policy permits: the control plane makes up its value, a host's agent alone asks for it. */
export const reservedFolder = 'custody';
export const canaryPath = 'custody/canary';
export const canaryField = 'value';

/** What the control plane and each agent answer to whoever names it. */
export function reservedDenial(path: string): CustodyError {
  return new CustodyError('denied_by_policy', `${path} is what hosts prove their kill with`, {
    next: 'no policy can permit it; ask for a secret of your own',
  });
}

export function isReserved(path: string): boolean {
  return path === reservedFolder || path.startsWith(`${reservedFolder}/`);
}

/** Whether these are the credentials of a canary: that one, and nothing else. */
export function isCanary(credentials: readonly { readonly path: string }[]): boolean {
  return credentials.length === 1 && credentials[0]?.path === canaryPath;
}
