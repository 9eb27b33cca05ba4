-- Wholly expired partitions are dropped instead of emptied: what may be dropped, what was, and the only way to do it.

-- Written by migrate.py --grants alone: of these tables the jobs may drop partitions, and of no other.
CREATE TABLE ops.partition_rights (
    policy     text     PRIMARY KEY,
    table_name text     NOT NULL UNIQUE,  -- with its schema, as the policy file writes it
    anchor     text     NOT NULL,         -- the column that the table is partitioned by
    key        text     NOT NULL,
    person     text,
    keep       interval NOT NULL CHECK (keep > interval '0')
);

-- One row a partition that left its table. While it is 'detached' its rows are still there, and still to go.
CREATE TABLE ops.detached_partitions (
    id             uuid        PRIMARY KEY,  -- made by the client: settles an ambiguous COMMIT
    policy         text        NOT NULL,
    table_name     text        NOT NULL,
    partition_name text        NOT NULL,
    table_oid      oid         NOT NULL,
    partition_oid  oid         NOT NULL,
    bound          text        NOT NULL,     -- as PostgreSQL writes it in UTC: by it the partition is attached again
    ends_at        timestamptz NOT NULL,     -- every row's anchor lies before
    run_id         uuid        NOT NULL,
    cutoff_at      timestamptz NOT NULL,
    granted        boolean     NOT NULL,     -- whether the jobs may read it only since it was detached
    state          text        NOT NULL DEFAULT 'detached' CHECK (state IN
                       ('detached', 'dropped', 'attached', 'gone')),
    row_count      bigint,
    detached_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at      timestamptz,
    closed_by_run  uuid,
    CHECK ((state = 'detached') = (closed_at IS NULL)),
    CHECK ((state = 'dropped') = (row_count IS NOT NULL))
);
CREATE UNIQUE INDEX detached_partitions_open_idx ON ops.detached_partitions (partition_oid) WHERE state = 'detached';
CREATE INDEX detached_partitions_closed_by_run_idx ON ops.detached_partitions (closed_by_run);

-- The end of a range partition's bound as a moment; null: it has none, or is no moment. Naive columns hold UTC.
CREATE FUNCTION ops.bound_end(p_bound text, p_type oid) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO, YMD'
    AS $$
DECLARE
    v_end text := substring(p_bound FROM 'TO \(''([^'']*)''\)$');
BEGIN
    RETURN CASE p_type
        WHEN 'timestamptz'::regtype THEN v_end::timestamptz
        WHEN 'timestamp'::regtype THEN v_end::timestamp AT TIME ZONE 'UTC'
        WHEN 'date'::regtype THEN v_end::date::timestamp AT TIME ZONE 'UTC'
    END;
END
$$;

-- The partitions of a table that is partitioned by range of this one column, and that end by then, oldest first; or one
-- of them. An obstacle says why one may not be dropped whatever its age: what a DELETE would set off and a DROP would
-- not, what a DROP would pull along, and what is not ours to drop.
CREATE FUNCTION ops.partitions_of(p_table oid, p_anchor text, p_until timestamptz, p_only oid DEFAULT NULL)
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
               WHEN EXISTS (SELECT FROM ops.legal_holds h WHERE h.table_name = p.nspname || '.' || p.relname
                               AND h.released_at IS NULL AND (h.expires_at IS NULL OR h.expires_at > now()))
                   THEN 'is named by a legal hold'
           END
      FROM expired p ORDER BY p.ends_at, p.relname
$$;

-- What a run may drop, with the moment before which a row's anchor must lie.
CREATE FUNCTION ops.partition_right(p_run_id uuid, OUT r ops.partition_rights, OUT due_before timestamptz)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
    AS $$
DECLARE
    v_run ops.job_runs;
BEGIN
    SELECT * INTO v_run FROM ops.job_runs WHERE id = p_run_id AND status = 'running' AND cutoff_at <= clock_timestamp();
    SELECT * INTO r FROM ops.partition_rights WHERE policy = v_run.policy;
    IF r.policy IS NULL THEN
        RAISE EXCEPTION 'no run with the right to drop partitions' USING ERRCODE = 'LP001';
    END IF;
    due_before := v_run.cutoff_at - r.keep;
END
$$;

-- The mark of a partition that is still detached, locked; the partition itself too, unless it is gone or attached.
CREATE FUNCTION ops.detached_partition(p_id uuid) RETURNS ops.detached_partitions
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_mark ops.detached_partitions;
    v_name text;
BEGIN
    SELECT * INTO v_mark FROM ops.detached_partitions WHERE id = p_id AND state = 'detached' FOR UPDATE;
    IF v_mark.id IS NULL THEN
        RAISE EXCEPTION 'no partition is detached under this mark' USING ERRCODE = 'LP002';
    END IF;
    SELECT format('%I.%I', n.nspname, c.relname) INTO v_name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = v_mark.partition_oid AND c.relkind = 'r' AND NOT c.relispartition;
    IF v_name IS NOT NULL THEN
        EXECUTE 'LOCK TABLE ' || v_name || ' IN ACCESS EXCLUSIVE MODE';
    END IF;
    RETURN v_mark;
END
$$;

-- Quoted, with its schema, if the marked table is there and still stands alone; whoever asks has it locked.
CREATE FUNCTION ops.detached_name(p_partition oid) RETURNS text
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = p_partition AND c.relkind = 'r' AND NOT c.relispartition
       AND NOT EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
$$;

-- First step, a transaction of its own: the partition leaves its table, marked.
CREATE FUNCTION ops.detach_partition(p_id uuid, p_run_id uuid, p_partition oid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO, YMD'
    AS $$
DECLARE
    v_right  ops.partition_rights;
    v_due    timestamptz;
    v_parent oid;
    v_table  text;
    v_found  record;
BEGIN
    SELECT (x.r).*, x.due_before INTO v_right.policy, v_right.table_name, v_right.anchor, v_right.key, v_right.person,
           v_right.keep, v_due FROM ops.partition_right(p_run_id) x;
    SELECT c.oid, format('%I.%I', n.nspname, c.relname) INTO v_parent, v_table
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname || '.' || c.relname = v_right.table_name AND c.relkind = 'p';
    -- Before it is looked at, so that what is looked at stays so.
    IF v_table IS NOT NULL THEN
        EXECUTE 'LOCK TABLE ONLY ' || v_table || ' IN ACCESS EXCLUSIVE MODE';
    END IF;
    SELECT * INTO v_found FROM ops.partitions_of(v_parent, v_right.anchor, v_due, p_partition) p WHERE p.obstacle IS NULL;
    IF v_found.partition IS NULL THEN
        RAISE EXCEPTION 'this is no expired partition that may be dropped' USING ERRCODE = 'LP003';
    END IF;
    INSERT INTO ops.detached_partitions
        (id, policy, table_name, partition_name, table_oid, partition_oid, bound, ends_at, run_id, cutoff_at, granted)
    SELECT p_id, v_right.policy, v_right.table_name, v_found.schema_name || '.' || v_found.partition_name, v_parent,
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

-- Second step: nobody changes it any more until this transaction is over. Null: it is gone, or no table of its own.
CREATE FUNCTION ops.lock_partition(p_id uuid) RETURNS oid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_mark ops.detached_partitions := ops.detached_partition(p_id);
BEGIN
    RETURN CASE WHEN ops.detached_name(v_mark.partition_oid) IS NOT NULL THEN v_mark.partition_oid END;
END
$$;

-- Third step, in the same transaction, behind the gate: the audit of exactly its rows, and the DROP. Holds are looked at
-- here as well; the policy's own conditions are the caller's.
CREATE FUNCTION ops.drop_partition(p_id uuid, p_run_id uuid, p_actor text, p_reason text, p_metadata jsonb)
    RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET row_security = off
    AS $$
DECLARE
    v_right   ops.partition_rights;
    v_due     timestamptz;
    v_mark    ops.detached_partitions := ops.detached_partition(p_id);
    v_name    text := ops.detached_name(v_mark.partition_oid);
    v_person  text;
    v_rows    bigint;
    v_kept    bigint;
    v_audited bigint;
BEGIN
    SELECT (x.r).*, x.due_before INTO v_right.policy, v_right.table_name, v_right.anchor, v_right.key, v_right.person,
           v_right.keep, v_due FROM ops.partition_right(p_run_id) x;
    IF v_name IS NULL OR v_right.policy <> v_mark.policy OR v_right.table_name <> v_mark.table_name
       OR v_mark.ends_at > v_due THEN
        RAISE EXCEPTION 'this partition may not be dropped by this run' USING ERRCODE = 'LP003';
    END IF;
    v_person := CASE WHEN v_right.person IS NULL THEN 'NULL::text' ELSE format('t.%I::text', v_right.person) END;
    -- One pass. Sorted before the audit is written, so that its head is not locked while the table is being read.
    -- A naive column holds UTC, as the session does here; a date is compared as the midnight that it begins with.
    EXECUTE format(
        'SELECT coalesce(sum(c.rows), 0), coalesce(sum(c.kept), 0),'
        '       coalesce(sum(cardinality(c.keys)) FILTER (WHERE c.entry IS NOT NULL), 0) FROM ('
        ' SELECT b.*, ops.append_audit(gen_random_uuid(), $4, ''delete'', $2, $5, $6, b.keys, $7) AS entry FROM ('
        '  SELECT k.chunk, array_agg(k.key) AS keys, count(*) AS rows, count(*) FILTER (WHERE k.kept) AS kept FROM ('
        '   SELECT t.%1$I::text AS key, (row_number() OVER () - 1) / 5000 AS chunk,'
        '    t.%1$I IS NULL OR (t.%2$I::timestamptz < $1) IS NOT TRUE'
        '    OR t.%1$I::text IN (SELECT h.resource_id FROM ops.legal_holds h WHERE h.scope = ''row'''
        '        AND h.table_name = $2 AND h.released_at IS NULL AND (h.expires_at IS NULL OR h.expires_at > now()))'
        '    OR %3$s IN (SELECT h.person FROM ops.legal_holds h WHERE h.scope = ''person'''
        '        AND h.released_at IS NULL AND (h.expires_at IS NULL OR h.expires_at > now()))'
        '    OR EXISTS (SELECT FROM ops.legal_holds h WHERE h.scope = ''table'' AND h.table_name IN ($2, $3)'
        '        AND h.released_at IS NULL AND (h.expires_at IS NULL OR h.expires_at > now())) AS kept FROM ONLY %4$s t'
        '  ) k GROUP BY k.chunk ORDER BY k.chunk OFFSET 0) b OFFSET 0) c', v_right.key, v_right.anchor, v_person, v_name)
       INTO v_rows, v_kept, v_audited
      USING v_due, v_right.table_name, v_mark.partition_name, p_actor, p_reason, p_run_id,
            p_metadata || jsonb_build_object('partition', v_mark.partition_name, 'mark', v_mark.id);
    IF v_kept > 0 THEN
        RAISE EXCEPTION 'rows of the partition may not go' USING ERRCODE = 'LP004';
    END IF;
    IF v_audited <> v_rows THEN
        RAISE EXCEPTION 'the audit does not hold exactly what would go' USING ERRCODE = 'LP004';
    END IF;
    EXECUTE 'DROP TABLE ' || v_name || ' RESTRICT';
    UPDATE ops.detached_partitions SET state = 'dropped', row_count = v_rows, closed_at = clock_timestamp(),
           closed_by_run = p_run_id WHERE id = p_id;
    RETURN v_rows;
END
$$;

-- The way back, with the bound that it had. Returns what became of it: attached, or gone.
CREATE FUNCTION ops.attach_partition(p_id uuid, p_run_id uuid) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO, YMD'
    AS $$
DECLARE
    v_mark  ops.detached_partitions := ops.detached_partition(p_id);
    v_name  text := ops.detached_name(v_mark.partition_oid);
    v_table text;
    v_state text := 'attached';
BEGIN
    IF v_name IS NOT NULL THEN
        SELECT format('%I.%I', n.nspname, c.relname) INTO STRICT v_table
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = v_mark.table_oid;
        IF v_mark.granted THEN
            EXECUTE format('REVOKE SELECT ON %s FROM lifecycle_jobs', v_name);
        END IF;
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s %s', v_table, v_name, v_mark.bound);
    ELSIF NOT EXISTS (SELECT FROM pg_class WHERE oid = v_mark.partition_oid) THEN
        v_state := 'gone';  -- somebody dropped it by hand; the suite did not, and does not say so
    END IF;
    UPDATE ops.detached_partitions SET state = v_state, closed_at = clock_timestamp(), closed_by_run = p_run_id
     WHERE id = p_id;
    RETURN v_state;
END
$$;

-- migrate.py --grants lets the jobs call these, where a policy's table is partitioned.
REVOKE ALL ON FUNCTION ops.detach_partition, ops.lock_partition, ops.drop_partition, ops.attach_partition,
    ops.detached_partition FROM PUBLIC;
GRANT SELECT ON ops.partition_rights, ops.detached_partitions TO lifecycle_jobs;
