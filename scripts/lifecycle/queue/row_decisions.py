"""Decisions about rows. Each is one transaction with the audit entry and the closing of the item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from scripts.lifecycle.audit import audit
from scripts.lifecycle.engine import holds
from scripts.lifecycle.engine.batches import BatchWriter
from scripts.lifecycle.engine.fragments import fragment
from scripts.lifecycle.engine.gated import require_may_run
from scripts.lifecycle.engine.policy_run import SURVEY_SECONDS
from scripts.lifecycle.engine.preflight import referring
from scripts.lifecycle.engine.resources import row_state
from scripts.lifecycle.engine.selection import Cause, Selection
from scripts.lifecycle.engine.survey import survey
from scripts.lifecycle.engine.windows import chosen_keys
from scripts.lifecycle.policy.policy_file import with_people
from scripts.lifecycle.policy.sections import Dependant
from scripts.lifecycle.queue import remedies
from scripts.lifecycle.queue.matter import ROW_GONE, DecisionFailed, Matter
from scripts.utils.db_utils import Connection
from scripts.utils.pseudonyms import pseudonym


class RowDecision:
    """Carries out a decision about one row."""

    def __init__(self, matter: Matter) -> None:
        self._matter = matter
        self._policy = matter.policy
        self._key = matter.item.resource_id
        self._database = matter.run.database

    def remedy(self) -> str:
        """Delete or change the row, as the policy file says.

        Raises:
            AssertionError: The decision is none of the policy file's.
        """
        remedy = self._matter.decision.remedy
        if remedy is None:
            raise AssertionError("a decision with this effect comes from the policy file")
        selection = self._matter.selection()
        if remedy.delete:
            prefix = f"decision:{self._matter.item.item_type}/"
            decided = Cause(self._matter.decision.name, prefix, {}, fragment("true"))
            return self._and_close(self._delete, selection.because(decided))
        return self._and_close(self._change, selection)

    def purge(self) -> str:
        """Delete the row in the way that its policy does."""
        return self._and_close(self._delete, self._matter.selection())

    def purge_with_dependants(self) -> str:
        """Delete the rows that refer to this one, also if the policy declares ``refuse`` for them, then this one."""
        policy = self._policy
        declared = tuple(
            dependant.model_copy(update={"action": "delete"}) if dependant.action == "refuse" else dependant
            for dependant in policy.dependants
        )
        known = [(dependant.table, dependant.column) for dependant in declared]
        undeclared = tuple(
            Dependant(table=foreign_key.table, column=foreign_key.columns, action="delete", key=key)
            for foreign_key, key in self._database.read(lambda connection: referring(connection, policy))
            if key and not any(foreign_key.is_named(table, columns) for table, columns in known)
        )
        everybody = with_people(self._matter.run.policies.policies, declared + undeclared)
        selection = self._matter.selection(policy.model_copy(update={"dependants": everybody}))
        # If no policy names the person of a row, a hold on that person would not be seen.
        unknown = [dependant.table for dependant in everybody if "person" not in dependant.model_fields_set]

        def delete(connection: Connection, selection: Selection) -> str:
            self._refuse_unknown_people(connection, unknown)
            return f"{self._delete(connection, selection)}, with what referred to it"

        return self._and_close(delete, selection)

    def _refuse_unknown_people(self, connection: Connection, tables: list[str]) -> None:
        """Check that the persons of all rows that would be deleted are known, while any person is under a legal hold.

        Raises:
            DecisionFailed: A table has no policy that names its person column.
        """
        held = connection.execute("SELECT count(*) FROM ops.holds_in_force WHERE scope = 'person'").fetchone()
        if tables and held and held[0]:
            raise DecisionFailed(
                f"rows of {', '.join(tables)} that refer to it may be about a person under a legal hold"
                " (legal_holds.py list), and no policy tells: declare them as its dependants, with their person"
            )

    def count_again(self) -> str:
        """Close the item of a whole policy, if nothing blocks the policy any more.

        Raises:
            DecisionFailed: Rows that are due are still needed by other rows.
        """
        selection = self._matter.selection()
        found = self._database.read(lambda connection: survey(connection, selection), statement_timeout=SURVEY_SECONDS)
        if found.referenced:
            raise DecisionFailed(f"{found.referenced} rows that are due are still needed by something else")
        return self._matter.behind_the_gate(
            lambda connection: self._closed(connection, "nothing is in the way: the next run takes what is due")
        )

    def hold(self, until: datetime | None) -> str:
        """Place a legal hold on the row until a day."""
        with self._matter.run.writer.closing_gate() as connection:
            self._matter.work.require_mine(connection, self._matter.item.id)
            hold = holds.place_within(
                connection,
                operator=self._matter.run.operator,
                reason=f"queue item {self._matter.item.id}",
                table=self._policy.table,
                resource_id=self._key,
                expires_at=until,
                key=self._policy.key,
            )
            return self._closed(connection, f"hold {hold} keeps the row until {until:%Y-%m-%d %H:%M} UTC")

    def release_hold(self) -> str:
        """Release the hold, so that the row's period applies again.

        Raises:
            DecisionFailed: Another operator's hold is on the row too; nothing was released.
        """
        with self._matter.run.writer.closing_gate() as connection:
            self._matter.work.require_mine(connection, self._matter.item.id)
            try:
                ended = holds.release_row(connection, self._policy.table, self._key, operator=self._matter.run.operator)
            except holds.HeldByOthers as error:
                raise DecisionFailed(str(error)) from None
            return self._closed(connection, f"its period rules again; holds on the row that were ended: {ended}")

    def _closed(self, connection: Connection, happened: str) -> str:
        self._matter.close(connection)
        return happened

    def _and_close(self, effect: Callable[[Connection, Selection], str], selection: Selection) -> str:
        return self._matter.behind_the_gate(lambda connection: self._closed(connection, effect(connection, selection)))

    def _delete(self, connection: Connection, selection: Selection) -> str:
        state = row_state(connection, selection, self._key)
        if state is None:
            return ROW_GONE
        settings = self._matter.run.settings
        selection = replace(selection, pseudonymous=not state.nameable)
        writer = BatchWriter(
            self._matter.run.writer, selection, self._matter.context, pseudonym=lambda text: pseudonym(settings, text)
        )
        outcome = writer.within(connection, chosen_keys(selection, [self._key]))
        require_may_run(owned=outcome.owned, stopped=outcome.stopped)
        if not outcome.deleted:
            raise DecisionFailed(f"the row was not deleted: {state.why_kept or 'it is being changed: try again'}")
        done = {"soft_delete": "marked as deleted", "anonymize": "anonymised"}
        return f"the row was {done.get(self._policy.action, 'deleted')}"

    def _change(self, connection: Connection, selection: Selection) -> str:
        remedy = self._matter.decision.remedy
        if remedy is None or not remedy.set:
            return "noted"
        state = row_state(connection, selection, self._key)
        if state is None:
            return ROW_GONE
        try:
            remedies.change(connection, selection, self._key, remedy.set)
        except remedies.NothingToTake as error:
            raise DecisionFailed(str(error)) from None
        audit.append(
            connection,
            actor=f"operator:{self._matter.run.operator}",
            action="decide",
            resource_type=self._policy.table,
            # A text key that is no UUID could be an e-mail address.
            resource_ids=[self._key if state.nameable else pseudonym(self._matter.run.settings, self._key)],
            reason=f"decision:{self._matter.item.item_type}/{self._matter.decision.name}",
            run_id=self._matter.item.id,
        )
        return f"changed: {', '.join(remedy.set)}"
