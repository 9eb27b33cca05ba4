"""A legal hold that ends by itself: said before, over when it is replaced, and what it kept is due afterwards."""

from datetime import timedelta

import pytest

from scripts.lifecycle.engine import holds
from tests.lifecycle.support import ANNA

TABLE = "public.quiz_responses"


@pytest.fixture
def place(db, world):
    def make(days, **what):
        until = None
        if days is not None:
            (until,) = world.admin.execute("SELECT now() + make_interval(days => %s)", (days,)).fetchone()
        return holds.place(db, operator="olga", reason="a secret case", expires_at=until, **what)

    return make


def test_a_hold_that_ends_soon_is_told_before_and_without_who(monitor, place, world, told):
    world.watched()
    world.ran()
    place(15, table=TABLE)
    place(None, person="ben@example.com")
    soon = place(13, person=ANNA)
    key = f"hold:{soon}:ends"

    assert key in monitor()["raised"]
    assert [each for each in world.alerts() if each[0].startswith("hold:")] == [(key, "warning")]
    (said,) = [text for text in told()[0] if "hold" in text]
    assert "a legal hold on a person ends on" in said
    assert not any(word in str(told) + said for word in (ANNA, "secret"))
    assert monitor()["raised"] == [], "told once"

    place(None, person=ANNA)
    assert key in monitor()["recovered"], "another hold keeps the same for longer"


def test_after_its_end_what_it_kept_is_past_its_date(monitor, place, world, db):
    world.watched()
    world.ran()
    world.quiz(timedelta(hours=99))
    hold = place(1, table=TABLE)
    assert monitor()["raised"] == [f"hold:{hold}:ends"]

    world.admin.execute(
        "UPDATE ops.legal_holds SET placed_at = now() - interval '2 days', expires_at = now() WHERE id = %s", (hold,)
    )

    ended = monitor()
    assert (ended["recovered"], holds.active(db)) == ([f"hold:{hold}:ends"], [])
    assert any(key.endswith(":overdue") for key in ended["raised"]), "the next run has it to take"
