-- What was archived before it was deleted, and the keys without which nobody can read it.

CREATE TABLE ops.archives (
    id           uuid        PRIMARY KEY,          -- made by the client: settles an ambiguous COMMIT
    policy       text        NOT NULL,
    table_name   text        NOT NULL,
    object       text        NOT NULL UNIQUE,      -- its name in the store that ARCHIVE_URL names
    status       text        NOT NULL DEFAULT 'writing' CHECK (status IN
                     ('writing', 'discarded', 'sealed', 'expiring', 'expired')),
    run_id       uuid        NOT NULL,
    row_count    integer     CHECK (row_count > 0),
    bytes        bigint,
    sha256       text        CHECK (sha256 ~ '^[0-9a-f]{64}$'),  -- of the object as it lies in the store
    oldest       timestamptz,                      -- least and greatest anchor of its rows
    newest       timestamptz,
    manifest     jsonb,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    sealed_at    timestamptz,
    closed_at    timestamptz,
    CHECK (status IN ('writing', 'discarded') OR num_nulls(row_count, bytes, sha256, manifest, sealed_at) = 0),
    CHECK ((status = 'expired') = (closed_at IS NOT NULL))
);
CREATE INDEX archives_policy_idx ON ops.archives (policy, sealed_at);
CREATE INDEX archives_unfinished_idx ON ops.archives (status) WHERE status NOT IN ('sealed', 'expired');

-- Every key is random and wrapped by ARCHIVE_MASTER_KEY, which is never in the database.
CREATE TABLE ops.archive_keys (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind          text        NOT NULL CHECK (kind IN ('lookup', 'person', 'object')),
    pseudonym     bytea,                           -- of a person's key: keyed by the lookup key; cleared with the key
    archive_id    uuid        REFERENCES ops.archives (id) ON DELETE CASCADE,
    master_key_id text        NOT NULL,
    wrapped       bytea,
    created_at    timestamptz NOT NULL DEFAULT now(),
    last_used_on  date        NOT NULL DEFAULT current_date,
    destroyed_at  timestamptz,
    CHECK ((wrapped IS NULL) = (destroyed_at IS NOT NULL)),
    CHECK ((pseudonym IS NOT NULL) = (kind = 'person' AND destroyed_at IS NULL)),
    CHECK ((archive_id IS NOT NULL) = (kind = 'object'))
);
CREATE UNIQUE INDEX archive_keys_person_idx ON ops.archive_keys (pseudonym) WHERE pseudonym IS NOT NULL;
CREATE UNIQUE INDEX archive_keys_object_idx ON ops.archive_keys (archive_id) WHERE archive_id IS NOT NULL;
CREATE UNIQUE INDEX archive_keys_lookup_idx ON ops.archive_keys (kind) WHERE kind = 'lookup' AND destroyed_at IS NULL;

-- In the transaction that deletes: it stands only if every row that was exported went, in the version exported.
CREATE FUNCTION ops.seal_archive(p_id uuid, p_deleted bigint) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE ops.archives SET status = 'sealed', sealed_at = clock_timestamp()
     WHERE id = p_id AND status = 'writing' AND row_count = p_deleted;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the archive does not hold exactly what would go' USING ERRCODE = 'LA001';
    END IF;
    RETURN p_deleted;
END
$$;
REVOKE ALL ON FUNCTION ops.seal_archive FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ops.seal_archive TO lifecycle_jobs;

GRANT SELECT, INSERT, UPDATE, DELETE ON ops.archives, ops.archive_keys TO lifecycle_jobs;
