-- The revocation log gets an identity, by which a host notices that it was set back.
INSERT INTO "meta" ("key", "value")
VALUES ('revocation_log', jsonb_build_object('id', 'log_' || replace(gen_random_uuid()::text, '-', '')))
ON CONFLICT ("key") DO NOTHING;
