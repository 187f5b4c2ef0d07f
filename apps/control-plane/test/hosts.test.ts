// Owns the proof of enrolment: proof, unknown, expired, used, in that order; one token, one host; and never a name twice.
import { joinTokenTtlMsDefault } from '@custody/core/limits';
import { newToken } from '@custody/crypto/tokens';
import { withDatabase } from '@custody/testkit/database';
import { beforeAll, describe, expect, it } from 'vitest';
import { enrol, enrolmentBody, ownEntries, sceneOf, type Scene } from './support.ts';

const t = withDatabase();
let s: Scene;
beforeAll(async () => {
  s = await sceneOf(t.database);
});

const tokenOf = async (asked: Parameters<Scene['hosts']['createToken']>[1] = {}): Promise<string> =>
  (await s.hosts.createToken('operator', asked)).token;

describe('enrolment', () => {
  it('records the host, uses the token, and gives what the host needs and nothing secret', async () => {
    const { body } = enrolmentBody(await tokenOf({ labels: { env: 'prod' } }), 'host-a');
    const answer = await s.hosts.enroll(body);
    expect(answer).toMatchObject({
      name: 'host-a',
      controlPlaneKey: s.authority.publicKey,
      busServers: ['nats://127.0.0.1:4222'],
    });
    expect(answer.busJwt.split('.')).toHaveLength(3);
    expect(await s.hosts.get('host-a')).toMatchObject({
      hostId: answer.hostId,
      labels: { env: 'prod' },
      signingKey: body.signingKey,
    });
    expect((await ownEntries(s)).at(-1)).toMatchObject({
      kind: 'host_enrolled',
      body: { hostId: answer.hostId, name: 'host-a' },
    });
    expect(JSON.stringify(await ownEntries(s)) + s.log()).not.toContain(body.token);
  });

  it('a token that names a host enrols that name only', async () => {
    const { body } = enrolmentBody(await tokenOf({ name: 'host-named' }), 'host-other');
    expect((await s.hosts.enroll(body)).name).toBe('host-named');
  });

  it('without any name is refused, and the token can still be used', async () => {
    const token = await tokenOf();
    await expect(s.hosts.enroll(enrolmentBody(token, undefined).body)).rejects.toMatchObject({
      code: 'bad_request',
    });
    expect((await s.hosts.enroll(enrolmentBody(token, 'host-late').body)).name).toBe('host-late');
  });

  it('of a name that is taken is refused, and the token can still be used', async () => {
    await enrol(s, 'host-taken');
    const token = await tokenOf();
    await expect(s.hosts.enroll(enrolmentBody(token, 'host-taken').body)).rejects.toMatchObject({
      code: 'conflict',
    });
    expect((await s.hosts.enroll(enrolmentBody(token, 'host-free').body)).name).toBe('host-free');
  });
});

describe('the order of refusals', () => {
  it('a proof that does not verify comes first, whatever the token', async () => {
    const { body } = enrolmentBody(newToken('cjt'), 'host-x');
    const other = enrolmentBody(body.token, 'host-x').body;
    for (const broken of [
      { ...body, proof: other.proof },
      { ...body, signingKey: other.signingKey },
      { ...body, sealingKey: other.sealingKey },
      { ...body, busUserKey: other.busUserKey },
      { ...body, token: newToken('cjt') },
      { ...body, proof: body.proof.slice(1) },
      { ...body, sealingKey: 'AAAA' },
    ]) {
      await expect(s.hosts.enroll(broken)).rejects.toMatchObject({ code: 'bad_request' });
    }
  });

  it('then a token that is not known, or none', async () => {
    for (const token of [newToken('cjt'), newToken('cst'), 'cjt_short', '']) {
      await expect(s.hosts.enroll(enrolmentBody(token, 'host-x').body)).rejects.toMatchObject({
        code: 'join_token_unknown',
      });
    }
  });

  it('then one that has expired, to the millisecond', async () => {
    const token = await tokenOf();
    const made = s.time;
    s.time = new Date(made.getTime() + joinTokenTtlMsDefault);
    await expect(s.hosts.enroll(enrolmentBody(token, 'host-old').body)).rejects.toMatchObject({
      code: 'join_token_expired',
    });
    s.time = new Date(made.getTime() + joinTokenTtlMsDefault - 1);
    expect((await s.hosts.enroll(enrolmentBody(token, 'host-old').body)).name).toBe('host-old');
    s.time = made;
  });

  it('then one that was used', async () => {
    const token = await tokenOf();
    await s.hosts.enroll(enrolmentBody(token, 'host-first').body);
    await expect(s.hosts.enroll(enrolmentBody(token, 'host-second').body)).rejects.toMatchObject({
      code: 'join_token_used',
    });
    await expect(s.hosts.get('host-second')).rejects.toMatchObject({ code: 'not_found' });
  });
});

it('of many hosts with one token exactly one is enrolled', async () => {
  const token = await tokenOf();
  const before = (await s.hosts.list()).length;
  const results = await Promise.allSettled(
    Array.from({ length: 8 }, (_, index) => s.hosts.enroll(enrolmentBody(token, `host-race-${index}`).body)),
  );
  expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
  for (const result of results) {
    if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'join_token_used' });
  }
  expect(await s.hosts.list()).toHaveLength(before + 1);
  const enrolled = (await ownEntries(s)).filter(
    ({ kind, body }) => kind === 'host_enrolled' && JSON.stringify(body['name']).startsWith('"host-race-'),
  );
  expect(enrolled).toHaveLength(1);
});
