-- Every blob that a value may mean, where it is not the name of one: the name in quotes, brackets, JSON or markdown, in
-- the query of another URL, below a folder of another host. scripts/utils/blob_names.py is the same in Python, and a
-- test holds the two against each other.

-- The value with its percent-encoded octets decoded as often as there are any, with slashes and blanks made plain.
CREATE FUNCTION ops.blob_text(p_name text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog
    AS $$
DECLARE
    c_octet  CONSTANT text COLLATE "C" := '%[0-9A-Fa-f]{2}';
    c_pieces CONSTANT text COLLATE "C" := '%[0-9A-Fa-f]{2}|[^%]+|%';
    c_utf8   CONSTANT text COLLATE "C" := '^((0[1-9a-f]|[1-7][0-9a-f])|(c[2-9a-f]|d[0-9a-f])[89ab][0-9a-f]'
        '|e0[ab][0-9a-f][89ab][0-9a-f]|e[1-9a-cef]([89ab][0-9a-f]){2}|ed[89][0-9a-f][89ab][0-9a-f]'
        '|f0[9ab][0-9a-f]([89ab][0-9a-f]){2}|f[1-3]([89ab][0-9a-f]){3}|f48[0-9a-f]([89ab][0-9a-f]){2})*$';
    c_blanks CONSTANT text COLLATE "C" :=
        '[\x01-\x20\x7f\u0080-\u00a0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]*';
    v_text   text COLLATE "C" := p_name;
    v_bytes  bytea;
BEGIN
    WHILE v_text ~ c_octet LOOP
        SELECT string_agg(CASE WHEN m[1] ~ c_octet THEN decode(substr(m[1], 2), 'hex')
                               ELSE convert_to(m[1], 'UTF8') END, ''::bytea ORDER BY n)
          INTO v_bytes FROM regexp_matches(v_text, c_pieces, 'g') WITH ORDINALITY AS piece (m, n);
        EXIT WHEN encode(v_bytes, 'hex') !~ c_utf8;
        v_text := convert_from(v_bytes, 'UTF8');
    END LOOP;
    v_text := regexp_replace(replace(v_text, '\', '/'), c_blanks || '/' || c_blanks, '/', 'g');
    RETURN regexp_replace(regexp_replace(v_text, '(/\.?)+/', '/', 'g'), '[\x01-\x20\x7f]', ' ', 'g');
END
$$;

-- Why a value may mean other blobs than the one of its key: 'text', a name may stand somewhere in it; 'host', it is a
-- URL of a host that is no store's, of which a part of the path may be the name; NULL: it may not.
CREATE FUNCTION ops.blob_doubt(p_name text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog
    AS $$
DECLARE
    v_name text COLLATE "C" := p_name;
    v_text text COLLATE "C";
    v_read record;
BEGIN
    IF v_name ~ '^[A-Za-z0-9._/ -]*$'
       OR v_name ~ '^https://[a-z0-9-]+\.(public|private)\.blob\.vercel-storage\.com/[A-Za-z0-9._/-]*$' THEN
        RETURN NULL;
    END IF;
    v_read := ops.blob_parts(p_name);
    IF v_read.store <> '' AND v_read.certain THEN
        RETURN NULL;
    END IF;
    v_text := ops.blob_text(p_name);
    RETURN CASE WHEN v_text ~ '["`<>{}|\u201c\u201d\u2018\u00ab\u00bb]|\[|\]' OR v_text ~ '^ *[(*!~_]'
                     OR v_text ~ '(^|[^A-Za-z0-9])'''  -- an apostrophe inside a word is no quotation mark
                     OR v_text ~ '[?#&=,;].*/' OR v_text ~ ':/.*:/' OR v_text ~ '[^A-Za-z0-9+.-].*:/'
                THEN 'text'
                WHEN v_read.store IS NULL THEN 'host' END;
END
$$;

-- The keys of all blobs that a value may mean; p_key: its own (ops.blob_parts), which comes first.
CREATE FUNCTION ops.blob_meanings(p_name text, p_key bytea)
    RETURNS TABLE (key bytea, first boolean, doubtful boolean)
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog
    AS $$
DECLARE
    c_ends  CONSTANT text COLLATE "C" := '[] "''`<>(){}[|,;?#&=*:!~_\u201c\u201d\u2018\u2019\u00ab\u00bb]';
    v_text  text COLLATE "C";
    v_chars text[];
    v_ends  integer[] := '{}';
    v_doubt boolean := ops.blob_doubt(p_name) IS NOT NULL;
BEGIN
    RETURN QUERY SELECT p_key, true, v_doubt;
    IF NOT v_doubt THEN
        RETURN;
    END IF;
    v_text := ops.blob_text(p_name);
    v_chars := string_to_array(v_text, NULL);
    v_ends := ARRAY(SELECT n::integer FROM unnest(v_chars) WITH ORDINALITY AS c (one, n)
                     WHERE one COLLATE "C" ~ c_ends ORDER BY n) || (cardinality(v_chars) + 1);
    -- A name begins after a slash or a mark, and ends before one of the next sixteen marks.
    RETURN QUERY
    SELECT DISTINCT sha256(convert_to(btrim(substr(v_text, s.start, e.stop - s.start), '/'), 'UTF8')), false, true
      FROM (SELECT 1 AS start, 0 AS passed UNION ALL
            SELECT n::integer + 1, (count(*) FILTER (WHERE one <> '/') OVER (ORDER BY n))::integer
              FROM unnest(v_chars) WITH ORDINALITY AS c (one, n) WHERE one = '/' OR one COLLATE "C" ~ c_ends) s
      CROSS JOIN LATERAL unnest(v_ends[s.passed + 1 : s.passed + 16]) AS e (stop) WHERE e.stop > s.start;
END
$$;

-- Values that may mean many blobs have keys of their own in the index: a URL of another host the key of the last part
-- of its path, any other value one key for all. ops.blob_lookups says under which keys the values stand that may mean
-- a blob; of those, ops.blob_meanings decides.
CREATE OR REPLACE FUNCTION ops.blob_key(p_name text) RETURNS bytea
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN CASE ops.blob_doubt(p_name)
           WHEN 'text' THEN sha256('?')
           WHEN 'host' THEN sha256('?' || convert_to(
               regexp_replace(rtrim(ops.blob_text(p_name), ' /'), '^.*/', ''), 'UTF8'))
           ELSE (ops.blob_parts(p_name)).key END;

CREATE FUNCTION ops.blob_lookups(p_name text) RETURNS bytea[]
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ARRAY[(ops.blob_parts(p_name)).key, sha256('?'), sha256('?' || convert_to(
               regexp_replace(rtrim(ops.blob_text(p_name), ' /'), '^.*/', ''), 'UTF8'))];

CREATE OR REPLACE FUNCTION ops.may_name_blob(p_name text, p_store text, p_pathname text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (SELECT ops.blob_doubt(p_name) IS NOT NULL
                   OR (p_store = '' OR n.store IS NULL OR n.store IN ('', p_store))
                   AND (NOT n.certain OR n.pathname COLLATE "C" = p_pathname COLLATE "C")
              FROM ops.blob_parts(p_name) n);

GRANT EXECUTE ON FUNCTION ops.blob_text, ops.blob_doubt, ops.blob_meanings, ops.blob_lookups
    TO lifecycle_jobs, lifecycle_reader;

-- An index holds the keys as they were when its rows were written.
DO $$
DECLARE
    v_index regclass;
BEGIN
    FOR v_index IN SELECT DISTINCT d.objid::regclass FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
                    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_proc'::regclass
                      AND d.refobjid = 'ops.blob_key(text)'::regprocedure AND c.relkind = 'i' LOOP
        EXECUTE format('REINDEX INDEX %s', v_index);
    END LOOP;
END
$$;
