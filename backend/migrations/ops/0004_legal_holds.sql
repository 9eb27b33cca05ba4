-- What must not be deleted although its period has ended.

CREATE TABLE ops.legal_holds (
    id          uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    scope       text        NOT NULL CHECK (scope IN ('row', 'person', 'table')),
    table_name  text,       -- schema-qualified, as the policy file writes it
    resource_id text,
    person      text,       -- as the policy's person column holds it; cleared on release
    reason      text        NOT NULL CHECK (reason <> ''),
    placed_by   text        NOT NULL,
    placed_at   timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    released_by text,
    released_at timestamptz,
    CHECK (released_at IS NOT NULL OR CASE scope
        WHEN 'row' THEN table_name IS NOT NULL AND resource_id IS NOT NULL AND person IS NULL
        WHEN 'person' THEN person IS NOT NULL AND table_name IS NULL AND resource_id IS NULL
        ELSE table_name IS NOT NULL AND resource_id IS NULL AND person IS NULL
    END),
    CHECK (released_at IS NULL OR person IS NULL)
);
CREATE INDEX legal_holds_row_idx ON ops.legal_holds (table_name, resource_id) WHERE released_at IS NULL AND scope = 'row';
CREATE INDEX legal_holds_person_idx ON ops.legal_holds (person) WHERE released_at IS NULL AND scope = 'person';

-- A DELETE that waited for a row rechecks the row, not its NOT EXISTS on this table. So placing a hold waits for the
-- batches under way, and a batch that begins afterwards sees the hold.
CREATE TRIGGER legal_holds_close_gate
    BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON ops.legal_holds
    FOR EACH STATEMENT EXECUTE FUNCTION ops.close_gate();

GRANT SELECT, INSERT, UPDATE ON ops.legal_holds TO lifecycle_jobs;
