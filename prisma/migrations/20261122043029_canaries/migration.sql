-- CreateIndex
CREATE INDEX "grants_canary_idx" ON "grants"("host_id", "granted_at") WHERE (paths = '{custody/canary}'::text[]);

-- CreateIndex
CREATE INDEX "ledger_entries_canary_judged_idx" ON "ledger_entries"("ordinal") WHERE (kind = 'canary_judged');
