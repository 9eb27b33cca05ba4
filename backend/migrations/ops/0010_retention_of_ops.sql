-- What the suite's own tables need in order to be cleaned by policy like any other, and IP addresses made coarse.

-- A rule's anchor wants an index.
CREATE INDEX job_runs_finished_at_idx ON ops.job_runs (finished_at);
CREATE INDEX job_runs_policy_idx ON ops.job_runs (policy, started_at DESC);
CREATE INDEX manual_resolution_queue_resolved_at_idx ON ops.manual_resolution_queue (resolved_at);
CREATE INDEX blob_deletions_closed_at_idx ON ops.blob_deletions (closed_at);
CREATE INDEX legal_holds_released_at_idx ON ops.legal_holds (released_at);
CREATE INDEX legal_holds_expires_at_idx ON ops.legal_holds (expires_at);

-- The jobs may delete what is closed. What is open is somebody's work: no mistake in a policy file reaches it.
CREATE FUNCTION ops.keep_what_is_open() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'a row of %.% is still open', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER job_runs_keep BEFORE DELETE ON ops.job_runs
    FOR EACH ROW WHEN (OLD.finished_at IS NULL AND current_user = 'lifecycle_jobs')
    EXECUTE FUNCTION ops.keep_what_is_open();
CREATE TRIGGER manual_resolution_queue_keep BEFORE DELETE ON ops.manual_resolution_queue
    FOR EACH ROW WHEN (OLD.status <> 'resolved' AND current_user = 'lifecycle_jobs')
    EXECUTE FUNCTION ops.keep_what_is_open();
CREATE TRIGGER alerts_keep BEFORE DELETE ON ops.alerts
    FOR EACH ROW WHEN (OLD.resolved_at IS NULL AND current_user = 'lifecycle_jobs')
    EXECUTE FUNCTION ops.keep_what_is_open();
CREATE TRIGGER blob_deletions_keep BEFORE DELETE ON ops.blob_deletions
    FOR EACH ROW WHEN (OLD.closed_at IS NULL AND current_user = 'lifecycle_jobs')
    EXECUTE FUNCTION ops.keep_what_is_open();

-- A hold ends by its release, never by its deletion, whoever it is: only what has ended may go.
CREATE FUNCTION ops.keep_hold() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'legal hold % is in force: release it, do not delete it', OLD.id
        USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER legal_holds_keep
    BEFORE DELETE ON ops.legal_holds
    FOR EACH ROW WHEN (OLD.released_at IS NULL AND (OLD.expires_at IS NULL OR OLD.expires_at > now()))
    EXECUTE FUNCTION ops.keep_hold();

-- Nothing waits for the end of a hold that has ended. A batch that deletes some holds the gate shared itself, and would
-- wait for every other batch under way.
DROP TRIGGER legal_holds_close_gate ON ops.legal_holds;
CREATE TRIGGER legal_holds_close_gate
    BEFORE INSERT OR UPDATE OR TRUNCATE ON ops.legal_holds
    FOR EACH STATEMENT EXECUTE FUNCTION ops.close_gate();

-- Of an IPv4 address the last byte is gone, of an IPv6 address the last ten. What is no address leaves nothing.
CREATE FUNCTION ops.truncate_ip(p_address text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog
    AS $$
BEGIN
    RETURN host(network(set_masklen(p_address::inet, CASE family(p_address::inet) WHEN 4 THEN 24 ELSE 48 END)));
EXCEPTION
    WHEN data_exception THEN RETURN '0.0.0.0';
END
$$;
GRANT EXECUTE ON FUNCTION ops.truncate_ip TO lifecycle_jobs;
