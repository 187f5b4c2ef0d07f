// Tests the control plane's receipt for a host's ledger.
import { expect, test } from 'vitest';
import { signJws } from '@custody/crypto/jws';
import { signLedgerReceipt, verifyLedgerReceipt } from '../src/receipts.ts';
import { verifyChain } from '../src/verify.ts';
import { at, grow, host, key, stranger } from './support.ts';

const seed = new Uint8Array(32).fill(1);
const chain = grow(undefined, 3);
const receipt = { host, ...at(chain.heads, 2), at: '2026-11-21T09:30:00.000Z' };

test('comes back as it was signed, and is a head that the chain must pass through', async () => {
  const read = await verifyLedgerReceipt(key.publicKey, await signLedgerReceipt(seed, receipt));
  expect(read).toEqual(receipt);
  const { epoch, seq, hash } = read;
  const verdict = await verifyChain(chain.lines.slice(0, 2), {
    host,
    publicKey: key.publicKey,
    expect: { epoch, seq, hash },
  });
  expect(verdict).toMatchObject({ ok: false, problem: 'truncated', seq: 3 });
});

test('is refused under another key, changed, of another typ, or with claims out of range', async () => {
  const token = await signLedgerReceipt(seed, receipt);
  await expect(verifyLedgerReceipt(stranger.publicKey, token)).rejects.toMatchObject({ code: 'bad_receipt' });
  await expect(verifyLedgerReceipt(key.publicKey, token.slice(0, -1))).rejects.toMatchObject({
    code: 'bad_receipt',
  });
  const claims = { v: 1, ...receipt };
  const otherTyp = await signJws(seed, 'custody-grant', claims);
  await expect(verifyLedgerReceipt(key.publicKey, otherTyp)).rejects.toMatchObject({ code: 'bad_receipt' });
  for (const change of [{ v: 2 }, { seq: 0 }, { hash: 'x' }, { host: '' }, { epoch: '1' }, { at: 'now' }]) {
    const wrong = await signJws(seed, 'custody-ledger-receipt', { ...claims, ...change });
    await expect(verifyLedgerReceipt(key.publicKey, wrong)).rejects.toMatchObject({ code: 'bad_receipt' });
  }
});

test('ignores claims that it does not know', async () => {
  const token = await signJws(seed, 'custody-ledger-receipt', { v: 1, ...receipt, later: true });
  expect(await verifyLedgerReceipt(key.publicKey, token)).toEqual(receipt);
});

test('is not signed when out of range', async () => {
  await expect(signLedgerReceipt(seed, { ...receipt, seq: 0 })).rejects.toMatchObject({
    code: 'bad_argument',
  });
});
