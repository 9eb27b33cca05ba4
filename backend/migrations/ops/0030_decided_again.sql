-- A batch that decided by values of other tables decides once more before its COMMIT.

-- Returns 0; raises LA004 where rows may not go any more, which undoes the batch before anything of it is visible.
CREATE FUNCTION ops.none_rescued(p_rows bigint) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF p_rows > 0 THEN
        RAISE EXCEPTION '% rows of the batch may not go any more: what they look up was changed', p_rows
            USING ERRCODE = 'LA004';
    END IF;
    RETURN p_rows;
END
$$;
REVOKE ALL ON FUNCTION ops.none_rescued FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ops.none_rescued TO lifecycle_jobs;
