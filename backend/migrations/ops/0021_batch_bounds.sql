-- A batch has at most as many records as its policy allows, dependants included, whatever the statistics say.

-- Returns the number; raises LA003 where it is too high, which undoes the batch before anything of it is visible.
CREATE FUNCTION ops.at_most(p_records bigint, p_most bigint) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF p_records > p_most THEN
        RAISE EXCEPTION 'a batch of % records may have % at most', p_records, p_most USING ERRCODE = 'LA003';
    END IF;
    RETURN p_records;
END
$$;
REVOKE ALL ON FUNCTION ops.at_most FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ops.at_most TO lifecycle_jobs;

-- Rows of other tables that went with the policy's own, or were cut off from them; records_processed does not count them.
ALTER TABLE ops.job_runs ADD COLUMN dependants_processed bigint NOT NULL DEFAULT 0;
