"""Tokens go once they have expired; where the policy file says so, they are marked first and go later."""

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from tests.cleanup.conftest import ROOT

SCRIPT = ROOT / "scripts" / "cleanup" / "cleanup_magic_links.py"
HOURS = 3600


@pytest.fixture
def link(database):
    return database.superuser()


@pytest.fixture
def tokens(call, environment):
    """A function that runs cleanup_magic_links."""
    return lambda *arguments, **settings: call(*arguments, env=environment | settings, script=SCRIPT)


def add(link, number, *, expired, used=False, person="anna@example.com"):
    """Add the token ``number``; it expired so many seconds ago."""
    key = f"00000000-0000-4000-8000-{number:012x}"
    link.execute(
        "INSERT INTO magic_link_tokens (id, token_hash, email, normalized_email, created_at, expires_at, used_at,"
        " generation_ip) SELECT %s, %s, %s, %s, expires - interval '24 hours', expires,"
        " CASE WHEN %s THEN expires - interval '23 hours' END, '192.0.2.1'"
        " FROM (SELECT timezone('UTC', now()) - make_interval(secs => %s) AS expires) age",
        (key, f"{number:064x}", person, person, used, expired),
    )
    return key


def left(link):
    return {key for (key,) in link.execute("SELECT id FROM magic_link_tokens")}


def audited(link):
    """The audit: action, reason, how many."""
    return link.execute("SELECT action, reason, count(*) FROM ops.audit_log GROUP BY 1, 2 ORDER BY 1, 2").fetchall()


@pytest.mark.pooled
def test_what_has_expired_goes_used_or_not_and_what_has_not_stays(tokens, link):
    for number, used in enumerate([True, False, False]):
        add(link, number, expired=60 + 1000 * HOURS * number, used=used)
    kept = {add(link, 10, expired=-600), add(link, 11, expired=-600, used=True)}

    predicted = tokens("--dry-run")
    assert (predicted.code, predicted.closing["records_to_delete"]) == (0, 3)
    assert len(left(link)) == 5

    done = tokens()
    assert (done.code, done.closing["records_deleted"], done.closing["records_remaining"]) == (0, 3, 0)
    assert left(link) == kept
    assert audited(link) == [("delete", "retention_policy:magic_link_tokens/expired", 3)]

    again = tokens()
    assert (again.code, again.closing["records_deleted"]) == (0, 0)
    assert again.closing["audit_head"] == done.closing["audit_head"]


def test_what_is_held_stays(tokens, link):
    held = {add(link, 1, expired=HOURS, person="held@example.com"), add(link, 2, expired=HOURS)}
    link.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, person, reason, placed_by) VALUES"
        " ('person', NULL, NULL, 'held@example.com', 'r', 'me'),"
        " ('row', 'public.magic_link_tokens', '00000000-0000-4000-8000-000000000002', NULL, 'r', 'me')"
    )
    add(link, 3, expired=HOURS)

    predicted, done = tokens("--dry-run"), tokens()

    assert (predicted.closing["records_to_delete"], predicted.closing["records_held"]) == (1, 2)
    assert (done.code, done.closing["records_deleted"], done.closing["records_held"]) == (0, 1, 2)
    assert left(link) == held


def test_no_personal_data_in_what_is_said_and_audited(tokens, link):
    add(link, 1, expired=HOURS)
    done = tokens("--verbose", LOG_LEVEL="DEBUG")
    said = done.out + done.err + str(link.execute("SELECT row_to_json(a) FROM ops.audit_log a").fetchall())
    assert done.closing["records_deleted"] == 1
    for secret in ("anna@example.com", "192.0.2.1", f"{1:064x}"):
        assert secret not in said


@pytest.fixture
def two_steps(database, link, tmp_path):
    """A function that writes a policy file which marks tokens before it deletes them, and grants what it needs."""
    link.execute(
        "ALTER TABLE magic_link_tokens ADD is_deleted boolean NOT NULL DEFAULT false, ADD deleted_at timestamp;"
        " CREATE INDEX ON magic_link_tokens (deleted_at)"
    )

    def write(when=None, keep="30 days"):
        document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
        hard = document["policies"]["magic_link_tokens"]
        soft = hard | {
            "action": "soft_delete",
            "soft_delete": {"flag": "is_deleted", "deleted_at": "deleted_at"},
            "rules": {"expired": {"when": when or {}, "anchor": "expires_at", "keep": "0 hours"}},
        }
        hard = hard | {"rules": {"marked": {"when": {"is_deleted": True}, "anchor": "deleted_at", "keep": keep}}}
        document["policies"] |= {"magic_link_tokens_soft": soft, "magic_link_tokens": hard}
        path = tmp_path / "policies.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        migrate.grant(database.superuser_url, path)
        return "--policy-file", str(path)

    return write


def marked(link):
    """Ids of the tokens that are marked as deleted, all of them with their moment."""
    rows = link.execute("SELECT id, is_deleted, deleted_at IS NOT NULL FROM magic_link_tokens").fetchall()
    assert all(flag == dated for _, flag, dated in rows)
    return {key for key, flag, _ in rows if flag}


def by_policy(link):
    """What the newest run did of each policy."""
    return dict(
        link.execute(
            "SELECT DISTINCT ON (policy) policy, records_processed FROM ops.job_runs ORDER BY policy, started_at DESC"
        ).fetchall()
    )


def moment(link, ago):
    """An ISO 8601 moment that lies so long before the database's now."""
    return link.execute("SELECT to_json(now() - %s::interval)", (ago,)).fetchone()[0]


def test_what_has_expired_is_marked_once_and_goes_after_its_own_period(tokens, link, two_steps):
    policies = two_steps()
    due = {add(link, 1, expired=HOURS), add(link, 2, expired=90 * 24 * HOURS, used=True)}
    fresh = add(link, 3, expired=-600)

    predicted, first = tokens("--dry-run", *policies), tokens(*policies)
    assert predicted.closing["records_to_delete"] == first.closing["records_deleted"] == 2
    assert first.code == 0
    assert (left(link), marked(link)) == (due | {fresh}, due)
    assert by_policy(link) == {"magic_link_tokens_soft": 2, "magic_link_tokens": 0}
    assert audited(link) == [("soft_delete", "retention_policy:magic_link_tokens_soft/expired", 2)]

    dates = link.execute("SELECT id, deleted_at FROM magic_link_tokens ORDER BY id").fetchall()
    again = tokens(*policies)
    assert (again.code, again.closing["records_deleted"]) == (0, 0)
    assert link.execute("SELECT id, deleted_at FROM magic_link_tokens ORDER BY id").fetchall() == dates
    assert again.closing["audit_head"] == first.closing["audit_head"]

    link.execute("DELETE FROM magic_link_tokens WHERE id = %s", (fresh,))
    for ago, expected in {"-29 days": 0, "-31 days": 2}.items():
        asked = tokens("--dry-run", "--as-of", moment(link, ago), *policies)
        assert (asked.code, asked.closing["records_to_delete"]) == (0, expected)

    link.execute("UPDATE magic_link_tokens SET deleted_at = deleted_at - interval '31 days'")
    early = tokens("--as-of", moment(link, "2 days"), *policies)
    assert (early.code, early.closing["records_deleted"], left(link)) == (0, 0, due)
    late = tokens(*policies)
    assert (late.code, late.closing["records_deleted"], left(link)) == (0, 2, set())
    assert by_policy(link) == {"magic_link_tokens_soft": 0, "magic_link_tokens": 2}
    assert audited(link)[0] == ("delete", "retention_policy:magic_link_tokens/marked", 2)


def test_a_rule_may_look_at_the_very_flag_that_it_sets(tokens, link, two_steps):
    policies = two_steps(when={"is_deleted": False})
    due = {add(link, number, expired=HOURS) for number in range(20)}

    done = tokens("--batch-size", "7", *policies)

    assert (done.code, done.closing["records_deleted"], done.closing["records_remaining"]) == (0, 20, 0)
    assert marked(link) == due
    assert audited(link) == [("soft_delete", "retention_policy:magic_link_tokens_soft/expired", 20)]
    assert tokens(*policies).closing["records_deleted"] == 0


def test_what_is_held_is_not_marked_and_what_was_marked_before_its_hold_does_not_go(tokens, link, two_steps):
    policies = two_steps(keep="0 hours")
    held = add(link, 1, expired=HOURS, person="held@example.com")
    add(link, 2, expired=HOURS)
    hold = "INSERT INTO ops.legal_holds (scope, person, reason, placed_by) VALUES ('person', %s, 'r', 'me')"
    link.execute(hold, ("held@example.com",))

    # What a run marks is younger than its cut-off: only the next run may delete it.
    assert tokens(*policies).closing["records_deleted"] == 1
    assert held not in marked(link)
    link.execute(hold, ("anna@example.com",))
    done = tokens(*policies)
    assert (done.closing["records_deleted"], done.closing["records_held"], len(left(link))) == (0, 2, 2)


def test_without_the_right_to_mark_nothing_is_marked_and_the_hard_delete_still_runs(tokens, link, two_steps):
    policies = two_steps()
    add(link, 1, expired=HOURS)
    add(link, 2, expired=HOURS)
    link.execute("UPDATE magic_link_tokens SET is_deleted = true, deleted_at = '2020-01-01' WHERE token_hash LIKE '%2'")
    link.execute("REVOKE UPDATE (is_deleted) ON magic_link_tokens FROM lifecycle_jobs")

    done = tokens(*policies)

    assert (done.code, done.closing["stop_reason"]) == (1, "preflight_failed")
    assert "no right to UPDATE public.magic_link_tokens.is_deleted" in done.closing["error"]
    assert (len(left(link)), marked(link)) == (1, set())
