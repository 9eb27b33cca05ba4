-- An intent tells its row from one of another inheritance child, and keeps no key that may be personal once it is closed.

ALTER TABLE ops.blob_deletions
    ADD said text,                   -- the keyed pseudonym of a key that may be personal: what the audit calls the row
    ADD home oid NOT NULL DEFAULT 0; -- where a table has children: the one that holds the row; 0: not noted
DROP INDEX ops.blob_deletions_open_idx;
CREATE UNIQUE INDEX blob_deletions_open_idx ON ops.blob_deletions (table_name, resource_id, home)
    WHERE closed_at IS NULL;

CREATE FUNCTION ops.forget_blob_row() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    NEW.resource_id := NEW.said;
    RETURN NEW;
END
$$;
CREATE TRIGGER blob_deletions_forget BEFORE UPDATE ON ops.blob_deletions
    FOR EACH ROW WHEN (NEW.closed_at IS NOT NULL AND NEW.said IS NOT NULL) EXECUTE FUNCTION ops.forget_blob_row();
REVOKE ALL ON FUNCTION ops.forget_blob_row FROM PUBLIC;
