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

-- The periods that the rows of another table say, as the last completed run of a policy found them: a run asks before
-- it deletes by one that became shorter since. A key is a 64-bit hash under a random seed, so it names nobody.
CREATE TABLE ops.period_sources (
    policy  text        NOT NULL,
    rule    text        NOT NULL,
    source  text        NOT NULL,
    seed    bigint      NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (policy, rule)
);
CREATE TABLE ops.row_periods (
    policy text     NOT NULL,
    rule   text     NOT NULL,
    key    bigint   NOT NULL,
    period interval,
    PRIMARY KEY (policy, rule, key),
    FOREIGN KEY (policy, rule) REFERENCES ops.period_sources ON DELETE CASCADE
);
COMMENT ON COLUMN ops.row_periods.period IS 'null: forever';
GRANT SELECT, INSERT, UPDATE, DELETE ON ops.period_sources, ops.row_periods TO lifecycle_jobs;
GRANT SELECT ON ops.period_sources, ops.row_periods TO lifecycle_reader;
