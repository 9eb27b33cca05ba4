-- What a legal hold in force is, written once: neither released nor past its expiry.

-- PostgreSQL inlines the view, so a batch's plan is the one that the conditions themselves would get.
CREATE VIEW ops.holds_in_force AS
    SELECT id, scope, table_name, resource_id, person, reason, placed_by, placed_at, expires_at
      FROM ops.legal_holds
     WHERE released_at IS NULL AND (expires_at IS NULL OR expires_at > now());
GRANT SELECT ON ops.holds_in_force TO lifecycle_jobs, lifecycle_reader;

-- The two functions that asked for it themselves; the rest of each is as before.
CREATE OR REPLACE FUNCTION ops.partitions_of(p_table oid, p_anchor text, p_until timestamptz, p_only oid DEFAULT NULL)
    RETURNS TABLE (partition oid, schema_name text, partition_name text, bound text, ends_at timestamptz, obstacle text)
    LANGUAGE sql STABLE
    -- Compiling this takes a hundred times as long as running it, and a DETACH holds the table's lock meanwhile.
    SET jit = off
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO, YMD'
    AS $$
    WITH partitions AS MATERIALIZED (
        SELECT c.oid, c.relnamespace, c.relname::text, c.relkind, c.relowner, parent.relowner AS parent_owner,
               pg_get_expr(c.relpartbound, c.oid) AS bound,
               ops.bound_end(pg_get_expr(c.relpartbound, c.oid), a.atttypid) AS ends_at
          FROM pg_partitioned_table p JOIN pg_class parent ON parent.oid = p.partrelid
          JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0] AND a.attname = p_anchor
          JOIN pg_inherits i ON i.inhparent = p.partrelid AND NOT i.inhdetachpending
          JOIN pg_class c ON c.oid = i.inhrelid
         WHERE p.partrelid = p_table AND p.partstrat = 'r' AND p.partnatts = 1
    ), expired AS MATERIALIZED (
        SELECT p.*, n.nspname::text FROM partitions p JOIN pg_namespace n ON n.oid = p.relnamespace
         WHERE p.ends_at <= p_until AND (p_only IS NULL OR p.oid = p_only)
    )
    SELECT p.oid, p.nspname, p.relname, p.bound, p.ends_at,
           CASE
               WHEN p.relkind = 'p' THEN 'is partitioned itself'
               WHEN p.relkind <> 'r' THEN 'is no plain table'
               -- pg_partman works out the next partition from the newest one, and so do people.
               WHEN p.ends_at = (SELECT max(o.ends_at) FROM partitions o) THEN 'is the newest'
               WHEN NOT (SELECT pg_has_role(f.proowner, p.relowner, 'USAGE')
                                AND pg_has_role(f.proowner, p.parent_owner, 'USAGE')
                           FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
                          WHERE n.nspname = 'ops' AND f.proname = 'drop_partition')
                   THEN 'belongs to a role that the migrations'' role is no member of'
               WHEN NOT has_schema_privilege('lifecycle_jobs', p.relnamespace, 'USAGE')
                   THEN 'lies in a schema that the jobs may not use'
               WHEN EXISTS (SELECT FROM pg_constraint k
                             WHERE k.contype = 'f' AND k.confrelid IN (SELECT relid FROM pg_partition_ancestors(p.oid)))
                   THEN 'is referred to by a foreign key'
               WHEN EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid IN (SELECT relid FROM pg_partition_ancestors(p.oid))
                               AND NOT g.tgisinternal AND g.tgenabled <> 'D' AND g.tgtype & 40 <> 0)  -- DELETE, TRUNCATE
                   THEN 'has a trigger that wants to see its rows go'
               WHEN EXISTS (SELECT FROM pg_publication b JOIN pg_publication_tables x ON x.pubname = b.pubname
                              JOIN pg_namespace s ON s.nspname = x.schemaname
                              JOIN pg_class t ON t.relnamespace = s.oid AND t.relname = x.tablename
                             WHERE b.pubdelete AND t.oid IN (SELECT relid FROM pg_partition_ancestors(p.oid)))
                   THEN 'is published: its subscribers would keep the rows'
               WHEN EXISTS (SELECT FROM ops.holds_in_force h WHERE h.table_name = p.nspname || '.' || p.relname)
                   THEN 'is named by a legal hold'
           END
      FROM expired p ORDER BY p.ends_at, p.relname
$$;

CREATE OR REPLACE FUNCTION ops.drop_partition(
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
            '    OR t.%1$I::text IN (SELECT h.resource_id FROM ops.holds_in_force h WHERE h.scope = ''row'''
            '        AND h.table_name = $2)'
            '    OR %3$s IN (SELECT h.person FROM ops.holds_in_force h WHERE h.scope = ''person'')'
            '    OR EXISTS (SELECT FROM ops.holds_in_force h WHERE h.scope = ''table'''
            '        AND h.table_name IN ($2, $3)) AS kept'
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
