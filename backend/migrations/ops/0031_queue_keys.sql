-- A closed item of the manual-resolution queue keeps no key that is an address: its keyed pseudonym takes its place.

ALTER TABLE ops.manual_resolution_queue
    ADD said text; -- the keyed pseudonym of a key that holds an address: what the audit calls the row

CREATE FUNCTION ops.forget_queue_row() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    NEW.resource_id := NEW.said;
    RETURN NEW;
END
$$;
CREATE TRIGGER manual_resolution_queue_forget BEFORE UPDATE ON ops.manual_resolution_queue
    FOR EACH ROW WHEN (NEW.status = 'resolved' AND NEW.said IS NOT NULL) EXECUTE FUNCTION ops.forget_queue_row();
REVOKE ALL ON FUNCTION ops.forget_queue_row FROM PUBLIC;
