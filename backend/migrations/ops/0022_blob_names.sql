-- One canonical name of a blob, whatever spelling a row holds. scripts/utils/blob_names.py is the same in Python, and a
-- test holds the two against each other.

DROP FUNCTION ops.blob_names(text, text);

-- Reads a row's value as the name of a blob.
--   store     of a delivery URL, in small letters; '': a pathname, so the store at hand; NULL: a host that is no store's
--   pathname  as the store writes it; NULL: the value is no name that the store would take
--   certain   the value can mean this one blob alone
--   key       equal for all values that may mean one blob, however they are spelled (a digest: an index takes any length)
-- No EXCEPTION: it would start a subtransaction, which a parallel worker may not before PostgreSQL 17.
CREATE FUNCTION ops.blob_parts(
    p_name text, OUT store text, OUT pathname text, OUT certain boolean, OUT key bytea)
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog
    AS $$
DECLARE
    c_octet   CONSTANT text COLLATE "C" := '%[0-9A-Fa-f]{2}';
    c_pieces  CONSTANT text COLLATE "C" := '%[0-9A-Fa-f]{2}|[^%]+|%';
    c_control CONSTANT text COLLATE "C" := '[\x01-\x1f\x7f]';
    -- UTF-8 in hexadecimal digits, without NUL, which text cannot hold.
    c_utf8    CONSTANT text COLLATE "C" := '^((0[1-9a-f]|[1-7][0-9a-f])|(c[2-9a-f]|d[0-9a-f])[89ab][0-9a-f]'
        '|e0[ab][0-9a-f][89ab][0-9a-f]|e[1-9a-cef]([89ab][0-9a-f]){2}|ed[89][0-9a-f][89ab][0-9a-f]'
        '|f0[9ab][0-9a-f]([89ab][0-9a-f]){2}|f[1-3]([89ab][0-9a-f]){3}|f48[0-9a-f]([89ab][0-9a-f]){2})*$';
    v_name    text COLLATE "C" := p_name;
    v_blanks  text COLLATE "C" := E' \x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13\x14'
                                  '\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f';
    v_text    text COLLATE "C";
    v_path    text COLLATE "C";
    v_next    text COLLATE "C";
    v_host    text COLLATE "C";
    v_match   text[] COLLATE "C";
    v_kept    text[] COLLATE "C" := '{}';
    v_bytes   bytea;
    v_odd     boolean;
BEGIN
    -- Nearly every name is one of these two, which are read ten times as fast.
    v_path := CASE WHEN v_name ~ '^https://[a-z0-9-]+\.(public|private)\.blob\.vercel-storage\.com/'
                   THEN substr(v_name, 9 + strpos(substr(v_name, 9), '/')) ELSE v_name END;
    IF v_path ~ '^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$'
       AND v_path !~* '\.blob\.vercel-storage\.com' THEN
        store := CASE WHEN v_path = v_name THEN '' ELSE split_part(substr(v_name, 9), '.', 1) END;
        pathname := v_path;
        certain := true;
        key := sha256(convert_to(v_path, 'UTF8'));
        RETURN;
    END IF;
    IF octet_length(v_name) > char_length(v_name) OR v_name ~ '%' THEN
        -- Every other blank and invisible character that may stand around a copied name.
        v_blanks := v_blanks || convert_from('\xc280c281c282c283c284c285c286c287c288c289c28ac28bc28cc28dc28ec28fc290c291c292c293c294c295c296c297c298c299c29ac29bc29cc29dc29ec29fc2a0e19a80e28080e28081e28082e28083e28084e28085e28086e28087e28088e28089e2808ae2808be2808ce2808de2808ee2808fe280a8e280a9e280aae280abe280ace280ade280aee280afe2819fe281a0e281a1e281a2e281a3e281a4e38080efbbbf', 'UTF8');
    END IF;
    v_text := btrim(v_name, v_blanks);
    v_odd := v_text <> v_name;
    IF v_text ~* '^(//)?[a-z0-9-]+\.(public|private)\.blob\.vercel-storage\.com([./:?#]|$)' THEN
        v_text := 'https://' || regexp_replace(v_text, '^//', '');
        v_odd := true;
    END IF;
    v_match := regexp_match(v_text, '^([A-Za-z][A-Za-z0-9+.-]*)://([^/?#\\]*)([^?#]*)');
    IF v_match IS NULL THEN
        v_odd := v_odd OR v_text ~ '://';
        store := CASE WHEN v_text !~ '://' THEN '' END;
        v_path := v_text;
        pathname := v_text;
        certain := v_text !~ '[?#\\%]';
    ELSE
        v_host := v_match[2];
        v_path := v_match[3];
        v_odd := v_odd OR NOT (lower(v_match[1]) = 'https' AND v_host ~ '^[^:@]*(:(443)?)?$'
                               OR lower(v_match[1]) = 'http' AND v_host ~ '^[^:@]*(:(80)?)?$') OR v_path ~ '\\';
        v_host := lower(regexp_replace(regexp_replace(v_host, '^.*@', ''), '\.?(:[^:]*)?$', ''));
        v_match := regexp_match(v_host, '^([a-z0-9-]+)\.(public|private)\.blob\.vercel-storage\.com$');
        store := v_match[1];
        certain := store IS NOT NULL;
        pathname := v_path;
        IF v_path ~ '%' THEN
            SELECT string_agg(CASE WHEN m[1] ~ c_octet THEN decode(substr(m[1], 2), 'hex')
                                   ELSE convert_to(m[1], 'UTF8') END, ''::bytea ORDER BY n)
              INTO v_bytes FROM regexp_matches(v_path, c_pieces, 'g') WITH ORDINALITY AS piece (m, n);
            v_odd := v_odd OR regexp_replace(v_path, c_octet, '', 'g') ~ '%' OR encode(v_bytes, 'hex') !~ c_utf8;
            pathname := CASE WHEN NOT v_odd THEN convert_from(v_bytes, 'UTF8') END;
        END IF;
    END IF;
    -- The store drops one slash at the front, and takes no control characters and no names of nothing.
    pathname := regexp_replace(pathname COLLATE "C", '^/', '');
    IF v_odd OR pathname COLLATE "C" = '' OR pathname COLLATE "C" ~ c_control THEN
        pathname := NULL;
    END IF;
    certain := certain AND pathname IS NOT NULL AND ('/' || pathname || '/') COLLATE "C" !~ '/\.{0,2}/';

    v_path := coalesce(pathname, v_path);
    WHILE v_path ~ c_octet LOOP
        SELECT string_agg(CASE WHEN m[1] ~ c_octet THEN decode(substr(m[1], 2), 'hex')
                               ELSE convert_to(m[1], 'UTF8') END, ''::bytea ORDER BY n)
          INTO v_bytes FROM regexp_matches(v_path, c_pieces, 'g') WITH ORDINALITY AS piece (m, n);
        EXIT WHEN encode(v_bytes, 'hex') !~ c_utf8;
        v_path := convert_from(v_bytes, 'UTF8');
    END LOOP;
    v_path := replace(regexp_replace(v_path, '[?#].*$', ''), '\', '/');
    v_path := regexp_replace(v_path, c_control, '', 'g');
    FOREACH v_next IN ARRAY string_to_array(v_path, '/') LOOP
        v_next := btrim(v_next, v_blanks);
        CONTINUE WHEN v_next IN ('', '.');
        IF v_next = '..' THEN
            v_kept := trim_array(v_kept, least(1, cardinality(v_kept)));
        ELSE
            v_kept := v_kept || v_next;
        END IF;
    END LOOP;
    key := sha256(convert_to(array_to_string(v_kept, '/'), 'UTF8'));
END
$$;

-- What to index where a table of many rows names blobs: CREATE INDEX … ON … (ops.blob_key(its column)).
CREATE FUNCTION ops.blob_key(p_name text) RETURNS bytea
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (ops.blob_parts(p_name)).key;

CREATE OR REPLACE FUNCTION ops.blob_pathname(p_name text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (ops.blob_parts(p_name)).pathname;

-- May this value mean that blob of that store? Where it is not certain what it means, it may. Ask it of values of one
-- key alone. Without a store ('') no store is told from another.
CREATE FUNCTION ops.may_name_blob(p_name text, p_store text, p_pathname text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (SELECT (p_store = '' OR n.store IS NULL OR n.store IN ('', p_store))
                   AND (NOT n.certain OR n.pathname COLLATE "C" = p_pathname COLLATE "C")
              FROM ops.blob_parts(p_name) n);

-- Why the store must not be asked to delete what ops.blob_parts has read, as a code; NULL: it may be.
CREATE FUNCTION ops.blob_trouble(p_of text, p_pathname text, p_store text, p_prefix text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN p_of IS NULL OR p_store <> '' AND p_of NOT IN ('', p_store) THEN 'foreign_store'
                WHEN p_pathname IS NULL THEN 'bad_name'
                WHEN NOT starts_with(p_pathname, p_prefix)
                     OR ('/' || p_pathname || '/') COLLATE "C" ~ '/\.{0,2}/' THEN 'outside_prefix' END;

GRANT EXECUTE ON FUNCTION ops.blob_parts, ops.blob_key, ops.may_name_blob, ops.blob_trouble
    TO lifecycle_jobs, lifecycle_reader;
