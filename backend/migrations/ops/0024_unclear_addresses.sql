-- Whether a value that is no plain address may name a person all the same: a name with an address in brackets, a link,
-- a list, an array, JSON, a trailing dot, an invisible character. Such a value is nobody's for certain: a hold on the
-- person keeps its row, and an erasure of the person is handed to a human being instead of being certified.
-- p_person is a normal form (ops.normal_address). Local part and domain are looked for without dots, so that a Gmail
-- address is found however its owner wrote it. The answer may be true too often and must not be false too often.
CREATE FUNCTION ops.may_name(p_text text, p_person text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (p_text LIKE '%@%' OR p_text LIKE '%\%40%')
       AND p_text !~ '^[A-Za-z0-9.!#$%&''*+/=?^_`{|}~-]+@[A-Za-z0-9.-]*[A-Za-z0-9]$'
       AND ops.normal_address(p_text) IS DISTINCT FROM p_person
       AND position(replace(split_part(p_person, '@', 1), '.', '')
                    IN lower(replace(p_text, '.', '') COLLATE "C")) > 0
       AND position(replace(replace(split_part(p_person, '@', 2), 'gmail.com', 'mail.com'), '.', '')
                    IN lower(replace(p_text, '.', '') COLLATE "C")) > 0;
GRANT EXECUTE ON FUNCTION ops.may_name TO lifecycle_jobs, lifecycle_reader;
