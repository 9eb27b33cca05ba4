"""The dialogue with an operator at a terminal: one item after the other, the worst first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.queue import live_state
from scripts.lifecycle.queue.decisions import Decision, offered
from scripts.lifecycle.queue.desk import Desk
from scripts.lifecycle.queue.matter import DecisionFailed
from scripts.lifecycle.queue.work import Filter, QueueItem, SomebodyWasFirst, backlog
from scripts.utils.errors import Misconfigured, SwitchedOff
from scripts.utils.free_text import visible


class _Back(Exception):
    """The operator has left the decision that was begun."""


class Session:
    """One operator at one terminal.

    Args:
        run: The command's run; its display is a terminal.
        desk: Carries out the decisions.
        only: Which items are shown.
    """

    def __init__(self, run: Run, desk: Desk, only: Filter) -> None:
        self._run = run
        self._desk = desk
        self._only = only
        self._skipped: list[UUID] = []
        self._last: UUID | None = None
        """The item of the last deferral or escalation, which can be undone."""
        self._claimed: QueueItem | None = None
        self._total = 0
        self._numbers: dict[UUID, int] = {}
        """The number of each item, counted from the first time that the session showed it."""
        self.decided = 0

    def run(self) -> None:
        """Show item after item until none is left or the operator quits.

        Raises:
            StoppedEarly: A signal came; the claimed item was given back.
        """
        self._total = backlog(self._run.database, self._only).open
        try:
            while item := self._desk.work.claim(self._only, skipping=self._skipped):
                self._claimed = item
                self._show(item)
                if not self._work_on(item):
                    return
                self._run.stop_on_signal()
            self._say("Nothing more to decide." if self._total else "The queue is empty.")
        finally:
            self._give_back()

    def _give_back(self) -> None:
        if self._claimed:
            # The claim may have expired meanwhile; then another operator has the item, or nobody.
            with suppress(SomebodyWasFirst):
                self._desk.work.release(self._claimed.id)
            self._claimed = None

    def _work_on(self, item: QueueItem) -> bool:
        """Ask until the operator has decided, skipped or undone; False: the operator quits."""
        decisions = offered(self._run.policies, item)
        while True:
            answer = self._ask("> ").lower()
            if answer == "q":
                return False
            if answer == "s":
                self._skipped.append(item.id)
                self._give_back()
                return True
            if answer == "u":
                if self._undo():
                    return True
                continue
            decision = _chosen(decisions, answer)
            if decision is None:
                self._say(f"Type a number from 1 to {len(decisions)}, s, u or q.")
            elif self._decide(item, decision):
                return True

    def _decide(self, item: QueueItem, decision: Decision) -> bool:
        """Carry out one decision; False: nothing was decided, and the operator is asked again."""
        until = None
        try:
            if decision.needs_until:
                until = until_of(self._detail("until (7d, or 2027-01-31; q: back)> "), self._run.database.now())
            justification = self._detail("why (q: back)> ") if decision.closes else ""
            happened = self._desk.decide(item, decision, justification, until)
        except _Back:
            self._say("Not done.")
            return False
        except (DecisionFailed, Misconfigured, SwitchedOff) as problem:
            self._say(f"Not done: {problem}.")
            return False
        except SomebodyWasFirst as problem:
            self._say(f"Not done: {problem}.")
            self._give_back()
            return True
        self._claimed = None
        self.decided += 1
        if not decision.closes:
            self._last = item.id
            self._skipped.append(item.id)
        self._say(f"Done: {happened}.")
        return True

    def _undo(self) -> bool:
        """Undo the last deferral or escalation; without one, give back the item that is shown."""
        last = self._last or (self._claimed.id if self._claimed else None)
        if last is None:
            return False
        try:
            self._desk.work.undo(last)
        except SomebodyWasFirst as problem:
            self._say(f"Not undone: {problem}.")
            self._last = None
            return False
        if self._last:
            self._skipped.remove(last)
            self._last = None
            self._say("Undone: it is back in the queue.")
            self._give_back()
        else:
            self._claimed = None
            self._skipped.append(last)
            self._say("Undone: nobody has it.")
        return True

    def _show(self, item: QueueItem) -> None:
        left = backlog(self._run.database, self._only)
        number = self._numbers.setdefault(item.id, len(self._numbers) + 1)
        self._say("")
        self._say(f"{number} of {max(self._total, number)}, {left.past_deadline} past deadline")
        for line in described(item, live_state.look(self._run, item, lambda: self._desk.client)):
            self._say(f"  {line}")
        for number, decision in enumerate(offered(self._run.policies, item), 1):
            self._say(f"  {number}  {decision.label}")
        self._say("  s  skip it    u  undo    q  quit")

    def _say(self, text: str) -> None:
        self._run.display.say(text)

    def _detail(self, prompt: str) -> str:
        """Ask for something that a decision needs.

        Raises:
            _Back: The operator answered ``q``.
        """
        answer = self._ask(prompt)
        if answer.lower() == "q":
            raise _Back
        return answer

    def _ask(self, prompt: str) -> str:
        with self._run.waiting_for_a_person():
            try:
                return self._run.display.ask(prompt)
            except EOFError:
                return "q"


def described(item: QueueItem, state: dict[str, object]) -> list[str]:
    """Return an item's facts as lines; control characters in what others wrote are written out."""
    late = item.deadline_at < datetime.now(UTC)
    facts: dict[str, object] = {
        "item": item.id,
        "what": f"{item.item_type}, {item.priority}, {item.status}",
        "why": item.reason,
        "resource": f"{item.resource_type} {item.resource_id}",
        "seen": f"{item.occurrences} times since {item.first_seen_at:%Y-%m-%d %H:%M} UTC, by {item.raised_by}",
        "deadline": f"{item.deadline_at:%Y-%m-%d %H:%M} UTC{' (PAST)' if late else ''}",
        **{f"context {name}": value for name, value in item.context.items()},
        **{f"now {name}": "-" if value is None else value for name, value in state.items()},
    }
    width = max(map(len, facts))
    return [f"{visible(name):{width}}  {visible(str(value))}" for name, value in facts.items()]


def until_of(text: str, now: datetime) -> datetime:
    """Read a moment: a day (midnight UTC), or a number of days or hours from now, such as ``7d`` or ``12h``.

    Raises:
        Misconfigured: It is neither.
    """
    number, unit = text[:-1], text[-1:]
    try:
        if number.isdecimal() and unit in ("d", "h"):
            return now + (timedelta(days=int(number)) if unit == "d" else timedelta(hours=int(number)))
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise Misconfigured(f"{text!r} is neither a day such as 2027-01-31 nor a time from now such as 7d") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _chosen(decisions: Sequence[Decision], answer: str) -> Decision | None:
    if answer.isdecimal() and 1 <= int(answer) <= len(decisions):
        return decisions[int(answer) - 1]
    return next((decision for decision in decisions if decision.name == answer), None)
