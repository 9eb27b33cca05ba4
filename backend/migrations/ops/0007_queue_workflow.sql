-- Claiming, deciding and undoing: what a person's work on the queue needs.

-- Worst first: by deadline, then by this, then by age.
ALTER TABLE ops.manual_resolution_queue
    ADD COLUMN priority_rank smallint GENERATED ALWAYS AS (
        CASE priority WHEN 'critical' THEN 0 WHEN 'high' THEN 1 WHEN 'medium' THEN 2 ELSE 3 END) STORED,
    -- The state before the last claim, deferral or escalation; only its author can go back to it.
    ADD COLUMN before_last jsonb;

-- What can be claimed now: nobody's, a claim that ran out, a deferral whose time has come.
ALTER TABLE ops.manual_resolution_queue
    ADD COLUMN claimable_at timestamptz GENERATED ALWAYS AS (
        CASE WHEN status = 'resolved' THEN 'infinity'::timestamptz
             WHEN status = 'deferred' THEN deferred_until
             ELSE coalesce(claim_expires_at, '-infinity'::timestamptz) END) STORED;
CREATE INDEX manual_resolution_queue_worst_idx
    ON ops.manual_resolution_queue (deadline_at, priority_rank, first_seen_at, id) WHERE status <> 'resolved';

-- The audit entry of a change of state, written in the statement that makes the change.
CREATE FUNCTION ops.note_queue_change(p_item uuid, p_actor text, p_action text, p_reason text, p_metadata jsonb)
    RETURNS text
    LANGUAGE sql VOLATILE
    RETURN ops.append_audit(gen_random_uuid(), p_actor, p_action, 'ops.manual_resolution_queue', p_reason, NULL,
                            ARRAY[p_item::text], p_metadata);
GRANT EXECUTE ON FUNCTION ops.note_queue_change TO lifecycle_jobs;
