"""Values that a policy takes from another table: anchors, conditions, and what several rows, none or null mean."""

from __future__ import annotations

import pytest

from tests.lifecycle.support import ago, audited, left, policy, queue_items

LOOKED_UP = {"take": "sent_at", "from": "public.plans", "same": "person"}
SENT = {"sent": {"anchor": LOOKED_UP, "keep": "24 hours"}}


def plans(admin, kind="timestamptz", *, unique=False):
    """Make the other table, with an index on what it is looked up by."""
    admin.execute(f"CREATE TABLE plans (id bigserial PRIMARY KEY, person text, sent_at {kind}, state text)")
    admin.execute(f"CREATE {'UNIQUE' if unique else ''} INDEX ON plans (person)")


def add(admin, number, person, *sent):
    """Insert a thing, and a plan of the same person for each moment."""
    admin.execute("INSERT INTO things (id, made_at, person) VALUES (%s, %s, %s)", (number, ago(days=400), person))
    for moment in sent:
        admin.execute("INSERT INTO plans (person, sent_at) VALUES (%s, %s)", (person, moment))


OLD, EDGE, NEW = ago(hours=25), ago(hours=24), ago(hours=23)
MANY = [
    # What several rows, none, null and infinity mean: the latest counts, and an unset value is never old.
    ("one old", [OLD], False),
    ("on the edge", [EDGE], True),
    ("one new", [NEW], True),
    ("old and new", [OLD, NEW], True),
    ("two old", [OLD, ago(days=3)], False),
    ("none", [], True),
    ("null", [None], True),
    ("null and old", [None, OLD], False),
    ("never", ["infinity"], True),
    ("always", ["-infinity"], False),
    ("old and never", [OLD, "infinity"], True),
]


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
@pytest.mark.parametrize("walk", [(), ("--limit", "1000")], ids=["sweep", "walk"])
def test_the_latest_of_the_rows_that_match_is_the_anchor(apply, things, kind, walk):
    plans(things, kind)
    things.execute("SET TimeZone = 'UTC'")
    for number, (name, sent, _) in enumerate(MANY):
        add(things, number, name, *sent)
    rules = {"rules": SENT}
    stay = [number for number, (*_, stays) in enumerate(MANY) if stays]

    foretold = apply({"things": policy(**rules)}, "--dry-run", *walk)
    run = apply({"things": policy(**rules)}, *walk)

    assert left(things) == stay
    assert run.code == 0
    assert foretold.closing["records_to_delete"] == run.closing["records_deleted"] == len(MANY) - len(stay)
    assert audited(things) == sorted(str(n) for n in range(len(MANY)) if n not in stay)


def test_a_day_is_an_anchor_too(apply, things):
    plans(things, "date")
    things.execute("SET TimeZone = 'UTC'")
    # The run is at 2 o'clock on the 31st: one day before that is the 30th, and only what is before the 30th is over.
    add(things, 1, "old", "2026-01-29")
    add(things, 2, "new", "2026-01-30")

    apply({"things": policy(rules=SENT)})

    assert left(things) == [2]


def test_null_equals_nothing(apply, things):
    plans(things)
    add(things, 1, None, OLD)
    rules = SENT | {"unsent": {"when": {"sent": LOOKED_UP | {"is": "set"}}, "anchor": "made_at", "keep": "1 day"}}

    assert apply({"things": policy(rules=rules)}).closing["records_deleted"] == 0
    assert left(things) == [1]


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_a_naive_moment_elsewhere_is_utc_whatever_the_servers_time_zone(apply, things, database, zone):
    plans(things, "timestamp")
    things.execute(f"ALTER DATABASE {things.info.dbname} SET TimeZone = '{zone}'")
    things.execute("SET TimeZone = 'UTC'")
    add(things, 1, "old", ago(hours=24, seconds=1))
    add(things, 2, "new", ago(hours=24))

    apply({"things": policy(rules=SENT)})

    assert left(things) == [2]


CONDITIONS = [
    ("set", {"one", "many"}),
    ("unset", {"none", "null", "nobody"}),
]


def test_a_condition_on_what_is_looked_up(apply, things):
    plans(things)
    names = {"one": [OLD], "many": [OLD, None], "none": [], "null": [None], "nobody": []}
    policies = {}
    for number, (condition, _) in enumerate(CONDITIONS):
        things.execute(f"CREATE TABLE case_{number} (LIKE things INCLUDING ALL)")
        policies[f"case_{number}"] = policy(
            table=f"public.case_{number}",
            rules={"old": {"when": {"sent_at": LOOKED_UP | {"is": condition}}, "anchor": "made_at", "keep": "30 days"}},
        )
    for number, (name, sent) in enumerate(names.items()):
        add(things, number, None if name == "nobody" else name, *(sent if name != "nobody" else []))
        for moment in sent if name == "nobody" else []:
            things.execute("INSERT INTO plans (person, sent_at) VALUES (NULL, %s)", (moment,))
    for number in range(len(CONDITIONS)):
        things.execute(f"INSERT INTO case_{number} SELECT * FROM things")

    assert apply(policies).code == 0

    kept = [{list(names)[key] for key in left(things, f"case_{number}")} for number in range(len(CONDITIONS))]
    assert kept == [set(names) - gone for _, gone in CONDITIONS]


def test_a_condition_on_a_value_that_is_no_moment_needs_to_know_which_row_counts(apply, things):
    plans(things)
    add(things, 1, "anna", OLD)
    state = {"take": "state", "from": "public.plans", "same": "person", "is": "done"}
    rules = {"old": {"when": {"state": state}, "anchor": "made_at", "keep": "1 day"}}

    run = apply({"things": policy(rules=rules)})

    assert run.code == 1
    assert "several rows of public.plans may have the same person" in run.closing["error"]
    assert left(things) == [1]


@pytest.mark.parametrize("states", [["open", "done"], ["done", "open"]])
def test_the_row_that_is_the_latest_by_a_column_counts(apply, things, states):
    plans(things)
    add(things, 1, "anna")
    for number, state in enumerate(states):
        things.execute(
            "INSERT INTO plans (person, sent_at, state) VALUES ('anna', %s, %s)", (ago(days=9 - number), state)
        )
    state = {"take": "state", "from": "public.plans", "same": "person", "latest": "sent_at", "is": "done"}
    rules = {"old": {"when": {"state": state}, "anchor": "made_at", "keep": "1 day"}}

    assert apply({"things": policy(rules=rules)}).code == 0
    assert left(things) == ([] if states[-1] == "done" else [1])


def test_values_in_another_table_are_read_as_that_columns_type(apply, things):
    plans(things, unique=True)
    things.execute("ALTER TABLE plans ADD amount numeric(10,2)")
    for number, amount in enumerate((70, 71)):
        add(things, number, str(amount))
        things.execute("INSERT INTO plans (person, amount) VALUES (%s, %s)", (str(amount), amount))
    rule = {"anchor": "made_at", "keep": "1 day"}
    amount = {"take": "amount", "from": "public.plans", "same": "person"}

    refused = apply({"things": policy(rules={"old": rule | {"when": {"a": amount | {"is": "dear"}}}})})
    assert refused.code == 1
    assert "rules.old.when.a.is: 'dear' is no value of public.plans.amount" in refused.closing["error"]

    apply({"things": policy(rules={"old": rule | {"when": {"a": amount | {"is": {"in": ["70.000"]}}}}})})
    assert left(things) == [1]


def test_an_exception_and_its_queue_go_by_what_is_looked_up(apply, things):
    plans(things)
    add(things, 1, "sent", OLD)
    add(things, 2, "owed", None)
    things.execute("ALTER TABLE plans ADD ordered_at timestamptz")
    things.execute("UPDATE plans SET ordered_at = %s", (ago(days=2),))
    ordered = {"take": "ordered_at", "from": "public.plans", "same": "person"}
    queue = {"item_type": "unsent", "priority": "high", "anchor": ordered, "after": "24 hours", "reason": "is owed"}
    rules = {"old": {"anchor": "made_at", "keep": "30 days"}}
    exceptions = {"unsent": {"when": {"sent_at": LOOKED_UP | {"is": "unset"}}, "queue": queue}}

    foretold = apply({"things": policy(rules=rules, exceptions=exceptions)}, "--dry-run")
    run = apply({"things": policy(rules=rules, exceptions=exceptions)})

    assert left(things) == [2]
    assert queue_items(things) == [("unsent", "2", 1)]
    assert (foretold.closing["records_queued"], run.code, run.closing["records_queued"]) == (1, 4, 1)


def test_the_same_values_in_several_columns_by_other_names(apply, things):
    things.execute("CREATE TABLE sent (tenant bigint, thing text, at timestamptz, PRIMARY KEY (tenant, thing))")
    for number in (1, 2):
        add_one = "INSERT INTO things (id, made_at, person) VALUES (%s, %s, 'same')"
        things.execute(add_one, (number, ago(days=400)))
    things.execute("INSERT INTO sent VALUES (1, 'same', %s), (2, 'other', %s)", (OLD, OLD))
    anchor = {"take": "at", "from": "public.sent", "same": {"id": "tenant", "person": "thing"}}

    apply({"things": policy(rules={"sent": {"anchor": anchor, "keep": "24 hours"}})})

    assert left(things) == [2]


def test_a_value_of_another_row_of_the_same_table(apply, things):
    # A thread goes as a whole, a month after its newest entry, although each batch takes rows that the others look up.
    things.execute("CREATE INDEX ON things (kind)")
    rows = [(1, 90, "old"), (2, 40, "old"), (3, 90, "new"), (4, 10, "new")]
    for number, days, kind in rows:
        things.execute("INSERT INTO things (id, made_at, kind) VALUES (%s, %s, %s)", (number, ago(days=days), kind))
    anchor = {"take": "made_at", "from": "public.things", "same": "kind"}

    run = apply({"things": policy(rules={"old": {"anchor": anchor, "keep": "30 days"}})})

    assert (run.code, left(things)) == (0, [3, 4])


def test_texts_are_compared_in_the_other_tables_collation(apply, things):
    things.execute('CREATE TABLE plans (person text COLLATE "C" PRIMARY KEY, sent_at timestamptz)')
    things.execute("INSERT INTO plans VALUES ('anna', %s)", (OLD,))
    things.execute('ALTER TABLE things ALTER person TYPE varchar COLLATE "POSIX"')
    for number, person in enumerate(("anna", "Anna")):
        things.execute("INSERT INTO things (id, made_at, person) VALUES (%s, %s, %s)", (number, OLD, person))

    run = apply({"things": policy(rules=SENT)})

    assert (run.code, left(things)) == (0, [1])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            "CREATE TABLE plans (person uuid PRIMARY KEY, sent_at timestamptz)",
            "public.things.person (text) and public.plans.person (uuid) cannot be compared",
        ),
        (
            "CREATE TABLE plans (person text PRIMARY KEY, sent_at text)",
            "public.plans.sent_at is text, not a date or timestamp",
        ),
        ("CREATE TABLE plans (person text PRIMARY KEY)", "column public.plans.sent_at does not exist"),
        (
            "CREATE TABLE plans (whose text PRIMARY KEY, sent_at timestamptz)",
            "column public.plans.person does not exist",
        ),
        ("CREATE VIEW plans AS SELECT ''::text AS person, now() AS sent_at", "public.plans is not a table"),
        ("SELECT", "table public.plans does not exist"),
    ],
)
def test_what_the_database_contradicts_is_named_before_anything_is_done(apply, things, make, told):
    things.execute(make)
    things.execute("INSERT INTO things (id, made_at, person) VALUES (1, %s, 'anna')", (OLD,))

    run = apply({"things": policy(rules=SENT)}, grant=False) if make == "SELECT" else None
    things.execute("GRANT SELECT, UPDATE, DELETE ON things TO lifecycle_jobs")
    if make != "SELECT":
        things.execute("GRANT SELECT ON plans TO lifecycle_jobs")
    run = apply({"things": policy(rules=SENT)}, grant=False)

    assert run.code == 1
    assert told in run.closing["error"]
    assert left(things) == [1]


def test_a_missing_right_and_a_missing_index_are_named_with_their_cure(apply, things):
    plans(things)
    things.execute("DROP INDEX plans_person_idx")
    add(things, 1, "anna", OLD)
    things.execute("GRANT SELECT, UPDATE, DELETE ON things TO lifecycle_jobs")
    things.execute("GRANT SELECT (person) ON plans TO lifecycle_jobs")

    refused = apply({"things": policy(rules=SENT)}, grant=False)

    assert "no right to SELECT public.plans.sent_at for policies.things.rules.sent.anchor" in refused.closing["error"]
    assert left(things) == [1]

    warned = apply({"things": policy(rules=SENT)})

    told = " ".join(line["problem"] for line in warned.events("preflight_warning"))
    assert 'CREATE INDEX CONCURRENTLY ON "public"."plans" ("person")' in told
    assert left(things) == []


def test_a_large_table_without_the_index_is_refused(apply, things):
    plans(things)
    things.execute("DROP INDEX plans_person_idx")
    things.execute("INSERT INTO plans (person, state) SELECT n::text, repeat('x', 200) FROM generate_series(1, 8000) n")
    add(things, 1, "anna", OLD)

    refused = apply({"things": policy(rules=SENT)})

    assert refused.code == 1
    assert "public.plans has no index that begins with person" in refused.closing["error"]


def test_what_is_marked_or_anonymised_goes_by_what_is_looked_up(apply, things):
    plans(things)
    things.execute("ALTER TABLE things ADD gone_at timestamptz, ADD cleared_at timestamptz")
    add(things, 1, "anna", OLD)
    add(things, 2, "ben", NEW)
    marked = policy(rules=SENT, action="soft_delete", soft_delete={"deleted_at": "gone_at"})
    cleared = policy(
        rules={"sent": {"anchor": LOOKED_UP | {"same": {"kind": "person"}}, "keep": "24 hours"}},
        action="anonymize",
        anonymize={"columns": {"person": None}, "marker": "cleared_at"},
    )
    things.execute("UPDATE things SET kind = person")

    assert apply({"marked": marked, "cleared": cleared}).code == 0

    rows = things.execute("SELECT id, person, gone_at IS NULL, cleared_at IS NULL FROM things ORDER BY id").fetchall()
    assert rows == [(1, None, False, False), (2, "ben", True, True)]


def conversations(admin, ages):
    """Make conversations, each with messages of these ages in days, which go with it."""
    admin.execute(
        "CREATE TABLE messages (id bigserial PRIMARY KEY, thing bigint NOT NULL REFERENCES things ON DELETE CASCADE,"
        " sent_at timestamptz); CREATE INDEX ON messages (thing)"
    )
    for number, days in ages.items():
        admin.execute("INSERT INTO things (id, made_at) VALUES (%s, %s)", (number, ago(days=900)))
        for day in days:
            admin.execute("INSERT INTO messages (thing, sent_at) VALUES (%s, %s)", (number, ago(days=day)))


LATEST = {"take": "sent_at", "from": "public.messages", "same": {"id": "thing"}}
TALK = policy(
    rules={"silent": {"anchor": LATEST, "keep": "365 days"}},
    dependants=[{"table": "public.messages", "column": "thing", "action": "delete"}],
)


@pytest.mark.parametrize("flags", [(), ("--batch-size", "1"), ("--batch-size", "3")], ids=str)
def test_a_row_goes_by_the_latest_of_the_dependants_that_go_with_it(apply, things, flags):
    # One of them has more messages than a batch may have.
    conversations(things, {1: [400, 500], 2: [400, 10], 3: [], 4: [380 + n for n in range(7)]})

    foretold = apply({"things": TALK}, "--dry-run", *flags)
    run = apply({"things": TALK}, *flags)

    assert (run.code, left(things)) == (0, [2, 3])
    assert things.execute("SELECT count(*) FROM messages").fetchone() == (2,)
    assert (foretold.closing["records_to_delete"], run.closing["records_deleted"]) == (2, 2)
    assert len(audited(things, "public.messages")) == 9


def test_a_dependant_that_is_cut_off_cannot_be_what_a_row_is_looked_up_by(apply, things):
    conversations(things, {1: [400]})
    things.execute(
        "ALTER TABLE messages ALTER thing DROP NOT NULL, DROP CONSTRAINT messages_thing_fkey,"
        " ADD CONSTRAINT messages_thing_fkey FOREIGN KEY (thing) REFERENCES things ON DELETE SET NULL"
    )
    cut = [{"table": "public.messages", "column": "thing", "action": "set_null"}]

    run = apply({"things": TALK | {"dependants": cut}})

    assert run.code == 1
    assert "set_null of public.messages changes thing, by which" in run.closing["error"]
    assert left(things) == [1]
