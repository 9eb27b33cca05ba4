"""What the report says ties to the tables that it is made of; what cannot be counted stands on its first page."""

from __future__ import annotations

import csv
import re
from datetime import timedelta

import psycopg
import pytest

from scripts.lifecycle.compliance.document import Report, Section, Statement
from tests.lifecycle.compliance import history
from tests.lifecycle.compliance.history import DAYS, PERSON, POLICIES, SINCE, UNTIL


def table(asked, section, name):
    return asked.report["sections"][section]["tables"][name]


def total(rows, column="records"):
    return sum(row[column] for row in rows)


def test_every_number_of_the_enforcement_ties_to_the_audit_log(usual, month):
    asked = usual
    assert asked.code == 0, asked.closing
    period = (SINCE, UNTIL)

    logged = dict(
        month.execute(
            "SELECT (replace(reason, 'retention_policy:', ''), action, resource_type)::text, count(*) FROM ops.audit_log"
            " WHERE occurred_at >= %s AND occurred_at < %s AND reason LIKE 'retention_policy:%%'"
            " GROUP BY 1",
            period,
        ).fetchall()
    )
    rows = table(asked, "enforcement", "by_policy")
    assert {f"({row['rule']},{row['action']},{row['resource_type']})": row["records"] for row in rows} == logged
    (everything,) = month.execute(
        "SELECT count(*) FROM ops.audit_log WHERE occurred_at >= %s AND occurred_at < %s", period
    ).fetchone()
    others = table(asked, "enforcement", "others")
    assert total(rows) + total(others) == everything
    assert [row["actor"] for row in others] == ["operator", "operator"]
    # By day, and by the chain that was verified, it is the same.
    days = table(asked, "enforcement", "by_day")
    assert len(days) == DAYS
    assert total(days, "total") == total([row for row in rows if row["action"] != "set_null"])
    by_day = dict(
        month.execute(
            "SELECT to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD'), count(*) FROM ops.audit_log"
            " WHERE occurred_at >= %s AND occurred_at < %s AND reason LIKE 'retention_policy:%%'"
            " AND action <> 'set_null' GROUP BY 1",
            period,
        ).fetchall()
    )
    assert {row["day"]: row["total"] for row in days} == by_day
    part, whole = table(asked, "audit", "verified")
    assert (part["entries"], part["result"]) == (everything, "intact")
    assert whole["entries"] == month.execute("SELECT count(*) FROM ops.audit_log").fetchone()[0]
    assert whole["entries"] > everything, "there is more than the period"


def test_the_inventory_names_every_policy_with_its_rows(usual, month):
    asked = usual
    rows = {row["policy"]: row for row in table(asked, "inventory", "data")}
    assert rows.keys() == POLICIES.policies.keys()
    quiz = rows["quiz_responses"]
    assert quiz["rows"] == 8
    assert quiz["kept"] == (
        "24 hours after pdf_delivered_at where pdf_delivered_at is set; or 24 hours after public.meal_plans.email_sent_at"
        " of the same payment_id where pdf_delivered_at is unset; or 24 hours after created_at where payment_id"
        " is unset and pdf_delivered_at is unset, except undelivered; then deleted"
    )
    assert "Art. 5(1)(c)" in quiz["legal_basis"]
    assert "archive, 3 years after it was sealed" in rows["payment_transactions"]["where"]
    assert {row["where"] for row in table(asked, "inventory", "kept")} >= {"public.users", "ops.audit_batches"}


def test_punctuality_is_the_worst_look_and_the_time_between_two(usual, month):
    asked = usual
    rows = {row["policy"]: row for row in table(asked, "punctuality", "lateness")}
    quiz = rows["quiz_responses"]
    assert (quiz["looks"], quiz["worst_seconds"], quiz["gap_seconds"]) == (DAYS * 24, 23 * 3600, 3600)
    assert quiz["bound_seconds"] == 24 * 3600
    parts = next(row for row in table(asked, "punctuality", "distribution") if row["policy"] == "quiz_responses")
    assert [parts[name] for name in list(parts)[1:]] == [DAYS, DAYS, DAYS * 22, 0, 0, 0]
    runs = next(row for row in table(asked, "punctuality", "runs") if row["policy"] == "quiz_responses")
    failed = sum((SINCE + timedelta(days=n)).day == 9 for n in range(DAYS))
    assert (runs["runs"], runs["failed"], runs["completed"]) == (DAYS, failed, DAYS - failed)
    now = next(row for row in table(asked, "punctuality", "now") if row["policy"] == "quiz_responses")
    assert (now["remaining"], now["held"]) == (4, 1)
    # Six hours when the month was made; the report is asked for later, on a busy machine by minutes.
    assert 6 * 3600 <= now["oldest_seconds"] < 7 * 3600


def test_what_went_before_the_first_look_is_bounded_by_the_last_one_before_the_period(ask, month):
    def bound(since):
        report = ask(period=(since, UNTIL)).report
        rows = {row["policy"]: row for row in report["sections"]["punctuality"]["tables"]["lateness"]}
        return rows["quiz_responses"]["bound_seconds"], report["uncounted"]

    # A look every hour on the hour: the last one before 12:30 saw 12 hours, the worst inside saw 23.
    assert bound(SINCE + timedelta(hours=12, minutes=30))[0] == 24 * 3600
    month.execute(
        "DELETE FROM ops.sla_observations WHERE slot < %s AND subject = 'quiz_responses'", (SINCE + timedelta(days=2),)
    )
    seconds, uncounted = bound(SINCE)
    assert seconds is None
    told = f"punctuality of quiz_responses before {SINCE + timedelta(days=2):%Y-%m-%d %H:%M}: nobody looked"
    assert told in uncounted


def test_holds_exceptions_and_the_queue_are_counted_and_nobody_is_named(usual, month):
    asked = usual
    (excepted,) = [row for row in table(asked, "exceptions", "exceptions") if row["exception"] == "undelivered"]
    assert (excepted["rows"], excepted["queued"]) == (3, "yes")
    holds = {row["scope"]: (row["in_force"], row["placed"]) for row in table(asked, "exceptions", "holds")}
    assert holds == {"a person": (1, 1), "a row": (0, 0), "a whole table": (1, 0)}
    assert len(table(asked, "exceptions", "holds_in_force")) == 2
    figures = {row["figure"]: row["value"] for row in table(asked, "queue", "figures")}
    assert (figures["open now"], figures["resolved in the period"]) == (3, 3)
    assert PERSON not in asked.text
    assert "case of Anna" not in asked.text


def test_a_change_of_the_policies_is_named_by_its_place_and_shown(usual, month):
    asked = usual
    (version,) = table(asked, "policy_changes", "versions")
    assert version["hash"] == POLICIES.hash
    assert "2 years, now 1 year" in version["changes"]
    assert "policies.payment_transactions.owner: office, now finance" in version["changes"]
    (difference,) = asked.report["sections"]["policy_changes"]["passages"].values()
    assert "-        keep: 2 years" in difference
    assert "+        keep: 1 year" in difference
    (used,) = table(asked, "policy_changes", "used")
    assert used["runs"] == DAYS * len(POLICIES.policies)


def test_nothing_found_and_everything_counted_is_in_order(usual):
    report = usual.report
    assert (report["statements"], report["uncounted"], report["verdict"]) == ([], [], "in_order")


@pytest.mark.parametrize("moment", ["infinity", "12000-01-01"])
def test_a_hold_without_an_end_does_not_silence_the_holds(ask, month, moment):
    month.execute("UPDATE ops.legal_holds SET expires_at = %s WHERE scope = 'table'", (moment,))
    asked = ask()
    assert len(table(asked, "exceptions", "holds_in_force")) == 2
    assert asked.report["uncounted"] == []


def test_a_policy_file_that_nobody_can_read_is_shown_and_silences_nothing(ask, month):
    for number, document in enumerate(("a: " + "[" * 100_000 + "]" * 100_000, "a: 2026-99-99", "{", "\x1b]0;x\x07")):
        month.execute(
            "INSERT INTO ops.policy_versions (hash, document, first_used_by, first_used_at) VALUES (%s, %s, 'x', %s)",
            (f"{number:064x}", document, SINCE + timedelta(days=20, minutes=number)),
        )
    asked = ask()
    assert len(table(asked, "policy_changes", "versions")) == 5
    assert asked.report["uncounted"] == []


def test_days_without_anything_are_one_line_for_a_person_and_all_there_for_a_machine(ask, month, tmp_path):
    month.execute("SET session_replication_role = replica")
    month.execute(
        "UPDATE ops.audit_batches SET reason = 'x' WHERE occurred_at >= %s AND occurred_at < %s",
        (SINCE + timedelta(days=2), SINCE + timedelta(days=30)),
    )
    output = tmp_path / "report.html"
    ask("--output", str(output), "--quick")
    first, last = (f"{SINCE + timedelta(days=day):%Y-%m-%d}" for day in (2, 29))
    page = re.sub(r"<[^>]*>", "", output.read_text())
    assert f"{first} to {last}" in page
    assert not any(f"\n{SINCE + timedelta(days=day):%Y-%m-%d}0" in page for day in range(2, 30))
    assert len(table(ask("--quick"), "enforcement", "by_day")) == DAYS


@pytest.mark.parametrize(
    ("levels", "headline"),
    [
        ([("finding", 1)], "1 finding."),
        ([("finding", 1), ("finding", 1)], "2 findings."),
        ([("broken", 1), ("broken", 37)], "The proof is broken (38 findings): "),
        ([("broken", 1), ("finding", 2)], "The proof is broken (1 finding, 2 other findings): "),
    ],
)
def test_the_headline_counts_what_was_found(levels, headline):
    section = Section("s", "s", statements=[Statement(level, "text", count) for level, count in levels])
    section.uncounted += ["a", "a"]
    report = Report("s", SINCE, UNTIL, UNTIL, "v", "h", [], [section])
    assert report.headline.startswith(headline)
    assert report.headline.endswith("1 thing could not be counted.")


def test_nothing_found_and_something_not_counted_is_said_on_the_first_page(ask, month):
    month.execute("REVOKE SELECT ON ops.erasure_requests FROM lifecycle_jobs")
    report = ask().report
    assert report["statements"] == []
    assert len(report["uncounted"]) == 3
    assert all("erasure" in each.lower() for each in report["uncounted"])
    assert (report["verdict"], report["headline"]) == (
        "incomplete",
        "No findings in what could be counted. 3 things could not be counted.",
    )


def test_erasures_and_their_deadlines(ask, month):
    for status, came, deadline, done in (
        ("fulfilled", 20, 0, 5),
        ("fulfilled", 50, 20, 10),  # ten days late
        ("blocked", 40, 10, None),  # late still
        ("received", 1, -29, None),
        ("cancelled", 3, -27, 1),
        ("fulfilled", 90, 60, 70),  # before the period
    ):
        month.execute(
            "INSERT INTO ops.erasure_requests (status, requested_at, deadline_at, closed_at, channel, certificate, audit_head)"
            " SELECT %s, now() - %s * interval '1 day', now() - %s * interval '1 day', now() - %s * interval '1 day', 'form',"
            " CASE WHEN x THEN '{}'::jsonb END, CASE WHEN x THEN '1:' END FROM (SELECT %s = 'fulfilled') done (x)",
            (status, came, deadline, done, status),
        )
    report = ask(period=(SINCE, UNTIL)).report
    (row,) = report["sections"]["erasures"]["tables"]["requests"]
    counts = {name: row[name] for name in ("requested", "fulfilled", "in_time", "open", "blocked", "overdue")}
    assert counts == {"requested": 3, "fulfilled": 2, "in_time": 1, "open": 2, "blocked": 1, "overdue": 1}
    assert [each["text"] for each in report["statements"]] == [
        "erasure requests open past their deadline: 1",
        "erasure requests fulfilled after their deadline in the period: 1",
    ]
    assert report["verdict"] == "findings"


def test_a_broken_chain_is_on_the_first_page_and_exit_1_and_the_report_is_made(ask, month, tmp_path):
    month.execute("SET session_replication_role = replica")
    month.execute("UPDATE ops.audit_batches SET actor = 'operator:eve' WHERE seq = 40")
    output = tmp_path / "report.json"
    asked = ask("--output", str(output))

    assert (asked.code, asked.closing["verdict"]) == (1, "broken")
    assert "batch 40" in asked.closing["error"]
    assert "The proof is broken" in output.read_text()
    assert "batch 40" in output.read_text()


def test_a_break_before_the_period_is_found_unless_quick(ask, month):
    month.execute(
        "SET session_replication_role = replica; UPDATE ops.audit_batches SET actor = 'operator:eve' WHERE seq = 1"
    )

    assert ask().code == 1
    quick = ask("--quick")
    assert (quick.code, len(table(quick, "audit", "verified"))) == (0, 1)


def test_a_chain_cut_off_is_found_by_the_anchor(ask, month, tmp_path):
    place = tmp_path / "anchor" / "audit-heads"
    place.mkdir(parents=True)
    (place / f"{999:018d}-{'ab' * 32}.json").write_text("{}")

    asked = ask(AUDIT_ANCHOR_URL=place.parent.as_uri())
    assert asked.code == 1
    assert "the anchor has a head of them" in asked.report["statements"][0]["text"]

    (tmp_path / "empty").mkdir()
    for place in ("gone", "empty"):
        lost = ask(AUDIT_ANCHOR_URL=(tmp_path / place).as_uri())
        assert lost.code == 0
        assert any("the audit's anchor was not compared" in each for each in lost.report["uncounted"])


def test_data_beyond_critical_is_a_finding_and_exit_0(ask, admin):
    history.write(admin, looks=False)
    history.watch(admin, late_hours=40)
    asked = ask()

    assert (asked.code, asked.report["verdict"]) == (0, "findings")
    (statement,) = asked.report["statements"]
    assert statement["text"] == (
        "quiz_responses: records were up to 2 d 15 h past their date in the period, beyond the 2 d 0 h that are critical"
    )


def test_what_nobody_watched_and_what_may_not_be_read_is_not_counted(ask, admin):
    history.write(admin, looks=False)
    admin.execute("REVOKE SELECT ON public.email_blacklist FROM lifecycle_jobs")
    admin.execute("REVOKE SELECT ON ops.manual_resolution_queue FROM lifecycle_jobs")
    asked = ask()

    assert asked.code == 0
    told = asked.report["uncounted"]
    assert "punctuality of every policy: monitor_cleanup_sla did not look at it in the period" in told
    assert any(each.startswith("Decisions that people owe: InsufficientPrivilege") for each in told)
    assert any("public.email_blacklist" in each for each in told)
    blacklist = next(row for row in table(asked, "inventory", "data") if row["policy"] == "email_blacklist")
    assert blacklist["rows"] is None, "not 0"
    assert total(table(asked, "enforcement", "by_policy")) > 0, "the others are made all the same"


def test_a_period_that_is_not_over_and_one_beyond_what_is_kept_say_so(ask, month):
    over = ask(period=(SINCE, UNTIL + timedelta(days=9))).report["uncounted"]
    assert any("after this report was made" in each for each in over)
    long_ago = ask(period=(SINCE - timedelta(days=500), UNTIL)).report
    assert any("run records from then are gone by their own policy, job_runs" in each for each in long_ago["uncounted"])
    assert long_ago["sections"]["enforcement"]["tables"]["by_day"][-1].keys() >= {"month", "total"}


def test_the_default_is_the_last_whole_calendar_month(ask, month):
    report = ask(period=None).report
    first = history.midnight().replace(day=1)
    assert report["until"] == f"{first:%Y-%m-%dT%H:%M:%SZ}"
    assert report["since"] == f"{(first - timedelta(days=1)).replace(day=1):%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "html"), "--format html needs --output FILE"),
        (("--format", "pdf"), "--format pdf needs --output FILE"),
        (("--since", "2026-02-01", "--until", "2026-01-01"), "no period lies between"),
        (("--since", "2999-02-01"), "lies in the future"),
        (("--output", "/nowhere/report.pdf"), "its directory does not exist"),
        (("--email",), "--email needs SMTP_HOST"),
    ],
)
def test_what_does_not_fit_is_exit_2(ask, arguments, said):
    asked = ask(*arguments, period=None)
    assert asked.code == 2
    assert said in asked.closing["error"]


def test_it_writes_nothing_into_the_database(ask, month, database):
    def state():
        return month.execute(
            "SELECT (SELECT count(*) FROM ops.audit_batches), (SELECT count(*) FROM ops.job_runs),"
            " (SELECT count(*) FROM ops.policy_versions), (SELECT count(*) FROM ops.archive_keys),"
            " (SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_xact_all_tables)"
        ).fetchone()

    before = state()
    assert ask().code == 0
    assert state() == before
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.connect().execute("UPDATE ops.audit_head SET seq = 0")


def test_the_sheet_is_one_table_of_the_same_numbers_and_no_formula(ask, month, tmp_path):
    month.execute("UPDATE ops.legal_holds SET placed_by = '=1+1' WHERE scope = 'table'")
    output = tmp_path / "report.csv"
    assert ask("--output", str(output)).code == 0
    with output.open(newline="") as file:
        lines = list(csv.reader(file))

    assert len({len(line) for line in lines}) == 1
    days = [line for line in lines if line[:2] == ["enforcement", "by_day"]]
    assert days[0][2:4] == ["heading", "day"]
    at = days[0].index("total")
    report = ask().report
    assert [int(line[at]) for line in days[1:]] == [
        row["total"] for row in report["sections"]["enforcement"]["tables"]["by_day"]
    ]
    assert any("'=1+1" in line for line in lines)
    assert not any(cell.startswith("=") for line in lines for cell in line)


def test_an_archive_of_odd_moments_is_listed_like_any_other(ask, month):
    month.execute(
        "INSERT INTO ops.archives (id, policy, table_name, object, status, row_count, bytes, sha256, manifest, oldest,"
        " newest, sealed_at, run_id) VALUES (gen_random_uuid(), 'odd', 'public.odd', 'odd', 'sealed', 1, 1,"
        " repeat('a', 64), '{}', '-infinity', '0001-01-01 BC', now(), gen_random_uuid())"
    )

    inventory = ask().report["sections"]["archives"]["tables"]["inventory"]

    assert [(row["oldest"], row["newest"]) for row in inventory if row["policy"] == "odd"] == [
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z")
    ]
