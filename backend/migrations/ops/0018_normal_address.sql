-- Which two spellings of an address are one mailbox. The same rule as normal_form in scripts/utils/addresses.py, and the
-- same answer whatever the database's LC_CTYPE: COLLATE "C" folds A to Z and nothing else.
-- No SET and not STRICT, so that the planner can write it into a query, and an index on it can serve large tables.
CREATE FUNCTION ops.normal_address(p_text text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN lower(btrim(p_text, E' \t\n\r\f\v') COLLATE "C") ~ '^[^"@]+@(gmail|googlemail)\.com$' THEN
            replace(split_part(split_part(lower(btrim(p_text, E' \t\n\r\f\v') COLLATE "C"), '@', 1), '+', 1), '.', '')
            || '@gmail.com'
        WHEN btrim(p_text, E' \t\n\r\f\v') LIKE '"%' THEN
            regexp_replace(lower(btrim(p_text, E' \t\n\r\f\v') COLLATE "C"),
                $re$^"([a-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*)"(@(?!(?:gmail|googlemail)\.com$)[^@]*)$$re$, '\1\2')
        ELSE lower(btrim(p_text, E' \t\n\r\f\v') COLLATE "C")
    END;
GRANT EXECUTE ON FUNCTION ops.normal_address TO lifecycle_jobs, lifecycle_reader;

-- A hold that somebody writes with SQL names its person by the same rule, or it would hold nothing.
CREATE FUNCTION ops.normal_person() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    NEW.person := ops.normal_address(NEW.person);
    RETURN NEW;
END
$$;
UPDATE ops.legal_holds SET person = ops.normal_address(person) WHERE person <> ops.normal_address(person);
CREATE TRIGGER legal_holds_normal_person BEFORE INSERT OR UPDATE OF person ON ops.legal_holds
    FOR EACH ROW WHEN (NEW.person IS NOT NULL) EXECUTE FUNCTION ops.normal_person();

-- Words on the queue are folded by the same rule.
CREATE OR REPLACE FUNCTION ops.queue_item_words(p_reason text, p_context jsonb, p_justification text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog
    AS $$ SELECT lower(concat_ws(' ', p_reason, p_context::text, p_justification) COLLATE "C") $$;

-- The function that drops an expired partition looks for held people itself; the rest of it is as before.
DO $do$
DECLARE
    v_before constant text := $$format('t.%I::text', v_allowed.person)$$;
    v_source text := pg_get_functiondef('ops.drop_partition'::regproc);
BEGIN
    IF position(v_before IN v_source) = 0 THEN
        RAISE EXCEPTION 'ops.drop_partition is not the one that this migration changes';
    END IF;
    EXECUTE replace(v_source, v_before, $$format('ops.normal_address(t.%I::text)', v_allowed.person)$$);
END
$do$;
