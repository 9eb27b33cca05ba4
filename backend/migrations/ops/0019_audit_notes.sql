-- An entry is noted when something is done and chained when the transaction commits: the head of the chain, for which
-- every transaction of the suite waits, is locked last and for the length of a COMMIT.

-- What the transaction under way has noted. Unlogged: no note outlives its transaction.
CREATE UNLOGGED TABLE ops.audit_notes (
    id            uuid    PRIMARY KEY,
    actor         text    NOT NULL CHECK (actor ~ '^(system|operator):.+'),
    action        text    NOT NULL,
    resource_type text    NOT NULL,
    reason        text    NOT NULL,
    run_id        uuid,
    resource_ids  text[]  NOT NULL CHECK (cardinality(resource_ids) > 0),
    metadata      jsonb   NOT NULL,
    last          boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);
ALTER TABLE ops.audit_notes ALTER COLUMN resource_ids SET STORAGE EXTERNAL;
GRANT SELECT ON ops.audit_notes TO lifecycle_jobs;

-- A row lock tells nobody what was waited for; ten seconds, because a COMMIT is short and the caller's own lock_timeout
-- is for the rows of an application.
CREATE FUNCTION ops.lock_audit_head() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s'
    AS $$
BEGIN
    PERFORM FROM ops.audit_head FOR UPDATE;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the head of the audit, ops.audit_head, stays locked by another session' USING ERRCODE = 'LA002';
END
$$;

-- Fires twice at COMMIT. A deferred trigger that was queued by the work itself, such as the check of a deferred foreign
-- key, comes before the second time, and so before the lock.
CREATE FUNCTION ops.chain_audit_note() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF NOT NEW.last THEN
        UPDATE ops.audit_notes SET last = true WHERE id = NEW.id;
    ELSE
        PERFORM ops.lock_audit_head();
        IF ops.append_audit(NEW.id, NEW.actor, NEW.action, NEW.resource_type, NEW.reason, NEW.run_id,
                            NEW.resource_ids, NEW.metadata) IS NULL THEN
            RAISE EXCEPTION 'the audit does not hold exactly what would go' USING ERRCODE = 'LP004';
        END IF;
        DELETE FROM ops.audit_notes WHERE id = NEW.id;
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER audit_notes_chained
    AFTER INSERT OR UPDATE ON ops.audit_notes DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION ops.chain_audit_note();
-- Also where a session has turned triggers off: what was noted is chained, or does not happen.
ALTER TABLE ops.audit_notes ENABLE ALWAYS TRIGGER audit_notes_chained;

-- What the suite calls in place of ops.append_audit, with the same arguments; the result is the entry's id.
CREATE FUNCTION ops.note_audit(
    p_id uuid, p_actor text, p_action text, p_resource_type text, p_reason text, p_run_id uuid,
    p_resource_ids text[], p_metadata jsonb
) RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO ops.audit_notes (id, actor, action, resource_type, reason, run_id, resource_ids, metadata)
    VALUES (p_id, p_actor, p_action, p_resource_type, p_reason, p_run_id, p_resource_ids, p_metadata)
    RETURNING id::text
$$;
REVOKE ALL ON FUNCTION ops.lock_audit_head, ops.chain_audit_note, ops.note_audit FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ops.note_audit TO lifecycle_jobs;

CREATE OR REPLACE FUNCTION ops.note_queue_change(p_item uuid, p_actor text, p_action text, p_reason text, p_metadata jsonb)
    RETURNS text
    LANGUAGE sql VOLATILE
    RETURN ops.note_audit(gen_random_uuid(), p_actor, p_action, 'ops.manual_resolution_queue', p_reason, NULL,
                          ARRAY[p_item::text], p_metadata);

-- The DROP of a partition comes after its audit, and the rest of the function stays as it is.
DO $$
BEGIN
    EXECUTE replace(pg_get_functiondef('ops.drop_partition(uuid, uuid, text, text, jsonb, jsonb)'::regprocedure),
                    'ops.append_audit(', 'ops.note_audit(');
END
$$;
