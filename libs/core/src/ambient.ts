// Owns the names of variables that a run may leave out: those that look like credentials, and the few that a clean one keeps.

/** With `--clean`, what goes on without being asked for: where things are, who one is, which language. */
export const keptNames: readonly string[] = [
  ...['PATH', 'HOME', 'USER', 'LOGNAME', 'SHELL', 'PWD', 'TMPDIR', 'XDG_RUNTIME_DIR'],
  ...['TERM', 'COLORTERM', 'COLUMNS', 'LINES', 'LANG', 'LANGUAGE', 'LC_*', 'TZ'],
  // A run inside the run must find the agent.
  ...['CUSTODY_SOCKET'],
];

/**
 * With `--scrub`, what does not go on. Names only: nobody looks at a value. What a build must know of where it runs
 * (`GITHUB_SHA`, `CARGO_HOME`, `PGHOST`) stays.
 */
export const scrubbedNames: readonly string[] = [
  // Whatever calls itself one, in any case.
  ...['*TOKEN', '*_TOKEN_*', '*_token', '*SECRET', '*_SECRET_*', '*SECRETS', '*_secret'],
  ...['*PASSWORD', '*_password', '*PASSWD', '*PASSPHRASE', '*_PASS', '*_PWD', '*PASSFILE', '*_PASSWORD_*'],
  ...['*APIKEY', '*API_KEY', '*_API_KEY_*', '*_api_key', '*ACCESS_KEY*', '*PRIVATE_KEY*', '*SIGNING_KEY*'],
  ...[
    '*ENCRYPTION_KEY*',
    '*LICENSE_KEY',
    '*CREDENTIAL',
    '*CREDENTIALS',
    '*_AUTH',
    '*_JWT',
    '*_DSN',
    '*_COOKIE',
  ],
  // Clouds.
  ...['AWS_PROFILE', 'AWS_WEB_IDENTITY_TOKEN_FILE', 'AWS_CONTAINER_*', 'AWS_SHARED_CREDENTIALS_FILE'],
  ...[
    'AWS_CONFIG_FILE',
    'GOOGLE_*',
    'CLOUDSDK_AUTH_*',
    'AZURE_*',
    'ARM_*',
    'IDENTITY_*',
    'MSI_*',
    'OCI_CLI_*',
  ],
  ...['DIGITALOCEAN_*', 'CLOUDFLARE_*', 'CF_API_*', 'HEROKU_*', 'FLY_*', 'VERCEL_*', 'NETLIFY_*'],
  // Stores of secrets, clusters, databases.
  ...[
    'VAULT_*',
    'CONSUL_HTTP_*',
    'NOMAD_*',
    'OP_*',
    'BW_*',
    'DOPPLER_*',
    'INFISICAL_*',
    'SOPS_*',
    'KUBECONFIG',
  ],
  ...['TF_VAR_*', 'TF_TOKEN_*', 'PULUMI_*', 'DATABASE_URL', 'REDIS_URL', 'MONGODB_URI', 'AMQP_URL'],
  // CI systems, registries, version control, agents of keys.
  ...[
    'ACTIONS_*',
    'CI_JOB_JWT*',
    'CI_REGISTRY_*',
    'CI_DEPLOY_*',
    'NPM_CONFIG__*',
    'npm_config__*',
    'TWINE_*',
  ],
  ...['DOCKER_AUTH_CONFIG', 'GIT_ASKPASS', 'SSH_AUTH_SOCK', 'SSH_AGENT_PID', 'SSH_ASKPASS'],
  // APIs.
  ...['OPENAI_*', 'ANTHROPIC_*', 'STRIPE_*', 'TWILIO_*', 'SENDGRID_*', 'SLACK_WEBHOOK*', 'DISCORD_WEBHOOK*'],
];
