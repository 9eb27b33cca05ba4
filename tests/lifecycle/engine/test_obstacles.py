"""What a DELETE or an UPDATE would set off or be refused for is named before the first row goes."""

from __future__ import annotations

import pytest

from scripts.lifecycle.health.policy_check import check
from scripts.lifecycle.jobs.entry_point import Job, Kind
from tests.lifecycle.support import add_things, audited, left, policy, queue_items

TRAIL = "CREATE TABLE trail (id bigint PRIMARY KEY, thing bigint, said text)"
NOTES = [{"table": "public.notes", "column": "thing_id", "action": "delete"}]


@pytest.fixture
def five(things):
    add_things(things, 1, 5)
    return things


@pytest.fixture
def checking(run_job, apply, tmp_path):
    """A function that checks a policy file, as --check does, and returns what is not well with policy things."""

    def run(rules):
        apply({"things": rules}, "--dry-run")  # writes the file, and grants
        job = Job("policy_check", check, "Check.", kind=Kind.TAKES_NO_LOCK, events="policy_check")
        done = run_job("--policy-file", str(tmp_path / "policies.yaml"), job=job, as_of=None)
        found = [line for line in done.events("policy_check") if line["check"] == "policies"]
        return [(line["status"], line["message"]) for line in found if line["status"] != "PASS"]

    return run


def trigger(admin, body, *, on="things", event="AFTER DELETE", each="ROW", options="", name="tell"):
    admin.execute(
        f"CREATE FUNCTION {name}_it() RETURNS trigger LANGUAGE plpgsql {options} AS $$ BEGIN {body}; RETURN OLD; END $$;"
        f"CREATE TRIGGER {name} {event} ON {on} FOR EACH {each} EXECUTE FUNCTION {name}_it()"
    )


FORBIDDEN = {
    "an insert": ("INSERT INTO trail VALUES (OLD.id, OLD.id, 'gone')", "INSERT on public.trail"),
    "with its schema": ('insert  into "public" . "trail" values (1)', "INSERT on public.trail"),
    "an update": ("UPDATE ONLY trail AS t SET said = 'gone' WHERE t.id = OLD.id", "UPDATE on public.trail"),
    "a delete": ("DELETE FROM trail WHERE id = OLD.id", "DELETE on public.trail"),
    "a look": ("PERFORM 1 FROM trail WHERE id = OLD.id", "SELECT on public.trail"),
    "a join": ("PERFORM 1 FROM things t JOIN trail USING (id)", "SELECT on public.trail"),
    "of this event": ("IF TG_OP = 'DELETE' THEN DELETE FROM trail; END IF", "DELETE on public.trail"),
}
PERHAPS = {
    "by way of a function": ("PERFORM note_it(OLD.id)", "INSERT on public.trail"),
    "by way of another trigger": ("INSERT INTO relay VALUES (OLD.id)", "INSERT on public.trail"),
    "a sequence": ("INSERT INTO counted (said) VALUES ('gone')", "USAGE on sequence public.counted_id_seq"),
    "a function": ("PERFORM secret(OLD.id)", "EXECUTE on public.secret"),
    "in a branch": ("IF OLD.id > 0 THEN DELETE FROM trail; END IF", "DELETE on public.trail"),
    "as a text": ("EXECUTE 'DELETE FROM trail'", "DELETE on public.trail"),
}


@pytest.mark.parametrize("kind", FORBIDDEN | PERHAPS)
def test_a_trigger_that_writes_where_the_role_may_not_is_named_with_table_and_cure(apply, five, checking, kind):
    body, needs = (FORBIDDEN | PERHAPS)[kind]
    five.execute(
        f"{TRAIL}; CREATE FUNCTION note_it(n bigint) RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO trail VALUES (n, n, 'gone'); END $$;"
        "CREATE TABLE relay (id bigint); GRANT INSERT ON relay TO lifecycle_jobs;"
        "CREATE TABLE counted (id serial, said text); GRANT INSERT ON counted TO lifecycle_jobs;"
        "CREATE FUNCTION secret(n bigint) RETURNS void LANGUAGE sql AS 'SELECT'; REVOKE ALL ON FUNCTION secret FROM PUBLIC"
    )
    trigger(five, body)
    trigger(
        five, "INSERT INTO trail VALUES (NEW.id, NEW.id, 'relayed')", on="relay", event="AFTER INSERT", name="relay"
    )

    found = checking(policy())
    run = apply({"things": policy()})

    assert any(
        status == ("FAIL" if kind in FORBIDDEN else "WARN")
        and "trigger tell on public.things runs" in said
        and f"which needs {needs}, and" in said
        and "SECURITY DEFINER" in said
        for status, said in found
    ), found
    assert (run.code, left(five), audited(five)) == (1, [1, 2, 3, 4, 5], [])
    assert "trigger tell on public.things" in run.closing["error"]
    if kind in FORBIDDEN:
        assert run.closing["stop_reason"] == "preflight_failed"
        assert f"which needs {needs}, and lifecycle_jobs does not have it: GRANT it" in run.closing["error"]
    else:
        for said in ("public.things", "InsufficientPrivilege (SQLSTATE 42501, in function", "permission denied for"):
            assert said in run.closing["error"]


RAISES = {
    "each time": "RAISE EXCEPTION 'append-only'",
    "without a level": "RAISE unique_violation",
    "after something else": "PERFORM 1; RAISE NOTICE 'no -- comment'; RAISE USING MESSAGE = 'no', ERRCODE = 'P0003'",
    "of this event": "IF TG_OP = 'DELETE' THEN RAISE EXCEPTION 'never'; END IF",
}


@pytest.mark.parametrize("each", ["ROW", "STATEMENT"])
@pytest.mark.parametrize("event", ["BEFORE DELETE", "AFTER DELETE OR UPDATE"])
@pytest.mark.parametrize("how", RAISES)
def test_a_trigger_that_raises_by_itself_is_foreseen(apply, five, checking, how, event, each):
    trigger(five, RAISES[how], event=event, each=each)

    found = checking(policy())
    dry, run = apply({"things": policy()}, "--dry-run"), apply({"things": policy()})

    said = "trigger tell on public.things runs public.tell_it, which raises an error each time: correct the function"
    assert any(status == "FAIL" and said in text for status, text in found), found
    for done in (dry, run):
        assert (done.code, done.closing["stop_reason"]) == (1, "preflight_failed")
        assert said in done.closing["error"]
    assert (left(five), audited(five), queue_items(five)) == ([1, 2, 3, 4, 5], [], [])


NOT_EACH_TIME = {
    "another event": "IF TG_OP = 'UPDATE' THEN RAISE EXCEPTION 'never'; END IF",
    "a condition": "IF OLD.kind = 'kept' THEN RAISE EXCEPTION 'never'; END IF",
    "a level that is no error": "RAISE NOTICE 'gone'; RAISE LOG 'gone'",
    "a text": "PERFORM $x$ RAISE EXCEPTION 'no' $x$; PERFORM ' RAISE EXCEPTION '",
    "an error that is handled": "BEGIN RAISE EXCEPTION 'x'; EXCEPTION WHEN others THEN PERFORM 1; END",
    "after the return": "RETURN OLD; RAISE EXCEPTION 'never'",
}


@pytest.mark.parametrize("how", NOT_EACH_TIME)
def test_a_trigger_that_raises_for_other_rows_only_stops_nothing(apply, five, checking, how):
    trigger(five, NOT_EACH_TIME[how], event="BEFORE DELETE OR UPDATE")

    assert checking(policy()) == []
    assert apply({"things": policy()}).code == 0
    assert left(five) == []


def test_a_trigger_with_a_condition_may_raise_for_the_others(apply, five):
    trigger(five, "RAISE EXCEPTION 'kept'", event="BEFORE DELETE")
    five.execute(
        "DROP TRIGGER tell ON things; CREATE TRIGGER tell BEFORE DELETE ON things FOR EACH ROW"
        " WHEN (OLD.id = 3) EXECUTE FUNCTION tell_it()"
    )

    run = apply({"things": policy()})

    assert (run.code, left(five)) == (4, [3])


@pytest.mark.parametrize("event", ["BEFORE", "AFTER"])
@pytest.mark.parametrize("action", ["delete", "soft_delete", "dependants"])
def test_a_trigger_of_the_statement_is_tried_before_the_first_row(apply, five, action, event):
    """Its function decides by more than its text, so only PostgreSQL can tell: an empty change fires it."""
    five.execute(
        "ALTER TABLE things ADD gone_at timestamptz; ALTER TABLE things ALTER kind SET DEFAULT 'x';"
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint REFERENCES things); CREATE INDEX ON notes (thing_id)"
    )
    body = "IF (SELECT count(*) FROM things) < 1000 THEN RAISE EXCEPTION 'too few, says anna@example.com'; END IF"
    on = "notes" if action == "dependants" else "things"
    trigger(five, body, on=on, event=f"{event} DELETE OR UPDATE", each="STATEMENT")
    rules = {
        "delete": policy(),
        "soft_delete": policy(action="soft_delete", soft_delete={"deleted_at": "gone_at"}),
        "dependants": policy(dependants=NOTES),
    }[action]

    dry, run = apply({"things": rules}, "--dry-run"), apply({"things": rules})

    assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
    verb = "update" if action == "soft_delete" else "delete from"
    for said in (
        f"PostgreSQL refuses to {verb} public.{on}, even no row: ",
        "SQLSTATE P0001, in function tell_it",
        f"raised in trigger tell on public.{on}: correct its function",
    ):
        assert said in run.closing["error"]
    assert "anna" not in str(run.lines)
    assert (len(left(five)), audited(five), queue_items(five)) == (5, [], [])
    assert dry.event("not_tried")["triggers"] == [f"trigger tell on public.{on}"]


def test_what_is_tried_is_rolled_back_and_only_where_something_is_due(apply, five):
    five.execute("CREATE TABLE trail (said text); GRANT INSERT ON trail TO lifecycle_jobs")
    trigger(five, "INSERT INTO trail VALUES (TG_OP)", each="STATEMENT")

    assert apply({"things": policy()}, "--dry-run").code == 0
    assert left(five, "trail", "said") == []
    assert apply({"things": policy()}).code == 0
    batches = left(five, "trail", "said")
    assert batches
    assert apply({"things": policy()}).code == 0
    assert left(five, "trail", "said") == batches


def test_a_trigger_of_the_statement_that_counts_what_goes_is_no_matter_of_single_rows(apply, five):
    """It lets no row go as little as all of them: nothing is bisected, nothing goes on the queue."""
    five.execute("CREATE TABLE closed (on_day date); GRANT SELECT ON closed TO lifecycle_jobs")
    body = "IF NOT EXISTS (SELECT FROM things WHERE id = 3) THEN RAISE EXCEPTION 'closed'; END IF"
    trigger(five, body, each="STATEMENT")

    run = apply({"things": policy()})

    assert (run.code, run.closing["stop_reason"], left(five)) == (1, "database_error", [1, 2, 3, 4, 5])
    assert "in function tell_it); raised in trigger tell on public.things" in run.closing["error"]
    assert (queue_items(five), run.events("batch_refused")) == ([], [])


def test_a_trigger_of_the_statement_that_sees_the_rows_refuses_its_rows_only(apply, five):
    five.execute(
        "CREATE FUNCTION tell_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT FROM gone WHERE id = 3) THEN RAISE EXCEPTION 'kept'; END IF; RETURN NULL; END $$;"
        "CREATE TRIGGER tell AFTER DELETE ON things REFERENCING OLD TABLE AS gone FOR EACH STATEMENT"
        " EXECUTE FUNCTION tell_it()"
    )

    run = apply({"things": policy()})

    assert (run.code, left(five), queue_items(five, "resource_id")) == (4, [3], [("3",)])


FINE = {
    "by its owner's rights": ("INSERT INTO trail VALUES (OLD.id)", {"options": "SECURITY DEFINER"}),
    "where the role may": ("INSERT INTO open VALUES (OLD.id)", {}),
    "in a comment": ("PERFORM 1; -- INSERT INTO trail VALUES (1)\n /* DELETE FROM trail */ PERFORM 2", {}),
    "of another event": ("INSERT INTO trail VALUES (OLD.id)", {"event": "AFTER UPDATE"}),
    "that is disabled": ("INSERT INTO trail VALUES (OLD.id)", {"name": "off"}),
}


@pytest.mark.parametrize("kind", FINE)
def test_a_trigger_that_may_do_what_it_does_is_no_finding(apply, five, checking, kind):
    body, options = FINE[kind]
    five.execute(f"{TRAIL}; CREATE TABLE open (id bigint); GRANT INSERT ON open TO lifecycle_jobs")
    trigger(five, body, **options)
    if kind == "that is disabled":
        five.execute("ALTER TABLE things DISABLE TRIGGER off")

    assert checking(policy()) == []
    assert apply({"things": policy()}).code == 0
    assert left(five) == []


def test_a_trigger_of_a_partition_or_of_a_dependant_is_seen(five, checking):
    five.execute(
        f"{TRAIL}; CREATE TABLE things_2020 (PRIMARY KEY (id)) INHERITS (things);"
        "CREATE INDEX ON things_2020 (made_at);"
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint REFERENCES things); CREATE INDEX ON notes (thing_id)"
    )
    trigger(five, "INSERT INTO trail VALUES (OLD.id)", on="things_2020")
    trigger(five, "INSERT INTO trail VALUES (OLD.id)", on="notes", name="note")

    found = "; ".join(said for _, said in checking(policy(dependants=NOTES)))

    assert "trigger tell on public.things_2020" in found
    assert "trigger note on public.notes" in found


@pytest.mark.parametrize("action", ["delete", "soft_delete"])
@pytest.mark.parametrize("publication", ["FOR TABLE things", "FOR ALL TABLES"])
def test_a_published_table_without_replica_identity_is_refused_by_name(apply, five, checking, action, publication):
    five.execute(
        "ALTER TABLE things DROP CONSTRAINT things_pkey, ADD UNIQUE (id), ADD gone_at timestamptz;"
        f"ALTER TABLE things ALTER id SET NOT NULL; CREATE PUBLICATION news {publication}"
    )
    rules = policy(action=action, **({"soft_delete": {"deleted_at": "gone_at"}} if action == "soft_delete" else {}))

    found = checking(rules)
    run = apply({"things": rules})

    (status, said) = found[0]
    assert status == "FAIL"
    assert "public.things is published (news) and has no replica identity" in said
    assert said in run.closing["error"]
    assert (run.code, run.closing["stop_reason"], len(left(five))) == (1, "preflight_failed", 5)

    five.execute("ALTER TABLE things REPLICA IDENTITY USING INDEX things_id_key")
    assert checking(rules) == []
    assert apply({"things": rules}).code == 0


def test_a_part_without_replica_identity_and_a_dependant_without_are_refused(five, checking):
    five.execute(
        "CREATE TABLE things_2020 () INHERITS (things); CREATE INDEX ON things_2020 (made_at);"
        "CREATE TABLE notes (id bigint NOT NULL UNIQUE, thing_id bigint REFERENCES things);"
        "CREATE INDEX ON notes (thing_id); CREATE PUBLICATION news FOR TABLE things_2020, notes"
    )

    found = "; ".join(said for _, said in checking(policy(dependants=NOTES)))

    assert "public.things_2020 is published (news)" in found
    assert "public.notes is published (news)" in found


def test_what_is_published_for_inserts_only_may_go(apply, five, checking):
    five.execute(
        "ALTER TABLE things DROP CONSTRAINT things_pkey, ADD UNIQUE (id); ALTER TABLE things ALTER id SET NOT NULL;"
        "CREATE PUBLICATION news FOR TABLE things WITH (publish = 'insert')"
    )

    assert checking(policy()) == []
    assert apply({"things": policy()}).code == 0


@pytest.mark.parametrize("rule", ["INSTEAD NOTHING", "ALSO DELETE FROM trail WHERE id = OLD.id"])
def test_a_rule_that_rewrites_the_delete_is_refused_by_name(apply, five, checking, rule):
    five.execute(f"{TRAIL}; CREATE RULE keep AS ON DELETE TO things DO {rule}")

    found = checking(policy())
    run = apply({"things": policy()})

    assert any("rule keep on public.things rewrites DELETE statements" in said for _, said in found)
    assert (run.code, run.closing["stop_reason"], len(left(five))) == (1, "preflight_failed", 5)


def test_what_only_the_planner_can_tell_is_asked_of_it(apply, five, checking):
    """A publication's condition on a column that its subscribers cannot know: 42P10, and in no view of the catalogue."""
    if five.info.server_version < 150_000:
        pytest.skip("publications have conditions since PostgreSQL 15")
    five.execute("CREATE PUBLICATION news FOR TABLE things WHERE (kind = 'a')")

    found = checking(policy())
    run = apply({"things": policy()})

    assert found[0][0] == "FAIL"
    assert found[0][1].startswith("PostgreSQL would refuse to delete from public.things: ")
    assert "SQLSTATE 42P10" in run.closing["error"]
    assert (run.code, run.closing["stop_reason"], len(left(five))) == (1, "preflight_failed", 5)


def test_an_item_of_a_refused_row_names_the_function_that_refuses_it(apply, five):
    trigger(five, "IF OLD.id > 0 THEN RAISE EXCEPTION 'row of %', OLD.person; END IF", event="BEFORE DELETE")

    run = apply({"things": policy()})

    assert run.code == 4
    assert {item[0]["functions"][0] for item in queue_items(five, "context")} == {"tell_it"}
    assert "in function tell_it" in run.event("batch_refused")["error"]


def test_a_trigger_is_blamed_only_where_one_is(apply, five):
    trigger(five, "IF OLD.id < 3 THEN RETURN NULL; END IF", event="BEFORE DELETE")

    run = apply({"things": policy()})

    assert (run.code, run.closing["stop_reason"], left(five)) == (3, "rows_left", [1, 2])
    assert "2 due rows are still there" in run.closing["error"]
    assert "trigger tell on public.things may keep them" in run.closing["error"]


def test_what_raises_on_purpose_is_not_quoted(apply, five):
    trigger(
        five, "IF true THEN RAISE EXCEPTION 'permission denied for anna@example.com' USING ERRCODE = '42501'; END IF"
    )

    run = apply({"things": policy()})

    assert "in function tell_it" in run.closing["error"]
    assert "permission" not in run.closing["error"]
    assert "anna" not in str(run.lines)
