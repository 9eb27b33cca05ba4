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


ODD = ({"started_at": "2026-11-01"}, {"request": "x"}, {"archive_pseudonym": "no hex"})


def test_a_line_that_cannot_be_read_is_an_error_and_not_overlooked(world, person, erase, asked):
    asked()
    assert erase().code == 0
    (line,) = world.folder.rglob("ledger/*.json")
    whole = json.loads(line.read_text())
    for text in ("{", "[]", "{}", *(json.dumps(whole | odd) for odd in ODD)):
        line.write_text(text)
        done = erase("--replay")
        assert (done.code, "is not a line of the erasure ledger" in done.closing["error"]) == (1, True), text


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
