-- Each time that an operator accepted lines of the erasure ledger without a valid code, or that lines are missing.

CREATE TABLE ops.ledger_signatures (
    id        uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    signed_by text        NOT NULL,
    signed_at timestamptz NOT NULL DEFAULT now(),
    requests  uuid[]      NOT NULL,  -- whose lines were signed
    lines     integer     NOT NULL,  -- how many the ledger has since
    missing   integer     NOT NULL   -- how many fewer than its head counted
);
GRANT SELECT, INSERT ON ops.ledger_signatures TO lifecycle_jobs;

CREATE OR REPLACE FUNCTION ops.operator_acted(
    p_operator text, p_action text, p_resource_type text, p_run_id uuid, p_resource_ids text[], p_metadata jsonb
) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE
        WHEN p_resource_type = 'ops.stop_switches' THEN
            p_action IN ('stop_switch_on', 'stop_switch_off')
            AND (p_action = 'stop_switch_on') = EXISTS (
                SELECT FROM ops.stop_switches s WHERE s.job = ANY(p_resource_ids)
                   AND (p_action = 'stop_switch_off' OR s.stopped_by = p_operator))
        WHEN p_resource_type = 'ops.alert_silences' THEN EXISTS (
            SELECT FROM ops.alert_silences s WHERE s.id::text = ANY(p_resource_ids)
               AND p_operator IN (s.silenced_by, s.ended_by))
        WHEN p_resource_type = 'ops.alerts' THEN
            p_action IN ('alert_closed', 'alert_tested') AND cardinality(p_resource_ids) = (
                SELECT count(*) FROM ops.alerts a WHERE a.id::text = ANY(p_resource_ids) AND a.resolved_by = p_operator)
        WHEN p_resource_type = 'ops.archive_keys' THEN
            p_action = 'archive_keys_rotated' AND cardinality(p_resource_ids) = (
                SELECT count(*) FROM ops.archive_keys k WHERE k.id::text = ANY(p_resource_ids)
                   AND k.master_key_id = p_metadata ->> 'master_key')
        WHEN p_resource_type = 'ops.ledger_signatures' THEN
            p_action = 'ledger_signed' AND cardinality(p_resource_ids) = (
                SELECT count(*) FROM ops.ledger_signatures l
                 WHERE l.id::text = ANY(p_resource_ids) AND l.signed_by = p_operator)
        WHEN p_resource_type = 'ops.erasure_requests' THEN
            starts_with(p_action, 'erasure_') AND cardinality(p_resource_ids) = (
                SELECT count(*) FROM ops.erasure_requests r WHERE r.id::text = ANY(p_resource_ids))
        WHEN p_resource_type = 'ops.manual_resolution_queue' THEN
            starts_with(p_action, 'queue_item_') AND cardinality(p_resource_ids) = (
                SELECT count(*) FROM ops.manual_resolution_queue q WHERE q.id::text = ANY(p_resource_ids))
        WHEN p_action = 'restore' THEN EXISTS (
            SELECT FROM ops.archives a WHERE a.id::text = p_metadata ->> 'archive' AND a.sealed_at IS NOT NULL)
        -- A decision on an item of the queue: the item is the operator's, or was closed by the operator just now.
        ELSE EXISTS (
            SELECT FROM ops.manual_resolution_queue q WHERE q.id = p_run_id
               AND CASE WHEN q.status = 'resolved' THEN q.resolved_at >= now() AND q.resolved_by = 'operator:' || p_operator
                        ELSE coalesce(q.assigned_to, p_operator) = p_operator END)
    END
$$;
