-- An archive's name leads into the store and nowhere else: no way up, no empty part, no backslash, no control character.
-- scripts/utils/archive_store.py refuses the same names. NOT VALID: what stands there is not read, what comes is checked.
ALTER TABLE ops.archives ADD CONSTRAINT archives_object_check CHECK (
    object COLLATE "C" !~ '[\x01-\x1f\x7f\\]' AND ('/' || object || '/') COLLATE "C" !~ '/\.{0,2}/') NOT VALID;
