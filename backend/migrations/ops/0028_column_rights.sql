-- Rights by column: a role that only exports a person's data, and a detached partition read as its parent was.

-- Roles belong to the whole server, so another database's migration may be creating this one right now.
DO $$
BEGIN
    -- LOGIN without a password: nobody can log in until an administrator sets one.
    CREATE ROLE lifecycle_export LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;
GRANT USAGE ON SCHEMA ops TO lifecycle_export;
GRANT SELECT ON ops.manual_resolution_queue TO lifecycle_export;
GRANT EXECUTE ON FUNCTION ops.normal_address TO lifecycle_export;

-- As before, but on the detached partition the jobs may read the columns that they may read of its parent, no more.
CREATE OR REPLACE FUNCTION ops.detach_partition(p_id uuid, p_run_id uuid, p_partition oid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO, YMD'
    AS $$
DECLARE
    v_allowed record;
    v_parent  oid;
    v_table   text;
    v_found   record;
    v_columns text;
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
    IF has_table_privilege('lifecycle_jobs', v_parent, 'SELECT') THEN
        EXECUTE format('GRANT SELECT ON %I.%I TO lifecycle_jobs', v_found.schema_name, v_found.partition_name);
    ELSE
        SELECT string_agg(quote_ident(p.attname), ', ') INTO v_columns
          FROM pg_attribute p JOIN pg_attribute c ON c.attrelid = p_partition AND c.attname = p.attname
         WHERE p.attrelid = v_parent AND NOT p.attisdropped
           AND has_column_privilege('lifecycle_jobs', v_parent, p.attnum, 'SELECT');
        EXECUTE format('GRANT SELECT (%s) ON %I.%I TO lifecycle_jobs', v_columns, v_found.schema_name,
                       v_found.partition_name);
    END IF;
END
$$;
