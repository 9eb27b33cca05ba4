-- What ops.alert_silences needs in order to be cleaned by policy, as the other tables of the suite are.

-- A rule's anchor wants an index.
CREATE INDEX alert_silences_ended_at_idx ON ops.alert_silences (ended_at);
CREATE INDEX alert_silences_until_idx ON ops.alert_silences (until);

-- What still silences something is somebody's work: no mistake in a policy file reaches it.
CREATE TRIGGER alert_silences_keep BEFORE DELETE ON ops.alert_silences
    FOR EACH ROW WHEN (OLD.ended_at IS NULL AND OLD.until > now() AND current_user = 'lifecycle_jobs')
    EXECUTE FUNCTION ops.keep_what_is_open();
