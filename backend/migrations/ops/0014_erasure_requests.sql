-- Who asked to be erased, until when it must be done, and what became of it (GDPR Art. 17, CCPA).

CREATE TABLE ops.erasure_requests (
    id                   uuid        PRIMARY KEY DEFAULT gen_random_uuid(),  -- the reference that the person is given
    channel              text        NOT NULL CHECK (channel <> '' AND position('@' IN channel) = 0),
    requested_at         timestamptz NOT NULL DEFAULT now(),                 -- the clock starts here, not at the entry
    email                text,       -- as the person wrote it, for the confirmation
    person               text,       -- normalized: as the policies' person columns hold it; both cleared on closing
    status               text        NOT NULL DEFAULT 'received' CHECK (status IN
                             ('received', 'running', 'blocked', 'fulfilled', 'cancelled', 'merged', 'rejected')),
    deadline_at          timestamptz,                                        -- set when the request is taken in
    identity_verified_at timestamptz,                                        -- nothing happens before
    identity_method      text        CHECK (position('@' IN identity_method) = 0),  -- it stands on the certificate
    started_at           timestamptz,
    ledger_at            timestamptz,                                        -- the ledger's copy is in ARCHIVE_URL
    policy_hash          text,
    closed_at            timestamptz,
    closed_because       text,                                               -- a code
    merged_into          uuid,
    certificate          jsonb,                                              -- what was done, without personal data
    audit_head           text,                                               -- the audit's seal over the certificate
    certified_at         timestamptz,                                        -- the certificate's copy is in ARCHIVE_URL
    confirmed_at         timestamptz,                                        -- the person was told
    CHECK ((status IN ('fulfilled', 'cancelled', 'merged', 'rejected')) = (closed_at IS NOT NULL)),
    CHECK (closed_at IS NULL OR person IS NULL),
    CHECK (closed_at IS NULL OR status = 'fulfilled' OR email IS NULL),      -- a confirmation may still be on its way
    CHECK ((identity_verified_at IS NULL) = (identity_method IS NULL)),
    CHECK ((status = 'fulfilled') = (certificate IS NOT NULL AND audit_head IS NOT NULL)),
    CHECK (person IS NULL OR deadline_at IS NOT NULL)
);
-- Two open requests of one person are one.
CREATE UNIQUE INDEX erasure_requests_person_idx ON ops.erasure_requests (person) WHERE person IS NOT NULL;
CREATE INDEX erasure_requests_open_idx ON ops.erasure_requests (deadline_at, id) WHERE closed_at IS NULL;
CREATE INDEX erasure_requests_new_idx ON ops.erasure_requests (requested_at) WHERE closed_at IS NULL AND person IS NULL;
CREATE INDEX erasure_requests_aftercare_idx ON ops.erasure_requests (id)
    WHERE status = 'fulfilled' AND (email IS NOT NULL OR certified_at IS NULL);
CREATE INDEX erasure_requests_ledger_idx ON ops.erasure_requests (ledger_at) WHERE ledger_at IS NOT NULL;
CREATE INDEX erasure_requests_closed_at_idx ON ops.erasure_requests (closed_at);

CREATE TRIGGER erasure_requests_keep BEFORE DELETE ON ops.erasure_requests
    FOR EACH ROW WHEN (OLD.closed_at IS NULL AND current_user = 'lifecycle_jobs')
    EXECUTE FUNCTION ops.keep_what_is_open();

GRANT SELECT, INSERT, UPDATE, DELETE ON ops.erasure_requests TO lifecycle_jobs;

-- An address that somebody wrote into an item of the queue is found without reading the whole queue for each request.
CREATE FUNCTION ops.queue_item_words(p_reason text, p_context jsonb, p_justification text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog
    AS $$ SELECT lower(concat_ws(' ', p_reason, p_context::text, p_justification)) $$;
CREATE INDEX manual_resolution_queue_address_idx ON ops.manual_resolution_queue (id)
    WHERE position('@' IN ops.queue_item_words(reason, context, justification)) > 0;
CREATE INDEX manual_resolution_queue_resource_idx ON ops.manual_resolution_queue (resource_type, resource_id);
CREATE INDEX blob_deletions_person_idx ON ops.blob_deletions (person) WHERE person IS NOT NULL;
GRANT EXECUTE ON FUNCTION ops.queue_item_words TO lifecycle_jobs;
