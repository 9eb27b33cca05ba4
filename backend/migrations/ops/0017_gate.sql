-- The gate becomes a lock on a table. An advisory lock asks for no right: every login of the database could close the
-- gate with the key, which pg_locks shows to everybody.

-- Waits for the batches of the version before. One that begins afterwards fails for want of ops.gate_key() and deletes
-- nothing: two versions with two gates would not stop each other.
SELECT pg_advisory_xact_lock(ops.gate_key());

-- It has no rows and no columns. Nobody has a right on it, so only the two functions lock it.
CREATE TABLE ops.gate ();
COMMENT ON TABLE ops.gate IS 'locked by ops.gate_shared() and ops.gate_exclusive(), never read or written';

-- The modes conflict with each other, with neither pg_dump (ACCESS SHARE) nor a batch of another job (ROW SHARE).
-- A waiting exclusive request queues the shared ones that come after it, so batches cannot starve a hold.
CREATE FUNCTION ops.gate_shared() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'behind the gate a statement must see what was committed before it: use READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    LOCK TABLE ops.gate IN ROW SHARE MODE;
END
$$;
COMMENT ON FUNCTION ops.gate_shared IS 'a statement of its own before a batch: what follows sees what was committed behind the gate';

CREATE FUNCTION ops.gate_exclusive() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    LOCK TABLE ops.gate IN EXCLUSIVE MODE;
END
$$;
COMMENT ON FUNCTION ops.gate_exclusive IS 'waits for the batches under way; until COMMIT no other one begins';

REVOKE ALL ON FUNCTION ops.gate_shared, ops.gate_exclusive FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ops.gate_shared, ops.gate_exclusive TO lifecycle_jobs;

-- With its owner's rights: who may write a hold or a stop may close the gate for it.
CREATE OR REPLACE FUNCTION ops.close_gate() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM ops.gate_exclusive();
    RETURN NULL;
END
$$;

DROP FUNCTION ops.gate_key();
