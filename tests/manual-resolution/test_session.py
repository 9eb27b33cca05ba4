"""An operator at a real terminal: what they see, what their keys do, and what Ctrl-C or a kill leaves behind."""

import contextlib
import re
import signal
import sys
from pathlib import Path

import pexpect
import pytest

from scripts.utils.test_helpers import script_environment
from tests.faults.stage import wait_until

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PROCESS = SCRIPTS / "manual-resolution" / "process_queue.py"
SECOND, THIRD = (f"00000000-0000-4000-8000-00000000000{n}" for n in (2, 3))


class Terminal:
    """The script in a terminal of 100 columns."""

    def __init__(self, environment, arguments=()):
        self.child = pexpect.spawn(
            sys.executable,
            [str(PROCESS), *arguments],
            env=script_environment(environment) | {"TERM": "xterm"},
            encoding="utf-8",
            dimensions=(50, 140),
            timeout=500,
        )

    def sees(self, text):
        """Wait until this stands on the screen, and return everything since the last look."""
        self.child.expect_exact(text)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.child.before + text)

    def types(self, text):
        self.child.sendline(text)

    def ends(self):
        """Return the rest of the screen, and the exit code."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.before, self.child.exitstatus


@pytest.fixture
def terminal(environment):
    """A function that opens a terminal with a session in it."""
    opened = []

    def start(*arguments, **settings):
        opened.append(Terminal(environment | settings, arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.child.close(force=True)


def states(link):
    return dict(link.execute("SELECT resource_id, status FROM ops.manual_resolution_queue").fetchall())


def test_a_failed_pdf_is_shown_retried_resolved_and_audited(call, terminal, link, plans, blobs):
    plans.add([1])
    blobs.faults.unavailable = {plans.path(1)}
    assert call(SCRIPTS / "cleanup" / "cleanup_pdfs.py").code == 4
    blobs.faults.reset()
    at = terminal()
    screen = at.sees("q  quit")
    for fact in (
        "1 of 1, 0 past deadline",
        "pdf_deletion_failed, medium",
        plans.id(1),
        "still there",
        "1  delete the blob",
    ):
        assert fact in screen
    at.types("1")
    at.sees("why (q: back)>")
    at.types("the store is well again")
    at.sees("Done: the blob is gone, and its row says so.")
    at.sees("Nothing more to decide.")
    assert at.ends()[1] == 0
    assert plans.there([1]) == set()
    assert states(link) == {plans.id(1): "resolved"}
    assert link.execute(
        "SELECT actor, action FROM ops.audit_log WHERE resource_type = 'public.meal_plans'"
    ).fetchall() == [("operator:olga", "delete_blob")]
    plans.balance()


@pytest.mark.parametrize("how", ["ctrl-c", "ctrl-d", "q", "SIGTERM"])
def test_leaving_leaves_nothing_claimed(terminal, link, quiz, item_of, how):
    quiz()
    key = item_of("quiz_undelivered")
    at = terminal()
    at.sees("q  quit")
    at.sees("> ")
    assert states(link) == {"00000000-0000-4000-8000-000000000001": "assigned"}
    codes = {"ctrl-c": 130, "SIGTERM": 143, "ctrl-d": 0, "q": 0}
    if how == "ctrl-c":
        at.child.sendintr()
    elif how == "SIGTERM":
        at.child.kill(signal.SIGTERM)
    elif how == "ctrl-d":
        at.child.sendeof()
    else:
        at.types("q")
    assert at.ends()[1] == codes[how]
    row = link.execute("SELECT status, assigned_to FROM ops.manual_resolution_queue WHERE id = %s", (key,)).fetchone()
    assert row == ("pending", None)


def test_progress_skip_defer_undo_and_what_is_wrong(terminal, link, quiz, item_of):
    for key in (None, SECOND, THIRD):
        quiz(*([key] if key else []))
        item_of("quiz_undelivered", key=key or "00000000-0000-4000-8000-000000000001")
    link.execute(
        "UPDATE ops.manual_resolution_queue SET deadline_at = now() - interval '1 hour' WHERE resource_id = %s",
        (SECOND,),
    )
    at = terminal()
    assert f"public.quiz_responses {SECOND}" in at.sees("1 of 3, 1 past deadline") + at.sees("q  quit")
    at.types("9")
    at.sees("Type a number from 1 to 5, s, u or q.")
    at.types("4")
    at.sees("until (7d, or 2027-01-31; q: back)>")
    at.types("soon")
    at.sees("Not done: 'soon' is neither a day")
    at.types("4")
    at.sees("until (7d, or 2027-01-31; q: back)>")
    at.types("7d")
    at.sees("Done: put off until")
    at.sees("2 of 3, 0 past deadline")
    assert states(link)[SECOND] == "deferred"
    at.sees("q  quit")
    at.types("u")
    at.sees("Undone: it is back in the queue.")
    assert SECOND in at.sees("q  quit")
    at.types("s")
    at.sees("q  quit")
    at.types("1")
    at.sees("why (q: back)>")
    at.types("")
    at.sees("Not done: a decision needs a justification.")
    at.types("1")
    at.sees("why (q: back)>")
    at.types("the customer says so")
    at.sees("Done: changed: pdf_delivered_at.")
    at.sees("q  quit")
    at.types("u")
    at.sees("Undone: nobody has it.")
    at.sees("Nothing more to decide.")
    assert at.ends()[1] == 0
    assert sorted(states(link).values()) == ["pending", "pending", "resolved"]


def test_an_empty_queue_is_said(terminal):
    at = terminal("--item-type", "quiz_orphaned")
    at.sees("The queue is empty.")
    assert at.ends()[1] == 0


@pytest.fixture
def valve(link):
    """A context manager: meanwhile no item can be resolved, and a session that tries waits."""

    @contextlib.contextmanager
    def closed():
        link.execute("SELECT pg_advisory_lock(4713)")
        link.execute(
            "CREATE FUNCTION public.wait_here() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = 0"
            " AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(4713); RETURN NEW; END';"
            "CREATE TRIGGER valve BEFORE UPDATE ON ops.manual_resolution_queue FOR EACH ROW"
            " WHEN (NEW.status = 'resolved') EXECUTE FUNCTION public.wait_here()"
        )
        yield lambda: link.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 4713 AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
        link.execute("SELECT pg_advisory_unlock(4713)")

    return closed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_of_a_decision_about_a_row(terminal, link, quiz, item_of, valve, number):
    quiz()
    item_of("quiz_undelivered")
    at = terminal()
    at.sees("q  quit")
    at.types("3")
    at.sees("why (q: back)>")
    with valve() as waiting:
        at.types("they asked for it")
        wait_until(waiting, what="a decision on its way")
        at.child.kill(number)
        if number is signal.SIGKILL:
            at.child.wait()
    if number is signal.SIGINT:
        # What is in hand is finished first.
        assert at.ends()[1] == 130
    expected = ("assigned", 1, 0) if number is signal.SIGKILL else ("resolved", 0, 1)
    wait_until(lambda: whole(link) == expected, what="the end of what was on its way")
    if number is signal.SIGKILL:
        link.execute("UPDATE ops.manual_resolution_queue SET claim_expires_at = now() - interval '1 second'")
        at = terminal()
        at.sees("q  quit")
        at.types("3")
        at.sees("why (q: back)>")
        at.types("they asked for it")
        at.sees("Nothing more to decide.")
        assert whole(link) == ("resolved", 0, 1)


def whole(link):
    """Return the item's state, the rows that are left, and those that the audit says were deleted."""
    return link.execute(
        "SELECT (SELECT status FROM ops.manual_resolution_queue), (SELECT count(*) FROM quiz_responses),"
        " (SELECT count(*) FROM ops.audit_log WHERE action = 'delete')"
    ).fetchone()


@pytest.mark.parametrize("status", ["sending", "confirmed"])
def test_killed_in_the_middle_of_a_decision_about_a_blob(call, terminal, link, plans, item_of, status):
    plans.add([1])
    item_of("pdf_deletion_failed", "public.meal_plans", plans.id(1))
    plans.freeze_at(status)
    at = terminal()
    at.sees("q  quit")
    at.types("1")
    at.sees("why (q: back)>")
    at.types("once more")
    wait_until(plans.frozen, what="the decision at the valve")
    at.child.kill(signal.SIGKILL)
    at.child.wait()
    link.execute("SELECT pg_cancel_backend(%s)", plans.frozen() or (0,))
    plans.thaw()
    assert states(link) == {plans.id(1): "assigned"}
    assert plans.named() == {plans.id(1)}
    # The job takes up what was left, and closes the item.
    assert call(SCRIPTS / "cleanup" / "cleanup_pdfs.py").code == 0
    assert plans.there([1]) == set()
    assert states(link) == {plans.id(1): "resolved"}
    plans.balance()


@pytest.mark.parametrize("second_thought", ["q", "ctrl-d"])
def test_whoever_has_second_thoughts_goes_back_and_nothing_happens(terminal, link, quiz, item_of, second_thought):
    quiz()
    item_of("quiz_undelivered")
    at = terminal()
    at.sees("q  quit")
    at.types("3")
    at.sees("why (q: back)>")
    if second_thought == "q":
        at.types("q")
    else:
        at.child.sendeof()
    at.sees("Not done.")
    at.sees("> ")
    at.types("q")
    assert at.ends()[1] == 0
    assert whole(link) == ("pending", 1, 0)


def test_what_is_escalated_already_is_given_back(terminal, link, quiz, item_of):
    quiz()
    item_of("quiz_undelivered")
    link.execute("UPDATE ops.manual_resolution_queue SET status = 'escalated', escalated_at = now()")
    at = terminal()
    assert "ask for somebody else's decision" not in at.sees("q  quit")
    at.child.sendintr()
    assert at.ends()[1] == 130
    row = link.execute("SELECT status, assigned_to, claim_expires_at FROM ops.manual_resolution_queue").fetchone()
    assert row == ("escalated", None, None)


@pytest.mark.parametrize(("key", "code"), [("s", 0), ("q", 0), ("ctrl-c", 130)])
def test_a_claim_that_ran_out_meanwhile_breaks_nothing(terminal, link, quiz, item_of, key, code):
    quiz()
    item_of("quiz_undelivered")
    at = terminal()
    at.sees("q  quit")
    link.execute(
        "UPDATE ops.manual_resolution_queue SET status = 'pending', assigned_to = NULL, claim_expires_at = NULL"
    )
    if key == "ctrl-c":
        at.child.sendintr()
    else:
        at.types(key)
    assert at.ends()[1] == code
