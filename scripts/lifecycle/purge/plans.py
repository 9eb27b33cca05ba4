"""Write what a run would do to a plan that a person can read and approve, and carry out exactly that plan.

A plan holds no personal data: it has the keys that the audit would have. Its digest shows that the file was not
altered. The policy file's hash and each policy's count show that policies and data are still those of the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from pydantic import TypeAdapter, ValidationError

from scripts.lifecycle.engine.fragments import fragment
from scripts.lifecycle.engine.poison import statement_refused
from scripts.lifecycle.engine.policy_run import within_budget
from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.engine.selection import Selection, store_for
from scripts.lifecycle.engine.survey import detached_from, due_rows
from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.tables import table_identifier
from scripts.lifecycle.purge import inventory
from scripts.lifecycle.purge.purge import predict
from scripts.utils import composing as sql
from scripts.utils import pages, strict_json
from scripts.utils.blob_token import store_of
from scripts.utils.db_utils import Connection
from scripts.utils.errors import Misconfigured, OpsError, PlanDrifted, PolicyFailed
from scripts.utils.logging_utils import get_logger

SAMPLE_KEYS = 5
# For a policy without history: half the speed of the slowest path that was measured (benchmarks/README.md).
ASSUMED_ROWS_A_SECOND = 2_000.0
ASSUMED_BLOBS_A_SECOND = 10.0


@dataclass(frozen=True)
class Planned:
    """What a run would do with one policy."""

    policy: str
    table: str
    action: str
    records: int = 0
    """Rows or blobs that would go; 0 for a policy that retains."""
    by_rule: dict[str, int] = field(default_factory=dict)
    cascade: dict[str, int] = field(default_factory=dict)
    """Rows of dependants that would be deleted along or set to null, by foreign key."""
    partitions: tuple[str, ...] = ()
    """Partitions that would be dropped whole; their rows are among the records."""
    blobs: int = 0
    held: int | None = 0
    queued: int = 0
    kept: int | None = None
    """Rows that a policy retains; None: it is not one that retains."""
    oldest_overdue_seconds: float | None = 0.0
    estimated_seconds: float | None = None
    estimated_by: str | None = None
    """``history``: the policy's own runs; ``assumption``: it has too few."""
    sample_keys: tuple[str, ...] = ()
    fingerprint: str | None = None
    """Sum of the hashes of all the keys: the same rows have the same fingerprint."""
    error: str | None = None
    """Why a run would refuse, or why nothing could be counted."""


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    policy_hash: str
    cutoff_at: str
    made_at: str
    policies: tuple[Planned, ...]
    digest: str = ""

    @property
    def sealed_by(self) -> str:
        """The digest that the plan must have."""
        content = asdict(self) | {"digest": ""}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make(run: Run, names: Sequence[str]) -> Plan:
    """Work out what a run would do; add each policy's prediction to ``run.results``.

    Raises:
        StoppedEarly: The run must stop.
    """
    made_at = run.database.now()
    planned = []
    for name in names:
        run.checkpoint()
        planned.append(_planned(run, run.policies.policies[name]))
        get_logger().info("policy_planned", **asdict(planned[-1]))
    plan = Plan(run.policies.hash, run.cutoff.isoformat(), made_at.isoformat(), tuple(planned))
    return Plan(plan.policy_hash, plan.cutoff_at, plan.made_at, plan.policies, plan.sealed_by)


def _planned(run: Run, policy: Policy) -> Planned:
    names: dict[str, Any] = {"policy": policy.name, "table": policy.table, "action": policy.action}
    try:
        if policy.blob:
            store_of(run.settings)
        if policy.action == "retain":
            run.results.append(inventory.look(run, policy))
            kept = within_budget(run, lambda link: inventory.count(link, run, policy))
            return Planned(**names, kept=kept.rows)
        result = predict(run, policy)
        run.results.append(result)
        details = within_budget(run, lambda link: _details(link, run, policy, result))
    except OpsError as error:
        run.fail(policy.name, error)
        return Planned(**names, error=str(error))
    except psycopg.Error as error:
        failure = statement_refused(policy, error)
        run.fail(policy.name, failure)
        return Planned(**names, error=str(failure))
    return Planned(
        **names,
        by_rule=result.by_rule,
        held=result.records_held,
        queued=result.records_queued,
        partitions=result.partitions,
        oldest_overdue_seconds=result.oldest_overdue_seconds,
        error=result.error,
        **details,
    )


def _details(connection: Connection, run: Run, policy: Policy, result: PolicyResult) -> dict[str, Any]:
    selection = preflight(connection, policy, run.cutoff, blob_store=store_for(policy, run.settings)).selection
    records, fingerprint, sample = _keys(connection, selection)
    cascade = {
        f"{reach.foreign_key.table}.{', '.join(reach.foreign_key.columns)} ({reach.action})": _count(
            connection,
            sql.SQL("SELECT count(*) FROM {} c WHERE EXISTS (SELECT FROM {} t WHERE {} AND {})").format(
                table_identifier(reach.foreign_key.table),
                selection.table,
                reach.foreign_key.joins("c"),
                selection.removable,
            ),
            selection,
        )
        for reach in selection.reaches
    }
    seconds, basis = _estimate(connection, policy, records)
    return {
        "records": records,
        "blobs": records if policy.blob else 0,
        "cascade": cascade,
        "fingerprint": fingerprint,
        "sample_keys": sample,
        "estimated_seconds": seconds if result.error is None else None,
        "estimated_by": basis,
    }


def _keys(connection: Connection, selection: Selection) -> tuple[int, str, tuple[str, ...]]:
    """Return the number of rows that would go, their fingerprint and a sample; detached partitions count too."""
    places = [selection]
    if selection.partitioned:
        places += [selection.at(name) for name in detached_from(connection, selection.policy.table)]
    found = [_keys_of(connection, place) for place in places]
    sample = sorted(key for _, _, keys in found for key in keys)[:SAMPLE_KEYS]
    return sum(rows for rows, _, _ in found), str(sum(int(mark) for _, mark, _ in found)), tuple(sample)


def _keys_of(connection: Connection, selection: Selection) -> tuple[int, str, tuple[str, ...]]:
    statement = fragment(
        "WITH going AS MATERIALIZED (SELECT id, nameable FROM {} WHERE NOT held AND NOT referenced AND trouble IS NULL)"
        " SELECT count(*), coalesce(sum(hashtextextended(id, 0)::numeric), 0)::text,"
        " ARRAY(SELECT id FROM going WHERE nameable ORDER BY id LIMIT {}) FROM going",
        due_rows(selection),
        sql.Literal(SAMPLE_KEYS),
    )
    row = connection.execute(statement, statement.parameters).fetchone()
    return (row[0], row[1], tuple(row[2])) if row else (0, "0", ())


def _count(connection: Connection, statement: sql.Composed, selection: Selection) -> int:
    row = connection.execute(statement, selection.parameters).fetchone()
    return int(row[0]) if row else 0


def _estimate(connection: Connection, policy: Policy, records: int) -> tuple[float, str]:
    """Return the seconds that a number of records will take, and ``history`` or ``assumption``.

    The speed is the median of the policy's completed runs of the last 90 days with 100 records or more.
    """
    row = connection.execute(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY records_processed"
        " / greatest(0.001, extract(epoch FROM finished_at - started_at)))"
        " FROM ops.job_runs WHERE policy = %s AND status = 'completed' AND records_processed >= 100"
        " AND started_at > now() - interval '90 days'",
        (policy.name,),
    ).fetchone()
    if row and row[0]:
        return round(records / float(row[0]), 1), "history"
    return round(records / (ASSUMED_BLOBS_A_SECOND if policy.blob else ASSUMED_ROWS_A_SECOND), 1), "assumption"


def write(plan: Plan, path: Path) -> None:
    """Write a plan to a file: the whole plan, or nothing.

    Raises:
        Misconfigured: The path is no place for a file; see :func:`pages.write`.
        ReportNotWritten: The file system refused; an older file is unchanged.
    """
    pages.write(path, json.dumps(asdict(plan), indent=2) + "\n", "--plan")


def read(path: Path) -> Plan:
    """Read a plan back.

    Raises:
        Misconfigured: The file is not a plan, or was altered since it was made.
    """
    try:
        document = strict_json.loads(path.read_bytes())
        plan = TypeAdapter(Plan).validate_python(document)
        datetime.fromisoformat(plan.cutoff_at)
    except (OSError, ValidationError, ValueError) as error:
        raise Misconfigured(f"{path}: is no plan that can be read ({type(error).__name__})") from None
    # Compare the document as well: the digest does not cover a field that Plan does not have.
    if plan.digest != plan.sealed_by or json.loads(json.dumps(asdict(plan))) != document:
        raise Misconfigured(f"{path}: was altered since it was made; make a new one with --plan")
    return plan


def require_current(run: Run, plan: Plan, tolerance: float) -> None:
    """Compare a plan with the policies and the data as they are now, at the plan's cut-off, before anything is done.

    Args:
        run: The run; from now on it judges rows by the plan's cut-off.
        plan: The plan.
        tolerance: Percent by which the count of a policy may differ; at 0, the rows must be the same ones.

    Raises:
        PlanDrifted: Policies or data differ from the plan; the message names every policy that does.
        Misconfigured: The plan's cut-off lies in the future.
        StoppedEarly: The run must stop.
    """
    if plan.policy_hash != run.policies.hash:
        raise PlanDrifted(
            f"the plan was made with the policy file {plan.policy_hash[:12]}, this one is {run.policies.hash[:12]}:"
            " make a new plan, or give the file that it was made with (--policy-file)"
        )
    run.judge_by(datetime.fromisoformat(plan.cutoff_at))
    drifted = []
    for planned in plan.policies:
        run.checkpoint()
        difference = _difference(run, planned, tolerance)
        if difference:
            drifted.append(difference)
    if drifted:
        raise PlanDrifted(f"nothing was done, because the data are not those of the plan: {'; '.join(drifted)}")
    get_logger().info("plan_is_current", plan=plan.digest, tolerance_percent=tolerance, made_at=plan.made_at)


def _difference(run: Run, planned: Planned, tolerance: float) -> str | None:
    policy = run.policies.policies[planned.policy]
    if policy.action == "retain" or planned.fingerprint is None:
        return None  # a run would do nothing for this policy

    def look(connection: Connection) -> tuple[int, str, tuple[str, ...]]:
        selection = preflight(connection, policy, run.cutoff, blob_store=store_for(policy, run.settings)).selection
        return _keys(connection, selection)

    try:
        records, fingerprint, _ = within_budget(run, look)
    except PolicyFailed as error:
        return str(error)
    if abs(records - planned.records) > planned.records * tolerance / 100:
        return f"{policy.name}: planned {planned.records}, now {records}"
    if tolerance == 0 and fingerprint != planned.fingerprint:
        return f"{policy.name}: {records} as planned, but other rows"
    return None


def tell_differences(plan: Plan, results: Sequence[PolicyResult]) -> None:
    """Log a warning for each policy that deleted more or fewer records than its plan says."""
    done = {result.policy: result.records_deleted for result in results}
    for planned in plan.policies:
        if planned.policy in done and done[planned.policy] != planned.records:
            get_logger().warning(
                "plan_differs", policy=planned.policy, planned=planned.records, done=done[planned.policy]
            )


@dataclass(frozen=True)
class Change:
    """The difference between two plans for one policy."""

    policy: str
    first: int | None
    """Records of the first plan; None: the plan does not have the policy, or could not count them."""
    second: int | None
    """Records of the second plan; None as in the first."""
    frees: int
    """Number of records by which the second plan takes more."""
    keeps: int
    """Number of records by which the second plan takes fewer."""
    by_rule: dict[str, int]
    """Records of the second plan less those of the first, by rule."""


def compare(first: Plan, second: Plan) -> list[Change]:
    """Return the difference between two plans for each policy, in the order of the second plan."""
    before = {planned.policy: planned for planned in first.policies}
    after = {planned.policy: planned for planned in second.policies}
    return [_change(name, before.get(name), after.get(name)) for name in dict.fromkeys([*after, *before])]


def _change(name: str, before: Planned | None, after: Planned | None) -> Change:
    first, second = (planned.records if planned and planned.fingerprint else None for planned in (before, after))
    difference = (second or 0) - (first or 0)
    rules = {**(before.by_rule if before else {}), **(after.by_rule if after else {})}
    by_rule = {
        rule: (after.by_rule.get(rule, 0) if after else 0) - (before.by_rule.get(rule, 0) if before else 0)
        for rule in rules
    }
    return Change(name, first, second, max(0, difference), max(0, -difference), by_rule)
