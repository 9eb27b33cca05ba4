"""An operator, or another program, puts something on the queue."""

import json
from pathlib import Path

import pytest

from tests.forked import run_script

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "manual-resolution" / "add_to_queue.py"
ROW = "00000000-0000-4000-8000-000000000001"
ITEM = {
    "item_type": "quiz_orphaned",
    "resource_type": "public.quiz_responses",
    "resource_id": ROW,
    "priority": "high",
    "reason": "names nobody",
}


@pytest.fixture
def link(database):
    link = database.superuser()
    link.execute(
        "INSERT INTO quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at)"
        " VALUES (%s, 'a', 'a', '{}', 1, now())",
        (ROW,),
    )
    return link


@pytest.fixture
def add(database, redis_url, tmp_path, link):
    """A function that runs the command and returns its exit code and log lines."""

    def run(*arguments, stdin="", **settings):
        env = {"DATABASE_URL": database.url, "REDIS_URL": redis_url, "OPERATOR": "olga"} | settings
        done = run_script(SCRIPT, *arguments, env=env, stdin=stdin, folder=tmp_path)
        assert "Traceback" not in done.stderr
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    return run


def flags(**changes):
    facts = ITEM | changes
    return [text for name, value in facts.items() for text in (f"--{name.replace('_', '-')}", value)]


def items(link):
    return link.execute(
        "SELECT item_type, resource_id, priority, reason, context, raised_by, occurrences"
        " FROM ops.manual_resolution_queue ORDER BY resource_id"
    ).fetchall()


def test_by_flags_once_and_once_more(add, link):
    code, lines = add(*flags(), "--context", "tries=3", "seen=twice")
    assert (code, lines[0]["event"]) == (0, "queue_item_added")
    facts = ("quiz_orphaned", ROW, "high", "names nobody", {"tries": "3", "seen": "twice"}, "operator:olga")
    assert items(link) == [(*facts, 1)]
    code, lines = add(*flags())
    assert (code, lines[0]["event"]) == (0, "queue_item_seen_again")
    assert len(items(link)) == 1


def test_many_from_standard_input_all_or_none(add, link):
    good = [ITEM, ITEM | {"item_type": "retention_exception"}]
    code, _ = add("--json", "-", stdin=json.dumps([*good, ITEM | {"priority": "urgent"}]))
    assert (code, items(link)) == (2, [])
    code, lines = add("--json", "-", stdin=json.dumps(good))
    assert (code, len(items(link))) == (0, 2)
    assert [line["event"] for line in lines[:2]] == ["queue_item_added"] * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"item_type": "quiz"}, "item_type is none of"),
        ({"priority": "urgent"}, "priority is none of critical, high, medium, low"),
        ({"resource_type": "public.quizzes"}, "there is no table public.quizzes"),
        ({"resource_id": ROW[:-1] + "9"}, "there is no row in public.quiz_responses"),
        ({"reason": "anna@example.com asked"}, "must not hold an e-mail address"),
        ({"reason": ""}, "reason is missing"),
    ],
)
def test_what_is_wrong_is_said(add, link, changes, said):
    code, lines = add(*flags(**changes))
    assert code == 2
    assert said in lines[-1]["error"]
    assert items(link) == []


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        ("{", "standard input is not JSON"),
        ('["text"]', "item is not an object"),
        (json.dumps(ITEM | {"colour": "red"}), "colour is not known"),
        (json.dumps(ITEM | {"context": [1]}), "context is not an object"),
        ("[]", "there is no item"),
    ],
)
def test_what_is_wrong_on_standard_input_is_said(add, link, stdin, said):
    code, lines = add("--json", "-", stdin=stdin)
    assert code == 2
    assert said in lines[-1]["error"]


def test_flags_and_json_do_not_mix(add):
    code, lines = add("--json", "-", "--priority", "high", stdin="[]")
    assert code == 2
    assert "--json - reads whole items" in lines[-1]["error"]


def test_a_dry_run_adds_nothing_and_says_so(add, link):
    code, lines = add(*flags(), CLEANUP_DRY_RUN="true")
    assert (code, lines[0]["event"]) == (0, "queue_items_would_be_added")
    assert items(link) == []
