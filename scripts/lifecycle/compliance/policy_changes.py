"""The part on policy changes: which versions of the policy file the runs used, and what changed between them."""

from __future__ import annotations

import difflib
from typing import Any

import yaml

from scripts.lifecycle.compliance.document import Column, Passage, Section, Table
from scripts.lifecycle.compliance.scope import Scope
from scripts.utils.yaml_defaults import filled_in

SHOWN_LINES = 400
SHOWN_CHANGES = 25
SHOWN_HASH = 16
_VERSIONS = """
WITH inside AS (SELECT * FROM ops.policy_versions WHERE first_used_at >= %(since)s AND first_used_at < %(until)s),
     before AS (SELECT * FROM ops.policy_versions WHERE first_used_at < %(since)s
                 ORDER BY first_used_at DESC LIMIT 1)
SELECT hash, document, first_used_at, first_used_by, false AS new FROM before
UNION ALL SELECT hash, document, first_used_at, first_used_by, true FROM inside ORDER BY first_used_at, hash
"""
_USED = """
SELECT policy_hash AS hash, count(*) AS runs, min(started_at) AS first_at, max(started_at) AS last_at
  FROM ops.job_runs WHERE started_at >= %(since)s AND started_at < %(until)s GROUP BY 1 ORDER BY 3
"""


def fill(scope: Scope, section: Section) -> None:
    """Compare each version of the policy file that is new in the period with the version before it."""
    versions = scope.rows(_VERSIONS)
    new = [each for each in versions if each["new"]]
    section.lead.append(
        f"{len(new)} new {'version' if len(new) == 1 else 'versions'} of the policy file came into use in the period."
        " Every version that a run used is kept by its hash; explain_deletion.py shows it."
    )
    rows = []
    for number, version in enumerate(versions):
        before = versions[number - 1] if number else None
        if not version["new"]:
            continue
        changes = _changes(before["document"] if before else "", version["document"])
        rows.append(
            (
                version["first_used_at"],
                version["first_used_by"],
                version["hash"],
                "; ".join(changes) if before else "the first that is on record",
            )
        )
        if before:
            section.passages.append(
                Passage(
                    f"From {before['hash'][:SHOWN_HASH]} to {version['hash'][:SHOWN_HASH]}",
                    _difference(before, version),
                )
            )
    section.tables += [
        Table(
            "versions",
            "Versions that came into use",
            (
                Column("first_used_at", "first used (UTC)", "moment", weight=1.2),
                Column("first_used_by", "by", weight=1.4),
                Column("hash", "sha-256 of the file", weight=2),
                Column("changes", "what changed", weight=3),
            ),
            rows,
        ),
        Table(
            "used",
            "Versions that the period's runs used",
            (
                Column("hash", "sha-256 of the file", weight=4),
                Column("runs", "run records", "number"),
                Column("first_at", "first (UTC)", "moment", weight=1.3),
                Column("last_at", "last (UTC)", "moment", weight=1.3),
            ),
            [(row["hash"], row["runs"], row["first_at"], row["last_at"]) for row in scope.rows(_USED)],
        ),
    ]


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    lines = list(
        difflib.unified_diff(
            before["document"].splitlines(),
            after["document"].splitlines(),
            before["hash"][:SHOWN_HASH],
            after["hash"][:SHOWN_HASH],
            lineterm="",
            n=2,
        )
    )
    more = [f"… and {len(lines) - SHOWN_LINES:,} lines more: explain_deletion.py --whole-file"]
    return "\n".join(lines[:SHOWN_LINES] + (more if len(lines) > SHOWN_LINES else []))


def _changes(before: str, after: str) -> list[str]:
    """Name every changed key by its place in the file. A policy that is new or gone is named once."""
    old, new = _leaves(_read(before)), _leaves(_read(after))
    policies = [{_policy(place) for place in leaves} - {None} for leaves in (old, new)]
    appeared, gone = policies[1] - policies[0], policies[0] - policies[1]
    changed = [f"policy {name} (new)" for name in sorted(filter(None, appeared))]
    changed += [f"policy {name} (gone)" for name in sorted(filter(None, gone))]
    for place in dict.fromkeys([*new, *old]):
        if old.get(place) == new.get(place) or _policy(place) in appeared | gone:
            continue
        if place not in old:
            changed.append(f"{place}: {new[place]} (new)")
        elif place not in new:
            changed.append(f"{place}: gone (was {old[place]})")
        else:
            changed.append(f"{place}: {old[place]}, now {new[place]}")
    if len(changed) > SHOWN_CHANGES:
        changed = [*changed[:SHOWN_CHANGES], f"and {len(changed) - SHOWN_CHANGES:,} more, see below"]
    return changed or ["comments and spelling only"]


def _policy(place: str) -> str | None:
    """Return the policy to which a place in the file belongs; None: to none."""
    steps = place.split(".")
    return steps[1] if steps[0] == "policies" and len(steps) > 1 else None


def _read(document: str) -> Any:
    try:
        # Parsed in Python, not by libyaml: deep nesting makes libyaml overflow the stack (SIGSEGV).
        loader = yaml.SafeLoader(document)
        root = loader.get_single_node()
        return loader.construct_document(filled_in(root)) if root else None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ):  # also an invalid date, or too deep: the text is compared instead
        return None


def _leaves(content: Any, place: str = "") -> dict[str, str]:
    if isinstance(content, dict):
        found: dict[str, str] = {}
        for key, value in content.items():
            found |= _leaves(value, f"{place}.{key}" if place else str(key))
        return found
    return {place: "none" if content is None else str(content)} if place else {}
