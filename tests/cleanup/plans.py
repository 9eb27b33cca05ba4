"""Meal plans whose PDFs lie in a real store, and the sums that must hold after every fault."""

_VALVE = 4712


class Plans:
    """Row ``n`` has the id that ends in ``n``; its PDF is ``keto-meal-plan-<id>.pdf`` unless it is given another."""

    def __init__(self, database, blobs):
        self.link = database.superuser()
        self.blobs = blobs

    @staticmethod
    def id(number):
        return f"00000000-0000-4000-8000-{number:012x}"

    def path(self, number):
        return f"keto-meal-plan-{self.id(number)}.pdf"

    def add(self, numbers, age="91 days", *, name=None, person="anna@example.com", put=True):
        """Add rows of an age; ``name`` makes what the column holds from the number."""
        numbers = list(numbers)
        rows = [(self.id(n), f"pay-{n}", person, name(n) if name else self.path(n), age) for n in numbers]
        with self.link.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO meal_plans (id, payment_id, email, normalized_email, pdf_blob_path, calorie_target,"
                " preferences_summary, ai_model, status, created_at) VALUES (%s, %s, 'Anna@example.com', %s, %s, 1800,"
                " '{}', 'model', 'completed', timezone('UTC', now()) - %s::interval)",
                rows,
            )
        for number in numbers if put else ():
            self.blobs.put(self.path(number), b"%PDF-1.7", overwrite=True)

    def named(self):
        """Ids of the rows that still name a PDF."""
        return self._ids("SELECT id FROM meal_plans WHERE pdf_blob_path <> ''")

    def finalised(self):
        return self._ids("SELECT id FROM meal_plans WHERE pdf_blob_path = ''")

    def audited(self):
        """Ids of the rows whose blob the audit says is gone, in order, with repetitions."""
        rows = self.link.execute("SELECT resource_id FROM ops.audit_log WHERE action = 'delete_blob' ORDER BY seq")
        return [key for (key,) in rows]

    def there(self, numbers):
        """Which of these have their blob in the store."""
        return {number for number in numbers if self.blobs.get(self.path(number)) is not None}

    def intents(self):
        """How many intents there are of each status."""
        return dict(self.link.execute("SELECT status, count(*) FROM ops.blob_deletions GROUP BY 1").fetchall())

    def reasons(self):
        return dict(self.link.execute("SELECT resource_id, reason FROM ops.blob_deletions").fetchall())

    def items(self):
        """The queue: resource, status, occurrences."""
        return self.link.execute(
            "SELECT resource_id, status, occurrences FROM ops.manual_resolution_queue"
            " WHERE item_type = 'pdf_deletion_failed' AND resource_type = 'public.meal_plans' ORDER BY 1"
        ).fetchall()

    def balance(self):
        """What must hold whatever happened: gone = finalised = audited, each once; closed intents name nobody."""
        audited = self.audited()
        assert sorted(audited) == sorted(self.finalised())
        leaks = (
            "SELECT count(*) FROM ops.blob_deletions WHERE closed_at IS NOT NULL AND (blob, person) IS DISTINCT FROM"
        )
        assert self.link.execute(f"{leaks} (NULL::text, NULL::text)").fetchone() == (0,)

    def freeze_at(self, status):
        """Let no intent become this until :meth:`thaw`."""
        self.link.execute("SELECT pg_advisory_lock(%s)", (_VALVE,))
        self.link.execute(
            "CREATE FUNCTION public.close_valve() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = 0"
            f" AS 'BEGIN PERFORM pg_advisory_xact_lock_shared({_VALVE}); RETURN NEW; END'"
        )
        self.link.execute(
            "CREATE TRIGGER valve BEFORE UPDATE ON ops.blob_deletions FOR EACH ROW"
            f" WHEN (NEW.status = '{status}') EXECUTE FUNCTION public.close_valve()"
        )

    def frozen(self):
        """Whether a session stands in the trigger."""
        return self.link.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (_VALVE,),
        ).fetchone()

    def thaw(self):
        self.link.execute("SELECT pg_advisory_unlock(%s)", (_VALVE,))
        self.link.execute("DROP TRIGGER valve ON ops.blob_deletions; DROP FUNCTION public.close_valve()")

    def _ids(self, query):
        return {key for (key,) in self.link.execute(query)}
