-- Who deleted what, when and why: append-only, sealed, chained, without personal data.

CREATE TABLE ops.audit_batches (
    seq            bigint      NOT NULL UNIQUE CHECK (seq > 0),  -- place in the chain, without gaps
    id             uuid        PRIMARY KEY,                      -- made by the client: settles an ambiguous COMMIT
    occurred_at    timestamptz NOT NULL,
    actor          text        NOT NULL CHECK (actor ~ '^(system|operator):.+'),
    action         text        NOT NULL,
    resource_type  text        NOT NULL,
    reason         text        NOT NULL,
    run_id         uuid,
    resource_ids   text[]      NOT NULL CHECK (cardinality(resource_ids) > 0),
    metadata       jsonb       NOT NULL,
    seal           bytea       NOT NULL
);
CREATE INDEX audit_batches_run_id_idx ON ops.audit_batches (run_id);
-- Random ids do not compress: trying costs a millisecond a batch and saves nothing.
ALTER TABLE ops.audit_batches ALTER COLUMN resource_ids SET STORAGE EXTERNAL;

-- The last seal. A batch cut off the end of the chain is missed because this row still names it.
CREATE TABLE ops.audit_head (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    seq       bigint  NOT NULL,
    seal      bytea   NOT NULL
) WITH (fillfactor = 10);
INSERT INTO ops.audit_head (seq, seal) VALUES (0, '\x');

CREATE TRIGGER audit_batches_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON ops.audit_batches
    FOR EACH STATEMENT EXECUTE FUNCTION ops.refuse_change();

CREATE VIEW ops.audit_log AS
    SELECT b.occurred_at, b.actor, b.action, b.resource_type, r.resource_id, b.reason, b.run_id, b.metadata,
           b.id AS batch_id, b.seq
      FROM ops.audit_batches b
     CROSS JOIN LATERAL unnest(b.resource_ids) AS r (resource_id);

-- The only way to write an entry, so that nobody needs the right to insert.
-- The head is locked last and briefly: two jobs at once wait for each other here and nowhere else.
-- scripts/lifecycle/audit/audit.py recomputes the seal from the same columns in the same order.
CREATE FUNCTION ops.append_audit(
    p_id uuid, p_actor text, p_action text, p_resource_type text, p_reason text, p_run_id uuid,
    p_resource_ids text[], p_metadata jsonb
) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET client_encoding = 'UTF8'
    AS $$
DECLARE
    v_head ops.audit_head;
    v_now  timestamptz;
BEGIN
    SELECT * INTO STRICT v_head FROM ops.audit_head FOR UPDATE;
    v_now := clock_timestamp();  -- after the lock, so that time never runs backwards along the chain
    v_head.seq := v_head.seq + 1;
    v_head.seal := sha256(v_head.seal || record_send(ROW(
        v_head.seq, p_id, v_now, p_actor, p_action, p_resource_type, p_reason, p_run_id, p_resource_ids, p_metadata
    )));
    INSERT INTO ops.audit_batches
        (seq, id, occurred_at, actor, action, resource_type, reason, run_id, resource_ids, metadata, seal)
    VALUES
        (v_head.seq, p_id, v_now, p_actor, p_action, p_resource_type, p_reason, p_run_id, p_resource_ids, p_metadata,
         v_head.seal);
    UPDATE ops.audit_head SET seq = v_head.seq, seal = v_head.seal;
    RETURN v_head.seq || ':' || encode(v_head.seal, 'hex');
END
$$;

REVOKE ALL ON FUNCTION ops.append_audit FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ops.append_audit TO lifecycle_jobs;
GRANT SELECT ON ops.audit_batches, ops.audit_head, ops.audit_log TO lifecycle_jobs;
