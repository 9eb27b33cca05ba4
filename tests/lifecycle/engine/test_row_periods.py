"""A period that each row says itself: whose it is, what bounds it, and what is none."""

from __future__ import annotations

import pytest

from tests.lifecycle.support import AS_OF, ago, left, policy

TENANTS = {"take": "keeps", "unit": "days", "from": "public.tenants", "same": {"kind": "name"}, "else": "90 days"}
OWN = {"take": "keeps", "unit": "days", "else": "90 days"}


def rules(keep, **bounds):
    """Return the one rule of a policy."""
    return {"rules": {"old": {"anchor": "made_at", **bounds, "keep": keep}}}


def tenants(admin, kind="integer", **said):
    """Make tenants that say a period, and one thing of each, one day apart: 1, 10, 29, 31, 89, 91 and 400 days old."""
    admin.execute(f"CREATE TABLE tenants (name text PRIMARY KEY, keeps {kind})")
    for name, keeps in said.items():
        admin.execute("INSERT INTO tenants VALUES (%s, %s)", (name, keeps))
    for name in (*said, "nobody"):
        ages(admin, name)


AGES = (1, 10, 29, 31, 89, 91, 400)


def ages(admin, name):
    """Insert a thing of each age."""
    for days in AGES:
        admin.execute(
            "INSERT INTO things (id, made_at, kind) SELECT coalesce(max(id), -1) + 1, %s, %s FROM things",
            (ago(days=days), name),
        )


def oldest(admin):
    """Return the age of the oldest thing that each has left, in days."""
    rows = admin.execute("SELECT kind, extract(day FROM %s - min(made_at))::int FROM things GROUP BY kind", (AS_OF,))
    return dict(rows.fetchall())


@pytest.mark.parametrize("walk", [(), ("--limit", "1000")], ids=["sweep", "walk"])
def test_each_tenants_rows_are_kept_as_long_as_it_says(apply, things, walk):
    tenants(things, month=30, short=9, unset=None, long=300)
    work = {"things": policy(**rules(TENANTS))}

    foretold = apply(work, "--dry-run", *walk)
    run = apply(work, *walk)

    assert oldest(things) == {"month": 29, "short": 1, "unset": 89, "long": 91, "nobody": 89}
    assert run.code == 0
    assert foretold.closing["records_to_delete"] == run.closing["records_deleted"]
    assert run.closing["records_remaining"] == 0


def test_null_and_a_number_are_forever_only_where_the_file_says_so(apply, things):
    tenants(things, month=30, unset=None, minus=-1)

    apply({"things": policy(**rules(TENANTS | {"forever": [None, -1]}))})

    assert oldest(things) == {"month": 29, "unset": 400, "minus": 400, "nobody": 89}


def test_else_may_be_forever(apply, things):
    tenants(things, month=30, unset=None)

    apply({"things": policy(**rules(TENANTS | {"else": "forever"}))})

    assert oldest(things) == {"month": 29, "unset": 400, "nobody": 400}


def test_a_row_may_say_its_period_itself(apply, things):
    things.execute("ALTER TABLE things ADD keeps smallint")
    ages(things, "month")
    things.execute("UPDATE things SET keeps = 30")
    ages(things, "unset")

    run = apply({"things": policy(**rules(OWN))})

    assert oldest(things) == {"month": 29, "unset": 89}
    assert run.code == 0


def test_floor_and_ceiling_hold_for_every_row(apply, things):
    tenants(things, low=1, zero=0, within=30, high=300, minus=-5)

    run = apply({"things": policy(**rules(TENANTS, floor="10 days", ceiling="90 days"))})

    assert run.event("row_periods")["problem"] == (
        "rules.old.keep: public.tenants.keeps has 2 below the floor of 10 days, which counts, 1 above the ceiling of"
        " 90 days, which counts, 1 that are no period, whose rows go at the ceiling of 90 days"
    )
    # Below the floor: kept until the floor. Above the ceiling, and what is no period: gone at the ceiling.
    assert oldest(things) == {"low": 10, "zero": 10, "within": 29, "high": 89, "minus": 89, "nobody": 89}


ODD = [
    ("integer", "0"),
    ("integer", "-30"),
    ("integer", "2147483647"),
    ("bigint", "-9223372036854775808"),
    ("bigint", "9223372036854775807"),
    ("numeric", "NaN"),
    ("numeric", "Infinity"),
    ("numeric", "1e100"),
    ("real", "NaN"),
    ("double precision", "-Infinity"),
    ("double precision", "Infinity"),
]


@pytest.mark.parametrize(("kind", "value"), ODD)
@pytest.mark.parametrize("unit", ["minutes", "years"])
def test_what_is_no_period_keeps_its_rows_and_ends_no_run(apply, things, kind, value, unit):
    tenants(things, kind, odd=value)
    keep = TENANTS | {"unit": unit}

    run = apply({"things": policy(**rules(keep))})
    assert (run.code, oldest(things)) == (0, {"odd": 400, "nobody": 89})

    # Zero is a period where a floor says what the shortest one is; it was none before, so it is asked about.
    run = apply({"things": policy(**rules(keep, floor="10 days"))}, "--confirm-cap", "10")
    assert (run.code, oldest(things)) == (0, {"odd": 10 if value == "0" else 400, "nobody": 89})


INTERVALS = [
    ("30 days", 29),
    ("1 month", 31),
    ("P1M", 31),
    ("720:00:00", 29),
    ("0", 400),
    ("-1 day", 400),
    ("1 month -40 days", 400),
    ("170000000 years", 400),
    ("1000000 months -30000000 days", 400),
    ("-170000000 years", 400),
    ("2000000000 days", 400),
    (None, 89),
]


def test_an_interval_needs_no_unit_and_none_is_too_large(apply, things):
    said = {f"case_{number}": value for number, (value, _) in enumerate(INTERVALS)}
    tenants(things, "interval", **said)
    if things.info.server_version >= 170000:
        things.execute("INSERT INTO tenants VALUES ('ever', 'infinity'), ('never', '-infinity')")
        ages(things, "ever")
        ages(things, "never")
    keep = {name: value for name, value in TENANTS.items() if name != "unit"}

    run = apply({"things": policy(**rules(keep))})

    assert run.code == 0
    left_of = oldest(things)
    assert [left_of[name] for name in said] == [days for _, days in INTERVALS]
    assert {left_of.get("ever", 400), left_of.get("never", 400)} == {400}


def test_fractions_and_other_units(apply, things):
    things.execute("ALTER TABLE things ADD keeps numeric")
    edge = [(1, 1.5, {"hours": 35}), (2, 1.5, {"hours": 37}), (3, 0.5, {"hours": 11}), (4, 0.5, {"hours": 13})]
    for number, keeps, age in edge:
        things.execute("INSERT INTO things (id, made_at, keeps) VALUES (%s, %s, %s)", (number, ago(**age), keeps))

    apply({"things": policy(**rules(OWN))})

    assert left(things) == [1, 3]


def test_months_are_calendar_months_in_utc(apply, things, database):
    # A month before 02:00 on the 31st is 02:00 on the 31st; in New York it would be the 30th.
    things.execute(f"ALTER DATABASE {things.info.dbname} SET TimeZone = 'America/New_York'")
    things.execute("ALTER TABLE things ADD keeps int DEFAULT 1")
    for number, seconds in enumerate((1, 0)):
        moment = ago(days=31, seconds=seconds)
        things.execute("INSERT INTO things (id, made_at) VALUES (%s, %s)", (number, moment))

    apply({"things": policy(**rules(OWN | {"unit": "months"}))})

    assert left(things) == [1]


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "date"])
def test_anchors_of_each_type(apply, things, kind):
    things.execute("SET TimeZone = 'UTC'")
    things.execute(f"ALTER TABLE things ALTER made_at TYPE {kind}")
    things.execute("ALTER TABLE things ADD keeps int DEFAULT 30")
    for number, moment in enumerate((ago(days=32), ago(days=29), "infinity", "-infinity")):
        things.execute("INSERT INTO things (id, made_at) VALUES (%s, %s)", (number, moment))

    run = apply({"things": policy(**rules(OWN))})

    assert (run.code, left(things)) == (0, [1, 2])


def test_an_anchor_and_a_period_from_other_tables(apply, things):
    tenants(things, month=30)
    things.execute("CREATE TABLE sent (thing bigint PRIMARY KEY, at timestamptz)")
    things.execute("INSERT INTO sent SELECT id, CASE WHEN id %% 2 = 0 THEN made_at ELSE %s END FROM things", (AS_OF,))
    anchor = {"take": "at", "from": "public.sent", "same": {"id": "thing"}}

    run = apply({"things": policy(rules={"old": {"anchor": anchor, "keep": TENANTS}})})

    assert run.code == 0
    gone = {number for number, days in enumerate(AGES) if days > 30 and number % 2 == 0}
    gone |= {number + len(AGES) for number, days in enumerate(AGES) if days > 90 and (number + len(AGES)) % 2 == 0}
    assert left(things) == [number for number in range(2 * len(AGES)) if number not in gone]


@pytest.mark.parametrize(
    ("kind", "keep", "told"),
    [
        ("text", TENANTS, "public.tenants.keeps is text, not a number: it is no period"),
        ("interval", TENANTS, "public.tenants.keeps is interval, not a number: leave out unit"),
        (
            "integer",
            {name: value for name, value in TENANTS.items() if name != "unit"},
            "public.tenants.keeps is integer, not an interval: say the unit",
        ),
    ],
)
def test_what_cannot_say_a_period_is_named(apply, things, kind, keep, told):
    tenants(things, kind)

    run = apply({"things": policy(**rules(keep))})

    assert run.code == 1
    assert told in run.closing["error"]
    assert len(left(things)) == len(AGES)


def test_the_oldest_row_is_overdue_by_its_own_period(apply, things):
    tenants(things, month=30, long=300)
    things.execute("DELETE FROM things WHERE kind = 'nobody' OR kind = 'long' AND made_at < %s", (ago(days=300),))

    run = apply({"things": policy(**rules(TENANTS))}, "--dry-run")

    assert run.closing["oldest_overdue_seconds"] == (400 - 30) * 86400


def test_the_audit_says_whose_period_it_was(apply, things):
    tenants(things, month=30)

    apply({"things": policy(**rules(TENANTS, floor="7 days"))})

    facts = things.execute(
        "SELECT DISTINCT metadata - '{policy_hash,session_user}'::text[] FROM ops.audit_log"
    ).fetchall()
    assert facts == [
        (
            {
                "due_before": ago(days=7).isoformat(),
                "period": "public.tenants.keeps of the same kind (name there) (days), else 90 days",
            },
        )
    ]


CAP = "rows of another table say a shorter period since"


def test_a_tenants_period_that_became_shorter_is_asked_about_before_a_row_goes(apply, things):
    tenants(things, month=30, long=300)
    work = {"things": policy(**rules(TENANTS))}
    assert apply(work).code == 0
    things.execute("UPDATE tenants SET keeps = 20 WHERE name = 'long'")

    foretold, refused = apply(work, "--dry-run"), apply(work)

    assert (foretold.code, refused.code) == (1, 1)
    assert "4 rows by the period of old" in refused.closing["error"]
    assert CAP in foretold.closing["error"]
    assert oldest(things)["long"] == 91

    assert apply(work, "--confirm-cap", "10").code == 0
    assert oldest(things)["long"] == 10
    ages(things, "long")
    assert apply(work).code == 0  # it is what the last completed run found


@pytest.mark.parametrize(
    ("change", "asks"),
    [
        ("UPDATE tenants SET keeps = 400", False),
        ("UPDATE tenants SET keeps = 300 WHERE name = 'ever'", True),
        ("DELETE FROM tenants WHERE name = 'long'", True),
        ("UPDATE tenants SET keeps = NULL WHERE name = 'long'", True),
        ("INSERT INTO tenants VALUES ('nobody', 20)", True),
        ("INSERT INTO tenants VALUES ('nobody', 91)", False),
        ("INSERT INTO tenants VALUES ('new', 1)", False),
        ("UPDATE tenants SET keeps = 299 WHERE name = 'long'", False),
    ],
)
def test_what_makes_a_period_shorter(apply, things, change, asks):
    tenants(things, month=30, long=300, ever=-1)
    work = {"things": policy(**rules(TENANTS | {"forever": -1}))}
    assert apply(work).code == 0
    before = left(things)
    things.execute(change)

    run = apply(work)

    assert run.code == (1 if asks else 0)
    assert (CAP in (run.closing.get("error") or "")) is asks
    assert left(things) == before


def test_the_passing_of_time_and_rows_of_other_ages_are_no_shorter_period(apply, things):
    tenants(things, month=30)
    work = {"things": policy(**rules(TENANTS))}
    assert apply(work).code == 0
    ages(things, "month")

    run = apply(work)

    assert (run.code, run.closing["records_deleted"]) == (0, 4)


@pytest.mark.parametrize(
    ("before", "after", "asks"),
    [
        ("400 days", OWN, True),
        (OWN | {"else": "400 days"}, OWN, True),
        (OWN, OWN | {"unit": "hours"}, True),
        (OWN, OWN | {"else": "400 days"}, False),
        (OWN, "forever", False),
    ],
)
def test_a_file_that_may_shorten_a_rows_period_is_asked_about(apply, things, before, after, asks):
    things.execute("ALTER TABLE things ADD keeps int")
    ages(things, "unset")
    assert apply({"things": policy(**rules(before))}).code == 0
    ages(things, "late")

    run = apply({"things": policy(**rules(after))})

    assert ("became shorter since the last completed run" in (run.closing.get("error") or "")) is asks


@pytest.mark.parametrize(
    ("bound", "asks"), [({"floor": "10 days"}, True), ({"ceiling": "300 days"}, True), ({}, False)]
)
def test_a_bound_of_the_file_is_part_of_the_period(apply, things, bound, asks):
    things.execute("ALTER TABLE things ADD keeps int")
    ages(things, "unset")
    wide = {"floor": "20 days", "ceiling": "400 days"}
    assert apply({"things": policy(**rules(OWN, **wide))}).code == 0
    ages(things, "late")

    run = apply({"things": policy(**rules(OWN, **wide | bound))})

    assert ("became shorter since" in (run.closing.get("error") or "")) is asks
