-- What is wrong and who was told, what must not be told for a while, and what the monitors saw.

-- One row a problem, from its beginning to its end. It names jobs, policies and figures, never a person.
CREATE TABLE ops.alerts (
    id           uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    key          text        NOT NULL CHECK (key <> ''),  -- the same problem has the same key
    severity     text        NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    what         text        NOT NULL,
    how_bad      text        NOT NULL,
    what_to_do   text        NOT NULL,
    runbook      text        NOT NULL,
    raised_by    text        NOT NULL,
    since        timestamptz NOT NULL,  -- of the problem; it may be older than its discovery
    raised_at    timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    occurrences  bigint      NOT NULL DEFAULT 1,
    version      integer     NOT NULL DEFAULT 1,  -- rises with each thing worth telling
    news         text        NOT NULL DEFAULT 'raised' CHECK (news IN
                     ('raised', 'worsened', 'eased', 'reminder', 'recovered')),
    news_at      timestamptz NOT NULL DEFAULT now(),
    waiting      text[]      NOT NULL DEFAULT '{}',  -- sinks that have yet to be told the newest version
    told         jsonb       NOT NULL DEFAULT '{}',  -- by sink: version, at, attempts, error, claim
    reminded_at  timestamptz,
    resolved_at  timestamptz,
    CHECK ((news = 'recovered') = (resolved_at IS NOT NULL))
);
-- Two monitors at once see one problem: the second finds the row.
CREATE UNIQUE INDEX alerts_open_idx ON ops.alerts (key) WHERE resolved_at IS NULL;
CREATE INDEX alerts_waiting_idx ON ops.alerts (news_at) WHERE waiting <> '{}';
CREATE INDEX alerts_resolved_at_idx ON ops.alerts (resolved_at);

-- Maintenance: what begins with this scope is noted and not told. It always ends.
CREATE TABLE ops.alert_silences (
    id          uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    scope       text        NOT NULL,
    reason      text        NOT NULL CHECK (reason <> ''),
    silenced_by text        NOT NULL,
    silenced_at timestamptz NOT NULL DEFAULT now(),
    until       timestamptz NOT NULL,
    ended_by    text,
    ended_at    timestamptz,
    CHECK ((ended_by IS NULL) = (ended_at IS NULL))
);
COMMENT ON COLUMN ops.alert_silences.scope IS 'the beginning of a key; empty: every key';

-- One row a subject and slot of the monitor's schedule, so that to look twice writes once.
CREATE TABLE ops.sla_observations (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    script         text        NOT NULL,
    subject        text        NOT NULL,  -- a policy, or what else the script watches
    slot           timestamptz NOT NULL,
    observed_at    timestamptz NOT NULL DEFAULT now(),
    status         text        NOT NULL CHECK (status IN ('within_sla', 'warning', 'breached', 'unknown')),
    items          bigint,                -- rows past their date, open items; null: could not be counted
    oldest_seconds double precision,
    figures        jsonb       NOT NULL DEFAULT '{}',
    UNIQUE (script, subject, slot)
);
CREATE INDEX sla_observations_observed_at_idx ON ops.sla_observations (observed_at);

GRANT SELECT, INSERT, UPDATE ON ops.alerts, ops.alert_silences TO lifecycle_jobs;
GRANT SELECT, INSERT ON ops.sla_observations TO lifecycle_jobs;
