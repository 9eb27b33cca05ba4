"""A plan is what the run then does; one that is no longer so is refused before anything is done."""

import json

import pytest

from tests.lifecycle.support import AS_OF
from tests.retention.enforcement.conftest import NOW, count, policy


@pytest.fixture
def family(tables, admin):
    """Parents 1 to 10, each with two notes; row 1 is under a hold."""
    tables(parents=10, others=4)
    admin.execute(
        "CREATE TABLE notes (id bigint PRIMARY KEY, parent bigint NOT NULL REFERENCES parents);"
        " CREATE INDEX ON notes (parent); INSERT INTO notes SELECT n, (n + 1) / 2 FROM generate_series(1, 20) n"
    )
    admin.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        " VALUES ('row', 'public.parents', '1', 'a case', 'olga')"
    )
    return {
        "parents": policy(
            "public.parents", dependants=[{"table": "public.notes", "column": "parent", "action": "delete"}]
        ),
        "others": policy("public.others"),
    }


@pytest.fixture
def plan(tmp_path, enforce):
    """A function that makes a plan and returns its path and its content."""

    def make(path, *arguments, name="plan.json", code=0, **options):
        out = tmp_path / name
        run = enforce(path, "--plan", out, *arguments, **options)
        assert run.code == code, run.closing
        return out, {entry["policy"]: entry for entry in json.loads(out.read_text())["policies"]}

    return make


def test_a_plan_says_it_all_and_changes_nothing(family, write, plan, admin, redis_client):
    _, entries = plan(write(family))

    parents = entries["parents"]
    assert (parents["records"], parents["by_rule"], parents["held"]) == (9, {"old": 9}, 1)
    assert parents["cascade"] == {"public.notes.parent (delete)": 18}
    assert len(parents["sample_keys"]) == 5
    assert set(parents["sample_keys"]) <= {str(n) for n in range(2, 11)}
    assert 60 * 86400 <= parents["oldest_overdue_seconds"] < 61 * 86400
    assert parents["estimated_by"] == "assumption"
    assert parents["estimated_seconds"] >= 0
    assert entries["others"]["records"] == 4
    assert (count(admin, "parents"), count(admin, "ops.job_runs"), count(admin, "ops.leases")) == (10, 0, 0)
    assert redis_client.keys() == []


def test_a_run_of_the_plan_does_what_the_plan_says(family, write, plan, enforce, admin):
    path = write(family)
    out, entries = plan(path)

    run = enforce(path, "--apply", out, "--tolerance", "0", as_of=None)

    assert run.code == 0, run.closing
    done = {line["policy"]: line["records_deleted"] for line in run.events("policy_done")}
    assert done == {name: entry["records"] for name, entry in entries.items()}
    assert (count(admin, "parents"), count(admin, "notes"), count(admin, "others")) == (1, 2, 0)
    audited = dict(
        admin.execute(
            "SELECT resource_type, count(*) FROM ops.audit_log WHERE resource_type <> 'ops.legal_holds' GROUP BY 1"
        ).fetchall()
    )
    assert audited == {"public.parents": 9, "public.notes": 18, "public.others": 4}
    cutoffs = {row[0] for row in admin.execute("SELECT cutoff_at FROM ops.job_runs")}
    assert cutoffs == {AS_OF}, "the plan's cut-off, not today's"


def test_data_that_drifted_are_refused_before_anything_is_done(family, write, plan, enforce, admin):
    path = write(family)
    out, _ = plan(path)
    admin.execute("DELETE FROM others WHERE id > 2")

    run = enforce(path, "--apply", out, as_of=None)

    assert (run.code, run.closing["stop_reason"]) == (1, "plan_drifted")
    assert "others: planned 4, now 2" in run.closing["error"]
    assert "parents" not in run.closing["error"]
    assert (count(admin, "parents"), count(admin, "others")) == (10, 2)
    assert count(admin, "ops.audit_log") == 1, "the hold that a trigger audits, and nothing of the run"
    tolerated = enforce(path, "--apply", out, "--tolerance", "50", as_of=None)
    assert (tolerated.code, count(admin, "others")) == (0, 0)


def test_at_no_tolerance_it_must_be_the_very_same_rows(family, write, plan, enforce, admin):
    path = write(family)
    out, _ = plan(path)
    admin.execute("UPDATE others SET id = 99 WHERE id = 1")

    run = enforce(path, "--apply", out, "--tolerance", "0", as_of=None)

    assert (run.code, count(admin, "others")) == (1, 4)
    assert "others: 4 as planned, but other rows" in run.closing["error"]


def test_another_policy_file_is_refused(family, write, plan, enforce, admin):
    out, _ = plan(write(family))
    family["others"]["rules"]["old"]["keep"] = "31 days"

    run = enforce(write(family), "--apply", out, as_of=None)

    assert (run.code, run.closing["stop_reason"], count(admin, "others")) == (1, "plan_drifted", 4)


def test_a_plan_that_was_altered_is_misuse(family, write, plan, enforce, admin, tmp_path):
    path = write(family)
    out, _ = plan(path)
    out.write_text(out.read_text().replace('"records": 4', '"records": 5'))

    for altered in (out, tmp_path / "none.json", path):
        run = enforce(path, "--apply", altered, as_of=None)
        assert run.code == 2
    assert "was altered" in enforce(path, "--apply", out, as_of=None).closing["error"]
    assert count(admin, "others") == 4


@pytest.mark.parametrize(
    ("written", "rewritten"),
    [
        ('"made_at":', '"made_at": "2001-01-01T00:00:00+00:00", "made_at":'),
        ('"policy":', '"policy": "nobodys", "policy":'),
        ('"held": 0', '"held": 1, "held": 0'),
        ('"held": 0', '"held": "0"'),
        ('"held": 0', '"held": NaN'),
        ('"held": 0', '"held": 0, "approved": true'),
        ('"held": 0', '"held": ' + "[" * 50_000 + "]" * 50_000),
    ],
    ids=["twice", "twice within a policy", "twice before", "another kind", "NaN", "unknown", "nested"],
)
def test_a_plan_that_two_readers_may_understand_differently_is_misuse(
    family, write, plan, enforce, admin, written, rewritten
):
    path = write(family)
    out, _ = plan(path)
    text = out.read_text()
    assert written in text
    out.write_text(text.replace(written, rewritten, 1))

    assert enforce(path, "--apply", out, as_of=None).code == 2
    assert count(admin, "others") == 4


def test_a_plan_of_another_day_shows_what_will_be_due_and_cannot_be_applied_before(family, write, plan, enforce, admin):
    family["others"]["rules"]["old"]["keep"] = "10 years"
    path = write(family)
    _, today = plan(path)
    out, later = plan(path, name="later.json", as_of="2037-01-01T00:00:00Z")

    assert (today["others"]["records"], later["others"]["records"]) == (0, 4)
    run = enforce(path, "--apply", out, as_of=None)
    assert (run.code, count(admin, "others")) == (2, 4)
    assert "future" in run.closing["error"]


def test_what_a_run_would_refuse_stands_in_the_plan_and_is_refused(family, write, plan, enforce, admin):
    family["others"]["max_rows"] = 3
    family["gone"] = policy("public.gone")
    path = write(family, grant=False)
    admin.execute("GRANT ALL ON parents, notes, others TO lifecycle_jobs")
    out, entries = plan(path, code=1)

    assert "max_rows is 3" in entries["others"]["error"]
    assert "public.gone does not exist" in entries["gone"]["error"]
    assert entries["parents"]["error"] is None
    run = enforce(path, "--apply", out, as_of=None)
    assert (run.code, count(admin, "others"), count(admin, "parents")) == (1, 4, 1)
    confirmed = enforce(path, "--apply", out, "--confirm-cap", "9", "--tolerance", "100", as_of=None)
    assert count(admin, "others") == 0
    assert confirmed.code == 1, "gone is still gone"


def test_two_plans_show_what_a_change_frees_and_keeps(family, write, plan, enforce):
    before, _ = plan(write(family), name="before.json")
    family["others"]["rules"]["old"]["keep"] = "1 year"
    family["parents"]["rules"]["young"] = {"when": {"kind": "unset"}, "anchor": "made_at", "keep": "1 day"}
    family["more"] = policy("public.others", action="soft_delete", soft_delete={"deleted_at": "kind"})
    del family["more"]
    path = write(family)
    after, _ = plan(path, name="after.json")

    run = enforce(path, "--compare", before, after)

    changes = {line["policy"]: line for line in run.events("plan_compared")}
    assert run.code == 0
    assert (changes["others"]["frees"], changes["others"]["keeps"]) == (0, 4)
    assert (changes["parents"]["frees"], changes["parents"]["keeps"]) == (0, 0)
    back = {line["policy"]: line for line in enforce(path, "--compare", after, before).events("plan_compared")}
    assert (back["others"]["frees"], back["others"]["keeps"], back["others"]["by_rule"]) == (4, 0, {"old": 4})
    assert not run.events("plans_of_different_days")
    late, _ = plan(path, name="late.json", as_of="2026-02-01T00:00:00Z")
    assert enforce(path, "--compare", before, late).event("plans_of_different_days")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--plan", "x.json", "--limit", "3"),
        ("--apply", "x.json", "--all"),
        ("--apply", "x.json", "--plan", "y.json"),
        ("--tolerance", "101"),
        ("--tolerance", "some"),
        ("--all", "--only", "others"),
    ],
)
def test_what_contradicts_itself_is_misuse(family, write, enforce, admin, arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert enforce(write(family), *arguments, as_of=NOW).code == 2
    assert (count(admin, "others"), list(tmp_path.glob("*.json"))) == (4, [])


def test_a_history_makes_the_estimate(tables, write, plan, enforce, admin):
    tables(things=300)
    path = write({"things": policy()})
    assert enforce(path, as_of=None).code == 0
    tables(more=1)
    admin.execute("INSERT INTO things (id, made_at) SELECT id + 900, made_at FROM more")

    _, entries = plan(path)

    assert entries["things"]["estimated_by"] == "history"


def test_what_one_policy_does_lets_nothing_go_that_nobody_approved(tables, write, plan, enforce, admin):
    """Parents 1 to 3 are kept by children that the plan takes: they go with the next run, not with this plan."""
    tables(parents=5, children=3)
    admin.execute(
        "ALTER TABLE children ADD parent bigint REFERENCES parents; CREATE INDEX ON children (parent);"
        " UPDATE children SET parent = id"
    )
    path = write({name: policy(f"public.{name}") for name in ("parents", "children")})
    out, entries = plan(path)
    assert (entries["parents"]["records"], entries["children"]["records"]) == (2, 3)

    run = enforce(path, "--apply", out, as_of=None)

    assert run.code == 4, "the queue is told of the three that are still needed, as planned"
    assert {line["policy"]: line["records_deleted"] for line in run.events("policy_done")} == {
        "parents": 2,
        "children": 3,
    }
    assert (count(admin, "parents"), count(admin, "children")) == (3, 0)
    assert not run.events("plan_differs")
    assert enforce(path).closing["records_deleted"] == 3
