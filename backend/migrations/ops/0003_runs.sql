-- What ran, who holds which lock, what must not run, and under which policy file.

CREATE TABLE ops.policy_versions (
    hash          text        PRIMARY KEY CHECK (hash ~ '^[0-9a-f]{64}$'),  -- sha-256 of the file's bytes
    document      text        NOT NULL,
    first_used_at timestamptz NOT NULL DEFAULT now(),
    first_used_by text        NOT NULL
);
CREATE TRIGGER policy_versions_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON ops.policy_versions
    FOR EACH STATEMENT EXECUTE FUNCTION ops.refuse_change();

CREATE TABLE ops.job_runs (
    id                     uuid        PRIMARY KEY,
    script                 text        NOT NULL,
    policy                 text        NOT NULL,
    correlation_id         text        NOT NULL,
    trace_id               text,
    started_at             timestamptz NOT NULL DEFAULT now(),
    heartbeat_at           timestamptz NOT NULL DEFAULT now(),
    finished_at            timestamptz,
    cutoff_at              timestamptz NOT NULL,
    policy_hash            text        NOT NULL REFERENCES ops.policy_versions (hash),
    fencing_token          bigint      NOT NULL,
    status                 text        NOT NULL DEFAULT 'running' CHECK (status IN
                               ('running', 'completed', 'partial', 'failed', 'interrupted', 'skipped', 'abandoned')),
    stop_reason            text,
    exit_code              integer,
    records_processed      bigint      NOT NULL DEFAULT 0,
    records_held           bigint,  -- null in this and the next two: could not be counted, which is not 0
    records_queued         bigint      NOT NULL DEFAULT 0,
    records_remaining      bigint,
    oldest_overdue_seconds double precision,
    batches                bigint      NOT NULL DEFAULT 0,
    pauses                 jsonb       NOT NULL DEFAULT '{}',
    sla_budget_seconds     double precision,
    sla_status             text        CHECK (sla_status IN ('within_sla', 'warning', 'breached')),
    error                  text,
    host                   text        NOT NULL,
    pid                    integer     NOT NULL,
    version                text        NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX job_runs_history_idx ON ops.job_runs (script, policy, started_at DESC);

-- The fencing token only ever rises; a batch runs only while the token it was given is still the newest.
CREATE TABLE ops.leases (
    name          text        PRIMARY KEY,
    fencing_token bigint      NOT NULL CHECK (fencing_token > 0),
    owner_host    text,
    owner_pid     integer,
    owner_run     text,
    acquired_at   timestamptz,
    heartbeat_at  timestamptz
) WITH (fillfactor = 10);
COMMENT ON COLUMN ops.leases.heartbeat_at IS 'null: nobody holds the lease';

CREATE TABLE ops.stop_switches (
    job        text        PRIMARY KEY,
    stopped_by text        NOT NULL,
    reason     text        NOT NULL,
    stopped_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN ops.stop_switches.job IS 'a script''s name, or * for every job';
CREATE TRIGGER stop_switches_close_gate
    BEFORE INSERT OR UPDATE OR DELETE ON ops.stop_switches
    FOR EACH STATEMENT EXECUTE FUNCTION ops.close_gate();

GRANT SELECT, INSERT ON ops.policy_versions TO lifecycle_jobs;
GRANT SELECT, INSERT, UPDATE ON ops.job_runs, ops.leases TO lifecycle_jobs;
GRANT SELECT, INSERT, UPDATE, DELETE ON ops.stop_switches TO lifecycle_jobs;
