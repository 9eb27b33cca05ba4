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
            assert (done.code, "nothing was done" in done.closing["error"]) == (2, True), how
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
    assert done.event("erasure_not_replayed")["error"] == "a hold keeps the person's archive key"
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


def ledger(world):
    """The ledger's objects: its head, and its lines."""
    return world.folder / "erasure" / "ledger-head.json", sorted(world.folder.rglob("ledger/*.json"))


def test_a_line_that_was_deleted_is_missed_by_replay_and_run_and_nothing_is_written(world, restored, erase, asked):
    world.add("first@example.com")
    world.add("last@example.com")
    asked("first@example.com")
    asked("last@example.com")
    assert erase().closing["ledger_lines"] == 2
    world.add(PERSON, address=ADDRESS, name=NAME)
    _, then = restored()
    _, lines = ledger(world)
    before = world.rows("ops.erasure_requests"), world.rows("ops.audit_log")
    for number, line in enumerate(lines):
        text = line.read_text()
        line.unlink()
        for words in (("--replay",), ("--replay", "--dry-run"), ()):
            done = erase(*words, **then)
            assert (done.code, "1 of 3 lines of the erasure ledger are missing" in done.closing["error"]) == (2, True)
        if number == 1:
            line.with_name("00000000-0000-4000-8000-00000000abcd.json").write_text(text)
            assert "are not the 3 that its head counts" in erase("--replay", **then).closing["error"]
            line.with_name("00000000-0000-4000-8000-00000000abcd.json").unlink()
        line.write_text(text)
    assert (world.rows("ops.erasure_requests"), world.rows("ops.audit_log")) == before

    done = erase("--replay", **then)

    assert (done.code, done.closing["replayed"], done.closing["ledger_lines"]) == (0, 1, 3)


def test_without_a_head_or_with_an_altered_one_or_without_anything_the_ledger_is_not_whole(world, restored, erase):
    world.add(PERSON, address=ADDRESS, name=NAME)
    _, then = restored()
    head, (line,) = ledger(world)
    text, content = head.read_text(), line.read_text()
    head.unlink()
    assert "has 1 lines and no head" in erase("--replay", **then).closing["error"]
    head.write_text(json.dumps(json.loads(text) | {"lines": 0, "sum": "0" * 64}))
    assert "it was altered" in erase("--replay", **then).closing["error"]
    head.unlink()
    line.unlink()
    done = erase("--replay", **then)
    assert (done.code, "there is no erasure ledger" in done.closing["error"]) == (2, True)
    line.write_text(content)
    head.write_text(text)
    assert erase("--replay", **then).closing["replayed"] == 1


def test_a_run_that_was_killed_before_the_head_counted_its_line_is_no_alarm(world, person, erase, asked):
    asked("xannegret@gmail.com")
    assert erase().code == 0
    head, _ = ledger(world)
    former = head.read_text()
    asked()
    assert erase().closing["ledger_lines"] == 2
    head.write_text(former)
    assert erase("--replay", "--dry-run").code == 0
    done = erase()
    assert (done.code, done.closing["ledger_lines"]) == (0, 2)
    world.link.execute("UPDATE ops.erasure_requests SET closed_at = closed_at - interval '31 days'")
    done = erase()
    assert (done.code, done.closing["ledger_lines"], ledger(world)[1]) == (0, 0, [])
    assert erase("--replay").code == 0


def as_an_earlier_version_left_it(world, *, code):
    """No head; and the lines of the very first version carry no code."""
    head, lines = ledger(world)
    head.unlink()
    for line in lines:
        facts = json.loads(line.read_text())
        line.write_text(json.dumps(facts if code else {name: facts[name] for name in facts if name != "code"}))


@pytest.mark.parametrize("code", [True, False])
def test_lines_of_an_earlier_version_are_accepted_by_an_operator_alone(world, person, erase, asked, code):
    request = asked()
    assert erase().code == 0
    as_an_earlier_version_left_it(world, code=code)
    assert erase().code == 2

    assert erase("sign-ledger", CLEANUP_DRY_RUN="true").code == 0
    assert erase().code == 2
    done = erase("sign-ledger", "--operator", "otto")

    assert (done.code, done.event("ledger_signed")["signed"], done.event("ledger_signed")["lines"]) == (0, not code, 1)
    said = world.rows("ops.audit_log", "actor, action", "action = 'ledger_signed'")
    assert said == [("operator:otto", "ledger_signed")]
    signed = [] if code else [request]
    assert world.rows("ops.ledger_signatures", "signed_by, requests::text[], lines") == [("otto", signed, 1)]
    assert erase().code == erase("--replay").code == 0


def test_a_line_that_the_database_does_not_know_is_accepted_by_its_name_alone(world, restored, erase):
    world.add(PERSON, address=ADDRESS, name=NAME)
    request, then = restored()
    as_an_earlier_version_left_it(world, code=False)
    done = erase("sign-ledger", **then)
    assert (done.code, f"knows of no erasure {request}" in done.closing["error"]) == (2, True)
    assert erase("sign-ledger", request, **then).code == 0
    assert erase("--replay", **then).closing["replayed"] == 1


def test_that_a_line_is_missing_is_accepted_by_a_flag_alone(world, restored, erase, asked):
    world.add("first@example.com")
    first = asked("first@example.com")
    assert erase().code == 0
    world.add(PERSON, address=ADDRESS, name=NAME)
    _, then = restored()
    (world.folder / "erasure" / "ledger" / f"{first}.json").unlink()
    done = erase("sign-ledger", **then)
    assert (done.code, "--accept-missing" in done.closing["error"]) == (2, True)
    assert erase("sign-ledger", "--accept-missing", **then).event("ledger_signed")["missing"] == 1
    assert erase("--replay", **then).closing["replayed"] == 1
