-- Which blobs are to go: written before the store is asked, closed after it said that they are gone.

CREATE TABLE ops.blob_deletions (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    policy      text        NOT NULL,
    rule        text        NOT NULL,
    table_name  text        NOT NULL,
    resource_id text        NOT NULL,  -- the row's key; of a blob that no row names, its keyed pseudonym
    blob        text,                  -- URL or pathname; like the person, cleared on closing
    person      text,
    status      text        NOT NULL DEFAULT 'pending' CHECK (status IN
                    ('pending', 'sending', 'confirmed', 'failed', 'cancelled')),
    reason      text,                  -- of a failed or cancelled one: a code
    run_id      uuid        NOT NULL,  -- the run that wrote it, then the one that sent it
    created_at  timestamptz NOT NULL DEFAULT now(),
    sending_at  timestamptz,
    closed_at   timestamptz,
    CHECK ((status IN ('pending', 'sending')) = (closed_at IS NULL)),
    CHECK ((blob IS NULL) = (closed_at IS NOT NULL)),
    CHECK (closed_at IS NULL OR person IS NULL)
);
CREATE UNIQUE INDEX blob_deletions_open_idx ON ops.blob_deletions (table_name, resource_id) WHERE closed_at IS NULL;
CREATE INDEX blob_deletions_drain_idx ON ops.blob_deletions (policy, id) WHERE closed_at IS NULL;

GRANT SELECT, INSERT, UPDATE ON ops.blob_deletions TO lifecycle_jobs;

-- A blob's pathname: of a URL the path without its percent signs, of a pathname itself.
CREATE FUNCTION ops.blob_pathname(p_name text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog
    AS $$
DECLARE
    v_path text := regexp_replace(p_name, '^https?://[^/]+/|[?#].*$', '', 'g');
BEGIN
    IF p_name !~ '^https?://' THEN
        RETURN p_name;
    ELSIF v_path !~ '%' THEN
        RETURN v_path;
    END IF;
    RETURN (SELECT convert_from(string_agg(CASE WHEN m[1] ~ '^%..$' THEN decode(substr(m[1], 2), 'hex')
                                                ELSE convert_to(m[1], 'UTF8') END, ''::bytea ORDER BY n), 'UTF8')
              FROM regexp_matches(v_path, '%[0-9a-fA-F]{2}|[^%]+|%', 'g') WITH ORDINALITY AS piece (m, n));
EXCEPTION
    WHEN character_not_in_repertoire OR untranslatable_character THEN RETURN v_path;
END
$$;

-- What a row may hold to name the same blob: its pathname, or its URL in a public or private store.
CREATE FUNCTION ops.blob_names(p_name text, p_store text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ARRAY[
        p_name,
        ops.blob_pathname(p_name),
        'https://' || p_store || '.public.blob.vercel-storage.com/' || ops.blob_pathname(p_name),
        'https://' || p_store || '.private.blob.vercel-storage.com/' || ops.blob_pathname(p_name)
    ];
GRANT EXECUTE ON FUNCTION ops.blob_pathname, ops.blob_names TO lifecycle_jobs;
