-- CreateTable
CREATE TABLE "hosts" (
    "id" TEXT NOT NULL,
    "name" TEXT NOT NULL,
    "labels" JSONB NOT NULL DEFAULT '{}',
    "signing_key" TEXT NOT NULL,
    "sealing_key" TEXT NOT NULL,
    "bus_user_key" TEXT NOT NULL,
    "enrolled_at" TIMESTAMPTZ(3) NOT NULL,
    "last_seen_at" TIMESTAMPTZ(3),
    "agent_version" TEXT,
    "containment" TEXT,

    CONSTRAINT "hosts_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "join_tokens" (
    "id" TEXT NOT NULL,
    "hash" BYTEA NOT NULL,
    "name" TEXT,
    "labels" JSONB NOT NULL DEFAULT '{}',
    "created_at" TIMESTAMPTZ(3) NOT NULL,
    "expires_at" TIMESTAMPTZ(3) NOT NULL,
    "used_at" TIMESTAMPTZ(3),
    "used_by_host" TEXT,

    CONSTRAINT "join_tokens_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "api_tokens" (
    "id" TEXT NOT NULL,
    "hash" BYTEA NOT NULL,
    "subject" TEXT NOT NULL,
    "role" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL,
    "expires_at" TIMESTAMPTZ(3),
    "revoked_at" TIMESTAMPTZ(3),

    CONSTRAINT "api_tokens_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "secrets" (
    "path" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL,
    "deleted_at" TIMESTAMPTZ(3),
    "last_version" INTEGER NOT NULL DEFAULT 0,

    CONSTRAINT "secrets_pkey" PRIMARY KEY ("path")
);

-- CreateTable
CREATE TABLE "secret_versions" (
    "path" TEXT NOT NULL,
    "version" INTEGER NOT NULL,
    "field_names" TEXT[],
    "key_id" TEXT NOT NULL,
    "wrapped_key" BYTEA NOT NULL,
    "nonce" BYTEA NOT NULL,
    "ciphertext" BYTEA NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL,
    "created_by" TEXT NOT NULL,

    CONSTRAINT "secret_versions_pkey" PRIMARY KEY ("path","version")
);

-- CreateTable
CREATE TABLE "policy_revisions" (
    "revision" INTEGER NOT NULL,
    "text" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL,
    "created_by" TEXT NOT NULL,

    CONSTRAINT "policy_revisions_pkey" PRIMARY KEY ("revision")
);

-- CreateTable
CREATE TABLE "grants" (
    "id" TEXT NOT NULL,
    "run_id" TEXT NOT NULL,
    "host_id" TEXT NOT NULL,
    "uid" INTEGER NOT NULL,
    "pid" INTEGER NOT NULL,
    "subject" TEXT NOT NULL,
    "command" TEXT[],
    "cwd" TEXT NOT NULL,
    "reason" TEXT,
    "credentials" JSONB NOT NULL,
    "paths" TEXT[],
    "policy_revision" INTEGER NOT NULL,
    "policy_ids" TEXT[],
    "ceiling_ms" INTEGER NOT NULL,
    "granted_at" TIMESTAMPTZ(3) NOT NULL,
    "containment" TEXT NOT NULL,
    "freshness" JSONB NOT NULL,
    "parent_grant" TEXT,
    "epoch" BIGINT NOT NULL,
    "jws" TEXT NOT NULL,

    CONSTRAINT "grants_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "revocations" (
    "epoch" BIGINT NOT NULL,
    "target_kind" TEXT NOT NULL,
    "target" TEXT NOT NULL,
    "reason" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL,
    "created_by" TEXT NOT NULL,
    "signed" TEXT NOT NULL,

    CONSTRAINT "revocations_pkey" PRIMARY KEY ("epoch")
);

-- CreateTable
CREATE TABLE "ledger_entries" (
    "author" TEXT NOT NULL,
    "chain_epoch" INTEGER NOT NULL,
    "seq" INTEGER NOT NULL,
    "kind" TEXT NOT NULL,
    "grant_id" TEXT,
    "at" TIMESTAMPTZ(3) NOT NULL,
    "boot_ms" BIGINT NOT NULL,
    "hash" BYTEA NOT NULL,
    "bytes" BYTEA NOT NULL,
    "signature" BYTEA NOT NULL,
    "body" JSONB NOT NULL,
    "ingested_at" TIMESTAMPTZ(3) NOT NULL,
    "ordinal" BIGSERIAL NOT NULL,

    CONSTRAINT "ledger_entries_pkey" PRIMARY KEY ("author","chain_epoch","seq")
);

-- CreateTable
CREATE TABLE "ledger_heads" (
    "author" TEXT NOT NULL,
    "chain_epoch" INTEGER NOT NULL,
    "seq" INTEGER NOT NULL,
    "hash" BYTEA NOT NULL,
    "forked_at" TIMESTAMPTZ(3),
    "fork_detail" JSONB,

    CONSTRAINT "ledger_heads_pkey" PRIMARY KEY ("author")
);

-- CreateTable
CREATE TABLE "outbox" (
    "id" BIGSERIAL NOT NULL,
    "subject" TEXT NOT NULL,
    "payload" BYTEA NOT NULL,
    "headers" JSONB NOT NULL DEFAULT '{}',
    "created_at" TIMESTAMPTZ(3) NOT NULL,
    "sent_at" TIMESTAMPTZ(3),

    CONSTRAINT "outbox_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "meta" (
    "key" TEXT NOT NULL,
    "value" JSONB NOT NULL,

    CONSTRAINT "meta_pkey" PRIMARY KEY ("key")
);

-- CreateIndex
CREATE UNIQUE INDEX "hosts_name_key" ON "hosts"("name");

-- CreateIndex
CREATE UNIQUE INDEX "join_tokens_hash_key" ON "join_tokens"("hash");

-- CreateIndex
CREATE UNIQUE INDEX "api_tokens_hash_key" ON "api_tokens"("hash");

-- CreateIndex
CREATE INDEX "secret_versions_key_id_idx" ON "secret_versions"("key_id");

-- CreateIndex
CREATE INDEX "grants_host_id_granted_at_idx" ON "grants"("host_id", "granted_at");

-- CreateIndex
CREATE INDEX "grants_granted_at_idx" ON "grants"("granted_at");

-- CreateIndex
CREATE INDEX "grants_run_id_idx" ON "grants"("run_id");

-- CreateIndex
CREATE INDEX "grants_parent_grant_idx" ON "grants"("parent_grant");

-- CreateIndex
CREATE INDEX "grants_paths_idx" ON "grants" USING GIN ("paths");

-- CreateIndex
CREATE INDEX "revocations_target_kind_target_idx" ON "revocations"("target_kind", "target");

-- CreateIndex
CREATE UNIQUE INDEX "ledger_entries_ordinal_key" ON "ledger_entries"("ordinal");

-- CreateIndex
CREATE INDEX "ledger_entries_grant_id_kind_idx" ON "ledger_entries"("grant_id", "kind");

-- CreateIndex
CREATE INDEX "ledger_entries_author_at_idx" ON "ledger_entries"("author", "at");

-- CreateIndex
CREATE INDEX "ledger_entries_released_idx" ON "ledger_entries" USING GIN ("body" jsonb_path_ops) WHERE (kind = 'released');

-- CreateIndex
CREATE INDEX "outbox_unsent_idx" ON "outbox"("id") WHERE (sent_at IS NULL);

-- AddForeignKey
ALTER TABLE "join_tokens" ADD CONSTRAINT "join_tokens_used_by_host_fkey" FOREIGN KEY ("used_by_host") REFERENCES "hosts"("id") ON DELETE RESTRICT ON UPDATE RESTRICT;

-- AddForeignKey
ALTER TABLE "secret_versions" ADD CONSTRAINT "secret_versions_path_fkey" FOREIGN KEY ("path") REFERENCES "secrets"("path") ON DELETE RESTRICT ON UPDATE RESTRICT;

-- AddForeignKey
ALTER TABLE "grants" ADD CONSTRAINT "grants_host_id_fkey" FOREIGN KEY ("host_id") REFERENCES "hosts"("id") ON DELETE RESTRICT ON UPDATE RESTRICT;
