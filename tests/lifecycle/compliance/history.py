"""A month of a living system: deletions, looks of the monitor, runs, holds, decisions, policy files."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, load_policies
from tests.lifecycle.support import seal_anew

POLICIES = load_policies()
DAYS = 31
PERSON = "anna@example.com"
# reason, action, table, records on day number n (None: not every day)
WENT = (
    ("retention_policy:quiz_responses/delivered", "delete", "public.quiz_responses", lambda n: 40 + 7 * (n % 6)),
    ("retention_policy:quiz_responses/abandoned", "delete", "public.quiz_responses", lambda n: 90 + 11 * (n % 5)),
    ("retention_policy:magic_link_tokens/expired", "delete", "public.magic_link_tokens", lambda n: 120 - n),
    ("retention_policy:email_blacklist/expired", "delete", "public.email_blacklist", lambda n: n % 3),
    ("retention_policy:meal_plan_pdfs/expired", "delete_blob", "public.meal_plans", lambda n: 12),
    ("retention_policy:meal_plans/expired", "delete", "public.meal_plans", lambda n: 5 + n % 2),
    ("retention_policy:meal_plans/dependant", "set_null", "public.payment_transactions", lambda n: 4),
    ("retention_policy:job_runs/finished", "delete", "ops.job_runs", lambda n: 30),
    ("retention_policy:sla_observations/seen", "delete", "ops.sla_observations", lambda n: 100),
)


def midnight(days_ago=0):
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days_ago)


SINCE, UNTIL = midnight(DAYS), midnight()


def write(admin, *, looks=True):
    """Write the month before today, and something on the day before it and on this one, which are not of it."""
    keep_versions(admin)
    delete(admin)
    if looks:
        watch(admin)
    run(admin)
    owe(admin)


def keep_versions(admin):
    """One file that was in force before, one in which a period was shortened, and the one in use."""
    text = DEFAULT_POLICY_FILE.read_text()
    older = text.replace("        keep: 1 year\n", "        keep: 2 years\n", 1).replace(
        "owner: finance", "owner: office", 1
    )
    for document, at in ((older, SINCE - timedelta(days=90)), (text, SINCE + timedelta(days=12, hours=2))):
        admin.execute(
            "INSERT INTO ops.policy_versions (hash, document, first_used_by, first_used_at)"
            " VALUES (%s, %s, 'cleanup_quiz_responses', %s)",
            (hashlib.sha256(document.encode()).hexdigest(), document, at),
        )
    assert hashlib.sha256(text.encode()).hexdigest() == POLICIES.hash


def delete(admin):
    entries = [
        (SINCE + timedelta(days=day, hours=2, minutes=number), "system:a_job", action, table, reason, count)
        for day in range(-1, DAYS + 1)
        for number, (reason, action, table, records) in enumerate(WENT)
        if (count := records(max(day, 0)))
    ]
    entries += [
        (UNTIL - timedelta(seconds=1), "operator:olga", action, "ops.legal_holds", reason, 1)
        for action, reason in (("hold_placed", "hold:person"), ("decide", "decision:quiz_undelivered/delivered"))
    ]
    entries.sort()
    for _, actor, action, table, reason, count in entries:
        admin.execute(
            "SELECT ops.append_audit(gen_random_uuid(), %s, %s, %s, %s, gen_random_uuid(),"
            " (SELECT array_agg(gen_random_uuid()::text) FROM generate_series(1, %s)), '{}')",
            (actor, action, table, reason, count),
        )
    admin.execute("SET session_replication_role = replica")
    admin.execute(
        "UPDATE ops.audit_batches b SET occurred_at = t.at FROM unnest(%s::timestamptz[]) WITH ORDINALITY t (at, seq)"
        " WHERE b.seq = t.seq",
        ([entry[0] for entry in entries],),
    )
    seal_anew(admin)


def watch(admin, *, late_hours=0):
    """A look every hour; quiz answers are up to a day past their date each day."""
    for name in POLICIES.policies:
        admin.execute(
            "INSERT INTO ops.sla_observations (script, subject, slot, observed_at, status, items, oldest_seconds)"
            " SELECT 'monitor_cleanup_sla', %(name)s, at, at, 'within_sla', CASE WHEN oldest > 0 THEN 17 ELSE 0 END, oldest"
            "   FROM (SELECT at, CASE WHEN %(name)s = 'quiz_responses'"
            "                         THEN mod(extract(epoch FROM at - %(since)s)::int, 86400) + %(late)s"
            "                         WHEN %(name)s = 'magic_link_tokens' THEN 600 ELSE 0 END AS oldest"
            "           FROM generate_series(%(since)s, %(until)s - interval '1 hour', interval '1 hour') at) looks",
            {"name": name, "since": SINCE, "until": UNTIL, "late": 3600 * late_hours},
        )


def run(admin):
    for name in POLICIES.policies:
        admin.execute(
            "INSERT INTO ops.job_runs (id, script, policy, correlation_id, started_at, finished_at, cutoff_at, policy_hash,"
            " fencing_token, status, records_processed, records_remaining, oldest_overdue_seconds, host, pid, version)"
            " SELECT gen_random_uuid(), %s, %s, 'c', at, at, at, %s, 1,"
            "        CASE WHEN extract(day FROM at) = 9 THEN 'failed' ELSE 'completed' END, 5, 0, 0, 'h', 1, 'v'"
            "   FROM generate_series(%s::timestamptz, %s::timestamptz, interval '1 day') at",
            (POLICIES.job_of(name), name, POLICIES.hash, SINCE + timedelta(hours=2), UNTIL - timedelta(hours=1)),
        )


def owe(admin):
    """Holds, queue items, and rows: some past their date, some excepted, one held."""
    admin.execute("SET session_replication_role = DEFAULT")
    admin.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, person, reason, placed_by, placed_at) VALUES"
        " ('person', NULL, %s, 'case of Anna', 'olga', now() - interval '9 days'),"
        " ('table', 'public.email_blacklist', NULL, 'case 7', 'olga', now() - interval '90 days')",
        (PERSON,),
    )
    admin.execute(
        "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, raised_by,"
        " first_seen_at, deadline_at, status, resolved_at, resolved_by, decision) SELECT 'quiz_undelivered', 'public.quiz_responses',"
        " gen_random_uuid()::text, 'high', 'a reason', 'system:tests', now() - interval '5 days', now() + interval '9 days',"
        " CASE WHEN n < 4 THEN 'resolved' ELSE 'pending' END, CASE WHEN n < 4 THEN now() - interval '3 days' END,"
        " CASE WHEN n < 4 THEN 'olga' END, CASE WHEN n < 4 THEN 'delivered' END FROM generate_series(1, 6) n"
    )
    admin.execute(
        "INSERT INTO public.quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at, payment_id)"
        " SELECT gen_random_uuid(), %(p)s || n, CASE WHEN n = 1 THEN %(p)s ELSE %(p)s || n END, '{}', 1,"
        " timezone('UTC', now()) - interval '30 hours', CASE WHEN n > 5 THEN 'pay' || n END FROM generate_series(1, 8) n",
        {"p": PERSON},
    )
