"""A restore of the database to a point in time brings people back; the ledger erases them again, and nobody else."""

import json

import pytest

from scripts.utils.db_utils import Database
from tests.lifecycle.erasure.conftest import ARCHIVE, FOLDER
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON

HOLDS = FOLDER / "legal_holds.py"


@pytest.fixture
def restored(world, database, new_database, erase, asked):
    """A function that erases, and then restores the database to the point before; returns how to reach it."""
    opened = []

    def restore():
        world.leave()
        backup = new_database(database.name)
        request = asked()
        assert erase().closing["fulfilled"] == 1
        pool = Database(backup.url, application_name="tests", max_size=8)
        pool.open()
        opened.append(pool)
        world.move_to(backup, pool)
        return request, {"DATABASE_URL": backup.url}

    yield restore
    for pool in opened:
        pool.close()


def test_who_was_erased_after_the_point_is_erased_again(world, restored, erase):
    world.payment(PERSON, address=ADDRESS)
    assert erase("run", script=ARCHIVE).code == 0
    world.add(PERSON, address=ADDRESS, name=NAME)
    world.add("other@example.com")
    # The backup is older than the request itself.
    request, then = restored()
    assert world.of(PERSON)["users"], "the restore brought her back"
    seen = erase("--replay", "--dry-run", **then)
    assert (seen.code, seen.event("erasure_would_be_replayed")["request"]) == (0, request)
    assert world.of(PERSON)["users"]
    without = erase(**then)
    assert without.closing["fulfilled"] == 0

    done = erase("--replay", **then)

    assert (done.code, done.closing["fulfilled"], done.closing["replayed"]) == (0, 1, 1), done.output
    assert world.where() == set()
    assert len(world.of("other@example.com")["users"]) == 1
    assert world.rows("ops.erasure_requests", "id::text, status, channel") == [(request, "fulfilled", "replay")]
    assert erase("--replay", **then).closing["replayed"] == 0


def test_one_whom_no_table_names_any_more_stays_unreadable_in_the_archives(world, restored, erase):
    world.payment(PERSON, address=ADDRESS)
    assert erase("run", script=ARCHIVE).code == 0
    _, then = restored()
    assert world.where() == {"archives"}
    done = erase("--replay", **then)
    assert (done.code, done.closing["replayed"]) == (0, 1)
    assert world.where() == set()


def test_who_came_back_by_herself_is_left_alone(world, person, erase, asked):
    asked()
    assert erase().closing["fulfilled"] == 1
    world.add(PERSON, address=ADDRESS, name=NAME)
    done = erase("--replay")
    assert (done.code, done.closing["replayed"]) == (0, 0)
    assert len(world.of(PERSON)["users"]) == 1


def test_the_ledger_names_nobody_and_forgets_when_no_backup_is_left(world, person, erase, asked):
    asked()
    assert erase().code == 0
    (line,) = world.folder.rglob("ledger/*.json")
    content = json.loads(line.read_text())
    assert content["digest"].startswith("s1:")
    assert PERSON not in line.read_text()
    world.link.execute("UPDATE ops.erasure_requests SET closed_at = closed_at - interval '31 days'")
    assert erase().code == 0
    assert not line.exists()


def forged(text):
    """Lines that this suite did not write there, by how somebody came by them; each as the folder's files."""
    whole = json.loads(text)
    other = "00000000-0000-4000-8000-00000000abcd"
    own = whole["request"]
    yield "no line", {own: "{"}
    yield "no object", {own: "[]"}
    yield "empty", {own: "{}"}
    yield "two requests", {own: text.replace("{", '{"request": "x", ', 1)}
    yield "no code", {own: json.dumps({name: value for name, value in whole.items() if name != "code"})}
    yield "odd code", {own: json.dumps(whole | {"code": 7})}
    for name, value in whole.items():
        changed = "2020" + value[4:] if name == "started_at" else "s1:" + "00" * 32
        yield f"altered {name}", {own: json.dumps(whole | {name: changed})}
    yield "one more name", {own: json.dumps(whole | {"more": 1})}
    yield "copied", {own: text, other: text}
    yield "moved", {other: text}
    yield "copied for another request", {own: text, other: json.dumps(whole | {"request": other})}


def test_a_ledger_that_somebody_else_wrote_to_is_not_believed_and_nothing_is_written(world, restored, erase):
    world.add(PERSON, address=ADDRESS, name=NAME)
    world.add("victim@example.com")
    _, then = restored()
    (line,) = world.folder.rglob("ledger/*.json")
    text = line.read_text()
    world.link.execute("INSERT INTO ops.erasure_requests (email, channel) VALUES ('new@example.com', 'web')")
    before = world.rows("ops.erasure_requests"), world.rows("ops.audit_log")
    for how, files in forged(text):
        line.unlink(missing_ok=True)
        for request, content in files.items():
            (line.parent / f"{request}.json").write_text(content)
        for words in (("--replay",), ("--replay", "--dry-run")):
            done = erase(*words, **then)
            assert (done.code, "is no line that was written under" in done.closing["error"]) == (2, True), how
        for request in files:
            (line.parent / f"{request}.json").unlink()
    line.write_text(text)
    assert (world.rows("ops.erasure_requests"), world.rows("ops.audit_log")) == before
    assert erase("--replay", **then).closing["replayed"] == 1
    assert len(world.of("victim@example.com")["users"]) == 1


@pytest.mark.parametrize("key", ["s1:" + "ce" * 32, "s2:" + "cd" * 32])
def test_a_replay_under_another_key_is_refused_before_anything_is_written(world, restored, erase, key):
    world.add(PERSON, address=ADDRESS, name=NAME)
    _, then = restored()
    before = world.rows("ops.erasure_requests"), world.rows("ops.audit_log")

    done = erase("--replay", SUPPRESSION_KEY=key, **then)

    assert (done.code, "SUPPRESSION_KEY" in done.closing["error"]) == (2, True)
    assert (world.rows("ops.erasure_requests"), world.rows("ops.audit_log")) == before
    assert erase("--replay", **then).closing["replayed"] == 1
    assert world.where() == set()


def test_a_hold_that_comes_while_a_replay_looks_for_her_keeps_her_archive_key(world, restored, erase, monkeypatch):
    world.payment(PERSON, address=ADDRESS)
    assert erase("run", script=ARCHIVE).code == 0
    _, then = restored()
    assert erase("place", "--person", "-", "--reason", "a case", script=HOLDS, stdin=f"{ADDRESS}\n", **then).code == 0
    with monkeypatch.context() as patched:
        patched.setattr("scripts.lifecycle.erasure.ledger.people", lambda *_: {})
        done = erase("--replay", **then)
    assert done.event("erasure_not_replayed")["error"] == "a hold keeps her archive key"
    assert world.rows("ops.archive_keys", "destroyed_at IS NULL", "kind = 'person'") == [(True,)]


def test_without_the_ledger_nothing_is_erased(world, person, erase, asked, tmp_path):
    asked()
    done = erase(ARCHIVE_URL=(tmp_path / "not mounted").as_uri())
    assert (done.code, "is its disk mounted?" in done.closing["error"]) == (1, True)
    assert all(world.of(PERSON).values())


def test_a_replay_does_not_reach_what_a_hold_keeps(world, erase, asked):
    """All that there is of her lies in an archive, under a hold on her."""
    world.payment(PERSON, address=ADDRESS)
    assert erase("run", script=ARCHIVE).code == 0
    assert erase("place", "--person", "-", "--reason", "a case", script=HOLDS, stdin=f"{ADDRESS}\n").code == 0
    asked()
    assert erase().code == 4
    assert erase("--replay").code == 0
    assert world.rows("ops.archive_keys", "destroyed_at IS NULL", "kind = 'person'") == [(True,)]


def test_a_replay_that_is_done_is_not_done_again_to_who_came_back(world, restored, erase):
    world.payment(PERSON, address=ADDRESS)
    assert erase("run", script=ARCHIVE).code == 0
    _, then = restored()
    assert erase("--replay", **then).closing["replayed"] == 1
    world.add(PERSON, address=ADDRESS, name=NAME)
    again = erase("--replay", **then)
    assert (again.code, again.closing["replayed"]) == (0, 0)
    assert len(world.of(PERSON)["users"]) == 1
    world.link.execute("UPDATE ops.erasure_requests SET closed_at = closed_at - interval '31 days'")
    assert erase(**then).code == 0
    assert list(world.folder.rglob("ledger/*.json")) == []
