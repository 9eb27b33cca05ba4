-- The suite's own schema and the one role that its jobs run as.

CREATE SCHEMA IF NOT EXISTS ops;

-- Roles belong to the whole server, so another database's migration may be creating this one right now.
DO $$
BEGIN
    -- LOGIN without a password: nobody can log in until an administrator sets one.
    CREATE ROLE lifecycle_jobs LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

REVOKE ALL ON SCHEMA ops FROM PUBLIC;
GRANT USAGE ON SCHEMA ops TO lifecycle_jobs;

-- The gate: every batch holds this lock shared, every change that must stop batches takes it exclusively.
-- One key for the whole suite; a batch that starts afterwards sees what was committed under the gate.
CREATE FUNCTION ops.gate_key() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 7236846154820113733;

CREATE FUNCTION ops.close_gate() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(ops.gate_key());
    RETURN NULL;
END
$$;

CREATE FUNCTION ops.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION '%.% is append-only: % refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;
