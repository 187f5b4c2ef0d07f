// Owns the statement that a host signs when it enrols: that it holds the keys it names.

export interface EnrolmentStatement {
  readonly token: string;
  readonly signingKey: string;
  readonly sealingKey: string;
  readonly busUserKey: string;
}

/** The exact bytes: docs/spec/enrolment.md. */
export function enrolmentStatement(said: EnrolmentStatement): Uint8Array {
  return new TextEncoder().encode(
    `custody-enrol-v1\n${said.token}\n${said.signingKey}\n${said.sealingKey}\n${said.busUserKey}\n`,
  );
}
