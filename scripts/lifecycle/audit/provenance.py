"""Find under which rule a record was deleted: the audit entry, its run, and the policy file as it was then.

An entry names the policy file by its hash, under the seal. Where an older entry does not, its run's record names it, as
long as that is kept. After that the file is inferred from the time of the entry, and the answer says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import yaml
from psycopg.rows import class_row

from scripts.lifecycle.audit.audit_chain import Span, verify_within
from scripts.utils.db_utils import Connection
from scripts.utils.errors import AuditBroken
from scripts.utils.strict_yaml import require_bounds
from scripts.utils.yaml_defaults import SECTIONS, filled_in

KnownBy = Literal["audit", "run", "time"]

_REASON = re.compile(r"retention_policy:([a-z][a-z0-9_]*)/(.+)")
_ERASURE = re.compile(r"erasure_request:([a-z][a-z0-9_]*)")
# An entry of many batches: what a run did by one reason.
_ENTRIES = """
SELECT min(seq) AS first_batch, max(seq) AS last_batch, min(occurred_at) AS first_at, max(occurred_at) AS last_at,
       actor, action, resource_type, reason, run_id, sum(cardinality(resource_ids))::bigint AS records,
       (array_agg(left(metadata ->> 'due_before', 100) ORDER BY seq DESC))[1] AS due_before,
       (array_agg(left(metadata ->> 'period', 200) ORDER BY seq DESC))[1] AS period,
       (array_agg(left(metadata ->> 'policy_hash', 100) ORDER BY seq DESC))[1] AS policy_hash,
       (array_agg(left(metadata ->> 'session_user', 100) ORDER BY seq DESC))[1] AS recorded_by
  FROM ops.audit_batches
"""
_OF_RECORD = _ENTRIES + (
    " WHERE resource_ids && %(ids)s::text[] AND resource_type = coalesce(%(resource_type)s, resource_type)"
    " GROUP BY seq, actor, action, resource_type, reason, run_id ORDER BY 1"
)
_OF_RUN = _ENTRIES + (" WHERE run_id = ANY(%(runs)s) GROUP BY actor, action, resource_type, reason, run_id ORDER BY 1")


@dataclass(frozen=True)
class Entry:
    """One batch that has the record, or all batches of a run with the same reason."""

    first_batch: int
    last_batch: int
    first_at: datetime
    last_at: datetime
    actor: str
    action: str
    resource_type: str
    reason: str
    run_id: UUID | None
    records: int
    due_before: str | None
    period: str | None
    """Where each row said its own period; :attr:`due_before` is then the latest moment that any row may have had."""
    policy_hash: str | None
    recorded_by: str | None
    """The database login that wrote the entry; None: it is older than that column of the metadata."""

    @property
    def policy(self) -> str | None:
        """The policy that the reason names."""
        match = _REASON.fullmatch(self.reason)
        return match[1] if match else None

    @property
    def place(self) -> tuple[str, str] | None:
        """Where in the policy file the reason stands: a part of the file, and a name in it."""
        if self.policy:
            return "policies", self.policy
        match = _ERASURE.fullmatch(self.reason)
        return ("erasure", match[1]) if match else None

    @property
    def rule(self) -> str | None:
        """The policy's rule that the reason names."""
        match = _REASON.fullmatch(self.reason)
        return match[2] if match else None


@dataclass(frozen=True)
class RunFacts:
    """The run's record, which is deleted after its own retention period."""

    script: str
    policy: str
    correlation_id: str
    started_at: datetime
    cutoff_at: datetime
    status: str
    policy_hash: str
    host: str
    version: str


@dataclass(frozen=True)
class PolicyFile:
    """A policy file that was in force."""

    hash: str
    document: str = field(repr=False)
    first_used_at: datetime
    known_by: KnownBy = "audit"
    """What names this file: the sealed entry, the run's record, or only the time of the entry."""

    def require_unaltered(self) -> None:
        """Check that the text has the hash under which it is kept.

        Raises:
            AuditBroken: The text has another hash.
        """
        if hashlib.sha256(self.document.encode()).hexdigest() != self.hash:
            raise AuditBroken(
                f"the policy file kept as {self.hash} has another hash: it was altered in ops.policy_versions"
            )

    def section(self, part: str, name: str) -> str | None:
        """Return the text of a policy or of an erasure's step and of the defaults, as written; None: no such policy."""
        try:
            require_bounds(self.document)
            root = yaml.compose(self.document, Loader=yaml.CSafeLoader)
        except yaml.YAMLError:
            return None
        within = _child(root, part)
        found = _child(within[1], name) if within else None
        if found is None:
            return None
        defaults = _child(root, "defaults") if part in SECTIONS else None
        return "\n".join(self._text(*each) for each in (found, defaults) if each)

    def _text(self, key: yaml.Node, value: yaml.Node) -> str:
        begin = self.document.rfind("\n", 0, key.start_mark.index) + 1
        lines = self.document[begin : value.end_mark.index].rstrip().splitlines()
        while lines[-1].lstrip().startswith("#") or not lines[-1].strip():
            lines.pop()  # what stands there is about the next policy
        return "\n".join(lines)

    def said_of(self, part: str, name: str) -> dict[str, Any]:
        """Return the keys and values of a policy or of an erasure's step.

        Read without judging them: older files may know other keys. Empty where the document is no YAML.
        """
        try:
            require_bounds(self.document)
            loader = yaml.CSafeLoader(self.document)
            root = loader.get_single_node()
            content = loader.construct_document(filled_in(root)) if root else None
        except (yaml.YAMLError, ValueError):  # ValueError: what looks like a date and is none
            return {}
        found = (content.get(part) or {}).get(name) if isinstance(content, dict) else None
        return found if isinstance(found, dict) else {}


def of_record(connection: Connection, ids: Sequence[str], resource_type: str | None = None) -> list[Entry]:
    """Return the batches with any of these ids, oldest first; it reads the whole audit."""
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        return cursor.execute(_OF_RECORD, {"ids": list(ids), "resource_type": resource_type}).fetchall()


def of_runs(connection: Connection, runs: Sequence[UUID]) -> list[Entry]:
    """Return what runs did, by reason."""
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        return cursor.execute(_OF_RUN, {"runs": list(runs)}).fetchall()


def require_sealed(connection: Connection, entries: Sequence[Entry]) -> None:
    """Recompute the seals of the batches that the entries stand for, each from the batch before it.

    Args:
        connection: In a READ ONLY transaction of one snapshot.
        entries: What is to be shown.

    Raises:
        AuditBroken: A batch is not the one that was sealed.
    """
    spans: list[Span] = []
    for first, last in sorted((entry.first_batch, entry.last_batch) for entry in entries):
        if spans and first <= (spans[-1].last or 0) + 1:
            spans[-1] = Span(spans[-1].first, max(last, spans[-1].last or 0))
        else:
            spans.append(Span(first, last))
    for span in spans:
        found = verify_within(connection, span=span)
        if not found.intact:
            raise AuditBroken(f"what would be shown does not verify: {found.findings[0]}; run verify_audit.py")


def runs_called(connection: Connection, name: str) -> list[UUID]:
    """Return the runs that a log line names by its correlation id, as long as their records are kept."""
    return [
        run
        for (run,) in connection.execute("SELECT id FROM ops.job_runs WHERE correlation_id = %s", (name,)).fetchall()
    ]


def run_of(connection: Connection, entry: Entry) -> RunFacts | None:
    """Return the entry's run; None: its record is gone, or a person decided."""
    with connection.cursor(row_factory=class_row(RunFacts)) as cursor:
        return cursor.execute(
            "SELECT script, policy, correlation_id, started_at, cutoff_at, status, policy_hash, host, version"
            " FROM ops.job_runs WHERE id = %s",
            (entry.run_id,),
        ).fetchone()


def policy_file_of(connection: Connection, entry: Entry) -> PolicyFile | None:
    """Return the policy file that the entry was made under; None: none is on record."""
    sources: list[tuple[KnownBy, str | None]] = [
        ("audit", entry.policy_hash or _hash_beside(connection, entry)),
        ("run", _one(connection, "SELECT policy_hash FROM ops.job_runs WHERE id = %s", entry.run_id)),
        ("time", _in_force(connection, entry.first_at) if entry.policy else None),
    ]
    known_by, found = next((source for source in sources if source[1]), sources[-1])
    row = connection.execute(
        "SELECT hash, document, first_used_at FROM ops.policy_versions WHERE hash = %s", (found,)
    ).fetchone()
    return PolicyFile(row[0], row[1], row[2], known_by) if row else None


def _hash_beside(connection: Connection, entry: Entry) -> str | None:
    """What went along with a row is in an entry of its own, without the hash; the same run's others have it."""
    return _one(
        connection,
        "SELECT metadata ->> 'policy_hash' FROM ops.audit_batches WHERE run_id = %s AND metadata ? 'policy_hash'"
        " LIMIT 1",
        entry.run_id,
    )


def _in_force(connection: Connection, at: datetime) -> str | None:
    return _one(
        connection,
        "SELECT hash FROM ops.policy_versions WHERE first_used_at <= %s ORDER BY first_used_at DESC LIMIT 1",
        at,
    )


def _one(connection: Connection, query: str, parameter: object) -> str | None:
    row = connection.execute(query.encode(), (parameter,)).fetchone()
    return row[0] if row else None


def _child(node: yaml.Node | None, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((key, value) for key, value in node.value if key.value == name), None)
