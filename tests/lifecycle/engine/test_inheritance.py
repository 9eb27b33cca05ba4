"""Two children of one table may each have a row with the same key: one is told from the other in every action."""

from __future__ import annotations

import pytest
from psycopg import sql

from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.engine.resources import row_state
from scripts.lifecycle.policy.policy_file import parse_policies
from scripts.utils.errors import PolicyFailed
from tests.lifecycle.support import AS_OF, POLICY_TEXT, ago, audited, policy

KEYS = {"children with keys": "(PRIMARY KEY (id))", "children without": "()"}


@pytest.fixture(params=KEYS)
def family(request, things):
    """Ids 1 to 3 in both children, due in the one, of today in the other, each written in one transaction."""
    things.execute(
        f"ALTER TABLE things ADD deleted_at timestamptz; CREATE TABLE sons {KEYS[request.param]} INHERITS (things);"
        f"CREATE TABLE daughters {KEYS[request.param]} INHERITS (things);"
        "CREATE INDEX ON sons (made_at); CREATE INDEX ON daughters (made_at)"
    )
    with things.transaction():
        for table, made_at in (("sons", ago(days=90)), ("daughters", ago(hours=1))):
            things.execute(
                sql.SQL(
                    "INSERT INTO {} (id, made_at, person, kind) SELECT n, %s, %s || n, %s FROM generate_series(1, 3) n"
                ).format(sql.Identifier(table)),
                (made_at, f"{table}@example.com", table),
            )
    return things


def both(admin, column):
    rows = admin.execute(
        sql.SQL("SELECT tableoid::regclass::text, id, {} FROM things ORDER BY 1, 2").format(sql.Identifier(column))
    )
    return {
        table: [value for name, _, value in found if name == table]
        for found in [rows.fetchall()]
        for table in ("sons", "daughters")
    }


def test_only_the_due_row_is_marked(apply, family):
    run = apply({"things": policy(action="soft_delete", soft_delete={"deleted_at": "deleted_at"})})

    marks = both(family, "deleted_at")
    assert (run.code, run.closing["records_deleted"]) == (0, 3)
    assert None not in marks["sons"]
    assert marks["daughters"] == [None] * 3


@pytest.mark.parametrize("treatment", ["pseudonym", {"constant": "removed"}, None])
def test_only_the_due_row_is_anonymised(apply, family, monkeypatch, treatment):
    monkeypatch.setenv("AUDIT_PSEUDONYM_KEY", f"k1:{'a' * 64}")
    section = {"marker": "deleted_at", "columns": {"person": treatment}}

    run = apply({"things": policy(action="anonymize", anonymize=section)})

    people = both(family, "person")
    assert (run.code, run.closing["records_deleted"]) == (0, 3)
    assert not any("@" in (person or "") for person in people["sons"])
    assert people["daughters"] == [f"daughters@example.com{n}" for n in (1, 2, 3)]


def test_two_due_rows_with_one_key_keep_their_own_pseudonyms(apply, family, monkeypatch):
    monkeypatch.setenv("AUDIT_PSEUDONYM_KEY", f"k1:{'a' * 64}")
    family.execute("UPDATE daughters SET made_at = %s", (ago(days=90),))
    section = {"marker": "deleted_at", "columns": {"person": "pseudonym"}}

    run = apply({"things": policy(action="anonymize", anonymize=section)})

    people = both(family, "person")
    assert (run.code, run.closing["records_deleted"]) == (0, 6)
    assert len({*people["sons"], *people["daughters"]}) == 6


def test_only_the_due_row_is_deleted(apply, family):
    run = apply({"things": policy()})

    assert (run.code, both(family, "id")) == (0, {"sons": [], "daughters": [1, 2, 3]})
    assert audited(family) == ["1", "2", "3"]


def test_a_decision_about_a_key_that_two_rows_have_is_refused(family, database):
    rules = parse_policies(
        POLICY_TEXT.replace("\n      - {table: public.notes, column: thing_id, action: delete}", " []"), "x"
    )
    selection = preflight(family, rules.policies["things"], AS_OF).selection

    with pytest.raises(PolicyFailed, match=r"2 rows of children of public\.things have this key"):
        row_state(family, selection, "1")
