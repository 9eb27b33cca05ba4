-- The audit checks what it is told, records which login told it, and learns of every change to a legal hold by itself.

-- An entry as it is sealed. Only the functions below call it; scripts/lifecycle/audit/audit_chain.py recomputes the seal
-- from the same columns in the same order.
CREATE FUNCTION ops.seal_entry(
    p_id uuid, p_actor text, p_action text, p_resource_type text, p_reason text, p_run_id uuid,
    p_resource_ids text[], p_metadata jsonb
) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET client_encoding = 'UTF8'
    AS $$
DECLARE
    v_head     ops.audit_head;
    v_now      timestamptz;
    -- The login, whatever the actor is said to be: session_user stays what it was inside a SECURITY DEFINER function.
    v_metadata jsonb := p_metadata || jsonb_build_object('session_user', session_user);
BEGIN
    SELECT * INTO STRICT v_head FROM ops.audit_head FOR UPDATE;
    v_now := clock_timestamp();  -- after the lock, so that time never runs backwards along the chain
    v_head.seq := v_head.seq + 1;
    v_head.seal := sha256(v_head.seal || record_send(ROW(
        v_head.seq, p_id, v_now, p_actor, p_action, p_resource_type, p_reason, p_run_id, p_resource_ids, v_metadata
    )));
    INSERT INTO ops.audit_batches
        (seq, id, occurred_at, actor, action, resource_type, reason, run_id, resource_ids, metadata, seal)
    VALUES
        (v_head.seq, p_id, v_now, p_actor, p_action, p_resource_type, p_reason, p_run_id, p_resource_ids, v_metadata,
         v_head.seal);
    UPDATE ops.audit_head SET seq = v_head.seq, seal = v_head.seal;
    RETURN v_head.seq || ':' || encode(v_head.seal, 'hex');
END
$$;
REVOKE ALL ON FUNCTION ops.seal_entry FROM PUBLIC;

-- Whether the suite's own tables bear out that this operator did this: only then may a job say so.
CREATE FUNCTION ops.operator_acted(
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
REVOKE ALL ON FUNCTION ops.operator_acted FROM PUBLIC;

-- The claims are checked of everybody but the tables' owner, who can write the tables without the function.
CREATE OR REPLACE FUNCTION ops.append_audit(
    p_id uuid, p_actor text, p_action text, p_resource_type text, p_reason text, p_run_id uuid,
    p_resource_ids text[], p_metadata jsonb
) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET client_encoding = 'UTF8'
    AS $$
DECLARE
    v_owner boolean := pg_has_role(session_user, current_user, 'USAGE');
BEGIN
    -- What is read a year later must be readable: an object of a few facts.
    IF jsonb_typeof(p_metadata) IS DISTINCT FROM 'object' OR octet_length(p_metadata::text) > 16384
       OR jsonb_path_exists(p_metadata, 'strict $.**{6}') THEN
        RAISE EXCEPTION 'the metadata of an audit entry is an object of at most 16 kB and five levels'
            USING ERRCODE = 'check_violation';
    END IF;
    IF p_actor !~ '^(system|operator):[^[:cntrl:]]{1,100}$' THEN
        RAISE EXCEPTION 'the actor of an audit entry is system:<script> or operator:<handle>'
            USING ERRCODE = 'check_violation';
    END IF;
    IF v_owner THEN
        RETURN ops.seal_entry(p_id, p_actor, p_action, p_resource_type, p_reason, p_run_id, p_resource_ids, p_metadata);
    END IF;
    IF starts_with(p_action, 'hold_') OR p_resource_type = 'ops.legal_holds' AND starts_with(p_actor, 'operator:') THEN
        RAISE EXCEPTION 'the audit learns of legal holds from ops.legal_holds alone' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF p_action = 'erasure_fulfilled' AND NOT (
        p_resource_type = 'ops.erasure_requests' AND p_resource_ids = ARRAY[p_run_id::text] AND EXISTS (
            SELECT FROM ops.erasure_requests r WHERE r.id = p_run_id AND r.identity_verified_at IS NOT NULL
               AND r.status IN ('running', 'blocked', 'fulfilled'))) IS TRUE THEN
        RAISE EXCEPTION 'no request that is being fulfilled: there is nothing to certify' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF starts_with(p_actor, 'operator:') AND ops.operator_acted(
        substr(p_actor, 10), p_action, p_resource_type, p_run_id, p_resource_ids, p_metadata) IS NOT TRUE THEN
        RAISE EXCEPTION 'no table of the suite bears out that this operator did this' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN ops.seal_entry(p_id, p_actor, p_action, p_resource_type, p_reason, p_run_id, p_resource_ids, p_metadata);
END
$$;

-- Whoever changes a hold, by whatever statement, writes its entry with it. At COMMIT, so that the head of the audit is
-- locked last. An operator is named by the hold; of a change by hand only the login is known.
CREATE FUNCTION ops.audit_hold() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO, YMD'
    AS $$
DECLARE
    v_hold    record;
    v_actor   text := 'system:database';
    v_action  text;
    v_reason  text;
    v_request uuid;
    v_facts   jsonb := '{}';
BEGIN
    IF TG_OP = 'DELETE' THEN v_hold := OLD; ELSE v_hold := NEW; END IF;
    v_reason := 'legal_hold/' || v_hold.scope;
    IF TG_OP = 'INSERT' THEN
        v_action := 'hold_placed';
        v_actor := 'operator:' || v_hold.placed_by;
        v_facts := jsonb_strip_nulls(jsonb_build_object('expires_at', NEW.expires_at, 'released_at', NEW.released_at));
    ELSIF TG_OP = 'DELETE' THEN
        v_action := 'hold_deleted';
    ELSIF NEW IS NOT DISTINCT FROM OLD THEN
        RETURN NULL;
    ELSIF OLD.released_at IS NULL AND NEW.released_at IS NOT NULL THEN
        v_action := 'hold_released';
        IF NEW.released_by LIKE 'system:%' AND OLD.expires_at <= now() THEN
            v_action := 'hold_forgotten';  -- it had run out, and its person has asked to be erased
            v_reason := 'erasure_request:holds';
            SELECT r.id INTO v_request FROM ops.erasure_requests r WHERE r.person = OLD.person;
        END IF;
        IF NEW.released_by IS NOT NULL THEN
            v_actor := CASE WHEN NEW.released_by LIKE 'system:%' THEN NEW.released_by
                            ELSE 'operator:' || NEW.released_by END;
        END IF;
    ELSE
        v_action := 'hold_changed';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        -- The columns by name: what stands in the others may be a person's, or somebody's free text.
        v_facts := jsonb_build_object('changed', (
            SELECT jsonb_agg(n.key ORDER BY n.key) FROM jsonb_each(to_jsonb(NEW)) n JOIN jsonb_each(to_jsonb(OLD)) o USING (key)
             WHERE n.value <> o.value));
        IF NEW.expires_at IS DISTINCT FROM OLD.expires_at THEN
            v_facts := v_facts || jsonb_build_object('expired_at', OLD.expires_at, 'expires_at', NEW.expires_at);
        END IF;
    END IF;
    PERFORM ops.lock_audit_head();
    PERFORM ops.seal_entry(gen_random_uuid(), v_actor, v_action, 'ops.legal_holds', v_reason, v_request,
                           ARRAY[v_hold.id::text], v_facts);
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER legal_holds_audited
    AFTER INSERT OR UPDATE OR DELETE ON ops.legal_holds DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION ops.audit_hold();
-- No session setting turns these two off.
ALTER TABLE ops.legal_holds ENABLE ALWAYS TRIGGER legal_holds_audited;
ALTER TABLE ops.legal_holds ENABLE ALWAYS TRIGGER legal_holds_keep;
CREATE TRIGGER legal_holds_no_truncate BEFORE TRUNCATE ON ops.legal_holds
    FOR EACH STATEMENT EXECUTE FUNCTION ops.refuse_change();

-- A policy file is kept under its own hash and no other, so no document can be planted under one that the audit names.
CREATE FUNCTION ops.refuse_wrong_hash() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'a policy file is kept under the SHA-256 of its text' USING ERRCODE = 'check_violation';
END
$$;
CREATE TRIGGER policy_versions_hash BEFORE INSERT ON ops.policy_versions
    FOR EACH ROW WHEN (NEW.hash <> encode(sha256(convert_to(NEW.document, 'UTF8')), 'hex'))
    EXECUTE FUNCTION ops.refuse_wrong_hash();

-- What the migrations made, by its digest: migrate.py writes it after each migration, verify_audit compares.
CREATE TABLE ops.definitions (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    version     text        NOT NULL,  -- of the newest migration
    server      integer     NOT NULL,  -- major version: another one may print the same definition otherwise
    objects     jsonb       NOT NULL   -- name: SHA-256 of the definition
);
CREATE TRIGGER definitions_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON ops.definitions
    FOR EACH STATEMENT EXECUTE FUNCTION ops.refuse_change();
GRANT SELECT ON ops.definitions TO lifecycle_jobs, lifecycle_reader;
