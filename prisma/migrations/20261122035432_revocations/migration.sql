-- DropIndex
DROP INDEX "hosts_name_key";

-- AlterTable
ALTER TABLE "grants" ADD COLUMN     "ceiling_at" TIMESTAMPTZ(3),
ADD COLUMN     "ended_at" TIMESTAMPTZ(3);

-- What earlier grants would say of themselves.
UPDATE "grants" SET "ceiling_at" = "granted_at" + make_interval(secs => "ceiling_ms" / 1000.0);
UPDATE "grants" SET "ended_at" = e."ingested_at" FROM "ledger_entries" e
 WHERE e."grant_id" = "grants"."id" AND e."kind" = 'ended' AND e."author" = "grants"."host_id";
ALTER TABLE "grants" ALTER COLUMN "ceiling_at" SET NOT NULL;

-- AlterTable
ALTER TABLE "hosts" ADD COLUMN     "banned_at" TIMESTAMPTZ(3);

-- AlterTable
ALTER TABLE "revocations" ADD COLUMN     "claim" JSONB,
ADD COLUMN     "lift_reason" TEXT,
ADD COLUMN     "lifted_at" TIMESTAMPTZ(3),
ADD COLUMN     "lifted_by" TEXT,
ADD COLUMN     "standing" BOOLEAN NOT NULL DEFAULT false;

-- Until now there were none but of a grant.
UPDATE "revocations" SET "claim" = jsonb_build_object('kind', "target_kind", 'id', "target");
ALTER TABLE "revocations" ALTER COLUMN "claim" SET NOT NULL;

-- CreateTable
CREATE TABLE "revocation_hits" (
    "epoch" BIGINT NOT NULL,
    "grant_id" TEXT NOT NULL,

    CONSTRAINT "revocation_hits_pkey" PRIMARY KEY ("epoch","grant_id")
);

-- CreateIndex
CREATE INDEX "revocation_hits_grant_id_idx" ON "revocation_hits"("grant_id");

-- CreateIndex
CREATE INDEX "grants_live_idx" ON "grants"("ceiling_at") WHERE (ended_at IS NULL);

-- CreateIndex
CREATE INDEX "grants_live_nested_idx" ON "grants"("ceiling_at") WHERE (ended_at IS NULL AND parent_grant IS NOT NULL);

-- CreateIndex
CREATE UNIQUE INDEX "hosts_name_key" ON "hosts"("name") WHERE (banned_at IS NULL);

-- CreateIndex
CREATE INDEX "revocations_standing_idx" ON "revocations"("target_kind", "target") WHERE (standing AND lifted_at IS NULL);

-- AddForeignKey
ALTER TABLE "revocation_hits" ADD CONSTRAINT "revocation_hits_epoch_fkey" FOREIGN KEY ("epoch") REFERENCES "revocations"("epoch") ON DELETE RESTRICT ON UPDATE RESTRICT;

-- AddForeignKey
ALTER TABLE "revocation_hits" ADD CONSTRAINT "revocation_hits_grant_id_fkey" FOREIGN KEY ("grant_id") REFERENCES "grants"("id") ON DELETE RESTRICT ON UPDATE RESTRICT;

INSERT INTO "revocation_hits" ("epoch", "grant_id") SELECT "epoch", "target" FROM "revocations";
