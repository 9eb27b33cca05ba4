-- Partitions of a policy that archives first: dropped whole too, once the store has every row of them in archives.

-- Written by migrate.py --grants: a partition of such a policy is not dropped without its archives.
ALTER TABLE ops.partition_rights ADD COLUMN archives boolean NOT NULL DEFAULT false;

-- The beginning of a range partition's bound as a moment; null: it has none, or is no moment.
CREATE FUNCTION ops.bound_start(p_bound text, p_type oid) RETURNS timestamptz
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO, YMD'
    AS $$
    SELECT ops.bound_end('TO (''' || substring(p_bound FROM '^FOR VALUES FROM \(''([^'']*)''\)') || ''')', p_type)
$$;

-- As before, but the columns of the right are named one by one, for there is one more of them now.
CREATE OR REPLACE FUNCTION ops.detach_partition(p_id uuid, p_run_id uuid, p_partition oid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO, YMD'
    AS $$
DECLARE
    v_allowed record;
    v_parent  oid;
    v_table   text;
    v_found   record;
BEGIN
    SELECT (x.r).policy, (x.r).table_name, (x.r).anchor, x.due_before INTO v_allowed
      FROM ops.partition_right(p_run_id) x;
    SELECT c.oid, format('%I.%I', n.nspname, c.relname) INTO v_parent, v_table
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname || '.' || c.relname = v_allowed.table_name AND c.relkind = 'p';
    -- Before it is looked at, so that what is looked at stays so.
    IF v_table IS NOT NULL THEN
        EXECUTE 'LOCK TABLE ONLY ' || v_table || ' IN ACCESS EXCLUSIVE MODE';
    END IF;
    SELECT * INTO v_found FROM ops.partitions_of(v_parent, v_allowed.anchor, v_allowed.due_before, p_partition) p
     WHERE p.obstacle IS NULL;
    IF v_found.partition IS NULL THEN
        RAISE EXCEPTION 'this is no expired partition that may be dropped' USING ERRCODE = 'LP003';
    END IF;
    INSERT INTO ops.detached_partitions
        (id, policy, table_name, partition_name, table_oid, partition_oid, bound, ends_at, run_id, cutoff_at, granted)
    SELECT p_id, v_allowed.policy, v_allowed.table_name, v_found.schema_name || '.' || v_found.partition_name, v_parent,
           p_partition, v_found.bound, v_found.ends_at, p_run_id, r.cutoff_at,
           NOT has_table_privilege('lifecycle_jobs', p_partition, 'SELECT')
      FROM ops.job_runs r WHERE r.id = p_run_id;
    EXECUTE format('ALTER TABLE %s DETACH PARTITION %I.%I', v_table, v_found.schema_name, v_found.partition_name);
    IF ops.detached_name(p_partition) IS NULL THEN
        RAISE EXCEPTION 'the partition is another one than was asked for' USING ERRCODE = 'LP003';
    END IF;
    -- Its rows are looked at once more, on the table itself.
    EXECUTE format('GRANT SELECT ON %I.%I TO lifecycle_jobs', v_found.schema_name, v_found.partition_name);
END
$$;

-- Third step, in the same transaction, behind the gate: the audit of exactly the partition's rows, and the DROP. Holds
-- are looked at here as well; the policy's own conditions are the caller's.
--
-- p_archives: null where the policy deletes. Else what the store has of the partition, in the order of anchor and key,
-- [{"archive": id, "until_anchor": text, "until_key": text, "sha256": hex}, …]: each piece begins where the one before
-- ended, and holds the very versions that are here. The digest is over "ctid xmin key" of each row, sorted by bytes.
DROP FUNCTION ops.drop_partition(uuid, uuid, text, text, jsonb);
CREATE FUNCTION ops.drop_partition(
    p_id uuid, p_run_id uuid, p_actor text, p_reason text, p_metadata jsonb, p_archives jsonb) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO, YMD' SET row_security = off
    AS $$
DECLARE
    v_allowed record;
    v_mark    ops.detached_partitions := ops.detached_partition(p_id);
    v_name    text := ops.detached_name(v_mark.partition_oid);
    v_person  text;
    v_pieces  jsonb[] := '{"{}"}';
    v_within  text[] := '{true}';  -- SQL on the partition as t: each piece's rows
    v_after   text := 'true';
    v_piece   jsonb;
    v_edge    text;
    v_digest  text;
    v_rows    bigint;
    v_kept    bigint;
    v_audited bigint;
    v_total   bigint := 0;
BEGIN
    SELECT (x.r).policy, (x.r).table_name, (x.r).anchor, (x.r).key, (x.r).person, (x.r).archives, x.due_before
      INTO v_allowed FROM ops.partition_right(p_run_id) x;
    IF v_name IS NULL OR v_allowed.policy <> v_mark.policy OR v_allowed.table_name <> v_mark.table_name
       OR v_mark.ends_at > v_allowed.due_before OR v_allowed.archives <> (p_archives IS NOT NULL) THEN
        RAISE EXCEPTION 'this partition may not be dropped by this run' USING ERRCODE = 'LP003';
    END IF;
    v_person := CASE WHEN v_allowed.person IS NULL THEN 'NULL::text' ELSE format('t.%I::text', v_allowed.person) END;
    IF p_archives IS NOT NULL THEN
        v_pieces := ARRAY(SELECT value FROM jsonb_array_elements(p_archives));
        v_within := '{}';
        -- All of them before the first audit entry: from then on others wait for the audit's head.
        FOREACH v_piece IN ARRAY v_pieces LOOP
            SELECT format('(%L::%s, %L::%s)', v_piece ->> 'until_anchor', format_type(a.atttypid, NULL),
                          v_piece ->> 'until_key', format_type(k.atttypid, NULL)) INTO STRICT v_edge
              FROM pg_attribute a, pg_attribute k
             WHERE a.attrelid = v_mark.partition_oid AND a.attname = v_allowed.anchor
               AND k.attrelid = v_mark.partition_oid AND k.attname = v_allowed.key;
            v_within := v_within
                || format('%s AND (t.%I, t.%I) <= %s', v_after, v_allowed.anchor, v_allowed.key, v_edge);
            v_after := format('(t.%I, t.%I) > %s', v_allowed.anchor, v_allowed.key, v_edge);
            EXECUTE format(
                'SELECT encode(sha256(convert_to(string_agg(r.line, E''\n'' ORDER BY r.line), ''UTF8'')), ''hex'') FROM ('
                ' SELECT (t.ctid || '' '' || t.xmin || '' '' || t.%I::text) COLLATE "C" AS line FROM ONLY %s t WHERE %s'
                ') r', v_allowed.key, v_name, v_within[cardinality(v_within)])
               INTO v_digest;
            IF v_digest IS DISTINCT FROM v_piece ->> 'sha256' OR NOT EXISTS (
                SELECT FROM ops.archives a WHERE a.id = (v_piece ->> 'archive')::uuid
                   AND a.policy = v_mark.policy AND a.table_name = v_mark.table_name AND a.run_id = p_run_id) THEN
                RAISE EXCEPTION 'the archives do not hold exactly what would go' USING ERRCODE = 'LP004';
            END IF;
        END LOOP;
    END IF;
    FOR v_place IN 1 .. cardinality(v_pieces) LOOP
        -- One pass. Sorted before the audit is written, so that its head is not locked while the table is being read.
        -- A naive column holds UTC, as the session does here; a date is compared as the midnight that it begins with.
        EXECUTE format(
            'SELECT coalesce(sum(c.rows), 0), coalesce(sum(c.kept), 0),'
            '       coalesce(sum(cardinality(c.keys)) FILTER (WHERE c.entry IS NOT NULL), 0) FROM ('
            ' SELECT b.*, ops.append_audit(gen_random_uuid(), $4, $8, $2, $5, $6, b.keys, $7) AS entry FROM ('
            '  SELECT k.chunk, array_agg(k.key) AS keys, count(*) AS rows, count(*) FILTER (WHERE k.kept) AS kept FROM ('
            '   SELECT t.%1$I::text AS key, (row_number() OVER () - 1) / 5000 AS chunk,'
            '    t.%1$I IS NULL OR (t.%2$I::timestamptz < $1) IS NOT TRUE'
            '    OR t.%1$I::text IN (SELECT h.resource_id FROM ops.legal_holds h WHERE h.scope = ''row'''
            '        AND h.table_name = $2 AND h.released_at IS NULL AND (h.expires_at IS NULL OR h.expires_at > now()))'
            '    OR %3$s IN (SELECT h.person FROM ops.legal_holds h WHERE h.scope = ''person'''
            '        AND h.released_at IS NULL AND (h.expires_at IS NULL OR h.expires_at > now()))'
            '    OR EXISTS (SELECT FROM ops.legal_holds h WHERE h.scope = ''table'' AND h.table_name IN ($2, $3)'
            '        AND h.released_at IS NULL AND (h.expires_at IS NULL OR h.expires_at > now())) AS kept'
            '     FROM ONLY %4$s t WHERE %5$s'
            '  ) k GROUP BY k.chunk ORDER BY k.chunk OFFSET 0) b OFFSET 0) c',
            v_allowed.key, v_allowed.anchor, v_person, v_name, v_within[v_place])
           INTO v_rows, v_kept, v_audited
          USING v_allowed.due_before, v_allowed.table_name, v_mark.partition_name, p_actor, p_reason, p_run_id,
                p_metadata || jsonb_build_object('partition', v_mark.partition_name, 'mark', v_mark.id)
                           || (v_pieces[v_place] - ARRAY['until_anchor', 'until_key', 'sha256']),
                CASE WHEN v_allowed.archives THEN 'archive_then_delete' ELSE 'delete' END;
        IF v_kept > 0 THEN
            RAISE EXCEPTION 'rows of the partition may not go' USING ERRCODE = 'LP004';
        END IF;
        IF v_audited <> v_rows THEN
            RAISE EXCEPTION 'the audit does not hold exactly what would go' USING ERRCODE = 'LP004';
        END IF;
        IF v_allowed.archives THEN
            PERFORM ops.seal_archive((v_pieces[v_place] ->> 'archive')::uuid, v_rows);
        END IF;
        v_total := v_total + v_rows;
    END LOOP;
    EXECUTE format('SELECT count(*) FROM ONLY %s', v_name) INTO v_rows;
    IF v_rows <> v_total THEN
        RAISE EXCEPTION 'the archives do not hold exactly what would go' USING ERRCODE = 'LP004';
    END IF;
    EXECUTE 'DROP TABLE ' || v_name || ' RESTRICT';
    UPDATE ops.detached_partitions SET state = 'dropped', row_count = v_total, closed_at = clock_timestamp(),
           closed_by_run = p_run_id WHERE id = p_id;
    RETURN v_total;
END
$$;

-- migrate.py --grants lets the jobs call it again.
REVOKE ALL ON FUNCTION ops.drop_partition FROM PUBLIC;
