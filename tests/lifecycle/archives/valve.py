"""Stops a script in the middle of a chosen statement, so that a fault hits the instant that is meant."""

_VALVE = 4712


class Valve:
    """For a class with a superuser's connection ``link``."""

    def valve(self, table, event, condition):
        """Stop every statement that touches such a row, until :meth:`open_valve`."""
        self.link.execute("SELECT pg_advisory_lock(%s)", (_VALVE,))
        self.link.execute(
            "CREATE FUNCTION public.close_valve() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = 0"
            f" AS 'BEGIN PERFORM pg_advisory_xact_lock_shared({_VALVE}); RETURN coalesce(NEW, OLD); END'"
        )
        self.link.execute(
            f"CREATE TRIGGER valve BEFORE {event} ON {table} FOR EACH ROW WHEN ({condition})"
            " EXECUTE FUNCTION public.close_valve()"
        )

    def stopped(self):
        """The server process that stands at the valve, or None."""
        row = self.link.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (_VALVE,),
        ).fetchone()
        return row[0] if row else None

    def open_valve(self):
        self.link.execute("SELECT pg_advisory_unlock(%s)", (_VALVE,))
        self.link.execute("DROP FUNCTION public.close_valve() CASCADE")
