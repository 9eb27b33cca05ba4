-- A role for whoever looks and changes nothing: dry runs, reports, lists, verifications.

-- Roles belong to the whole server, so another database's migration may be creating this one right now.
DO $$
BEGIN
    -- LOGIN without a password: nobody can log in until an administrator sets one.
    CREATE ROLE lifecycle_reader LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

GRANT USAGE ON SCHEMA ops TO lifecycle_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA ops TO lifecycle_reader;
-- What later migrations of the same owner add can be read too.
ALTER DEFAULT PRIVILEGES IN SCHEMA ops GRANT SELECT ON TABLES TO lifecycle_reader;
GRANT EXECUTE ON FUNCTION ops.blob_pathname, ops.blob_names, ops.truncate_ip TO lifecycle_reader;

-- What is open is somebody's work, whichever role it is that was given the jobs' rights; only the tables' owner, who
-- could drop the trigger anyway, may mend by hand.
CREATE OR REPLACE FUNCTION ops.keep_what_is_open() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'a row of %.% is still open', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE OR REPLACE TRIGGER job_runs_keep BEFORE DELETE ON ops.job_runs
    FOR EACH ROW WHEN (OLD.finished_at IS NULL) EXECUTE FUNCTION ops.keep_what_is_open();
CREATE OR REPLACE TRIGGER manual_resolution_queue_keep BEFORE DELETE ON ops.manual_resolution_queue
    FOR EACH ROW WHEN (OLD.status <> 'resolved') EXECUTE FUNCTION ops.keep_what_is_open();
CREATE OR REPLACE TRIGGER alerts_keep BEFORE DELETE ON ops.alerts
    FOR EACH ROW WHEN (OLD.resolved_at IS NULL) EXECUTE FUNCTION ops.keep_what_is_open();
CREATE OR REPLACE TRIGGER blob_deletions_keep BEFORE DELETE ON ops.blob_deletions
    FOR EACH ROW WHEN (OLD.closed_at IS NULL) EXECUTE FUNCTION ops.keep_what_is_open();
