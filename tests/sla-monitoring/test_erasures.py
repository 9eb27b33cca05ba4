"""The deadline of erasure requests: near at 80 %, passed at 100 %, told once each and over once they are honoured."""

import pytest

KEY = "gdpr:deadline"


@pytest.fixture
def request_of(world):
    """A function that puts a request on record, so many days old."""

    def make(days, **columns):
        columns = {"channel": "web", "email": "anna@example.com"} | columns
        world.admin.execute(
            f"INSERT INTO ops.erasure_requests (requested_at, {', '.join(columns)})"
            f" VALUES (now() - make_interval(hours => %s), {', '.join(['%s'] * len(columns))})",
            [int(24 * days), *columns.values()],
        )

    return make


@pytest.mark.parametrize(("days", "severity"), [(23.9, None), (24.1, "warning"), (29.9, "warning"), (30.1, "critical")])
def test_a_request_that_nobody_has_taken_in_has_a_clock_too(world, monitor, request_of, days, severity):
    request_of(days)
    looked = monitor()
    assert dict(world.alerts()).get(KEY) == severity
    assert (KEY in looked["raised"]) is (severity is not None)
    assert looked["erasures_open"] == 1


def test_it_is_told_once_grows_worse_and_is_over_when_it_is_honoured(world, monitor, request_of):
    request_of(25, status="blocked")
    assert monitor()["raised"] == [KEY]
    assert monitor()["raised"] == []
    world.admin.execute("UPDATE ops.erasure_requests SET requested_at = now() - interval '31 days'")
    monitor()
    assert dict(world.alerts())[KEY] == "critical"
    world.admin.execute("UPDATE ops.erasure_requests SET status = 'cancelled', closed_at = now(), email = NULL")
    assert monitor()["recovered"] == [KEY]
    assert KEY not in dict(world.alerts())


def test_the_alert_names_the_request_and_nobody(world, monitor, request_of):
    request_of(31)
    monitor()
    ((text,),) = world.admin.execute("SELECT to_jsonb(a)::text FROM ops.alerts a WHERE key = %s", (KEY,)).fetchall()
    ((request,),) = world.admin.execute("SELECT id::text FROM ops.erasure_requests").fetchall()
    assert request in text
    assert "anna" not in text
