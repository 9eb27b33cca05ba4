-- A table with everything that inherits from it, to any depth: partitions, and children by INHERITS. A statement on a
-- table reaches its whole tree, so constraints, triggers, rules, indexes and row-level security are asked of all of it.
CREATE FUNCTION ops.table_tree(p_table oid) RETURNS TABLE (relid oid)
    LANGUAGE sql STABLE ROWS 10
    SET search_path = pg_catalog, pg_temp
    AS $$
    WITH RECURSIVE tree (relid) AS (
        SELECT p_table
         UNION
        SELECT i.inhrelid FROM pg_inherits i JOIN tree t ON t.relid = i.inhparent
    )
    SELECT t.relid FROM tree t
$$;

GRANT EXECUTE ON FUNCTION ops.table_tree TO lifecycle_jobs, lifecycle_reader;
