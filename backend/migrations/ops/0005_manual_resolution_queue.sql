-- What a machine must not decide.

CREATE TABLE ops.manual_resolution_queue (
    id               uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    item_type        text        NOT NULL,
    resource_type    text        NOT NULL,
    resource_id      text        NOT NULL,
    priority         text        NOT NULL CHECK (priority IN ('critical', 'high', 'medium', 'low')),
    status           text        NOT NULL DEFAULT 'pending' CHECK (status IN
                         ('pending', 'assigned', 'escalated', 'deferred', 'resolved')),
    reason           text        NOT NULL,
    context          jsonb       NOT NULL DEFAULT '{}',
    raised_by        text        NOT NULL,
    occurrences      bigint      NOT NULL DEFAULT 1,
    first_seen_at    timestamptz NOT NULL DEFAULT now(),
    last_seen_at     timestamptz NOT NULL DEFAULT now(),
    deadline_at      timestamptz NOT NULL,
    assigned_to      text,
    assigned_at      timestamptz,
    claim_expires_at timestamptz,
    deferred_until   timestamptz,
    escalated_at     timestamptz,
    resolved_at      timestamptz,
    resolved_by      text,
    decision         text,
    justification    text,
    CHECK ((status = 'resolved') = (resolved_at IS NOT NULL))
);
-- Seen again is one more occurrence of the open item, never a second row.
CREATE UNIQUE INDEX manual_resolution_queue_open_idx
    ON ops.manual_resolution_queue (item_type, resource_type, resource_id) WHERE status <> 'resolved';

GRANT SELECT, INSERT, UPDATE ON ops.manual_resolution_queue TO lifecycle_jobs;
