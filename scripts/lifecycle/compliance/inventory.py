"""The part on data, as a record of processing (GDPR Art. 30): what is kept, where, why, and for how long."""

from __future__ import annotations

from scripts.lifecycle.compliance.document import Column, Section, Table
from scripts.lifecycle.compliance.scope import Scope
from scripts.lifecycle.policy.conditions import Condition, LookedUp
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.lifecycle.policy.rules import Rule

THEN = {
    "delete": "deleted",
    "soft_delete": "marked as deleted",
    "delete_blob": "the file is deleted, the row stays",
    "archive_then_delete": "archived, verified, then deleted",
    "anonymize": "anonymised",
    "retain": "kept",
}


def fill(scope: Scope, section: Section) -> None:
    """List every policy, and the tables that are kept without a period."""
    policies = scope.run.policies
    section.lead.append(
        "From the policy file in use now, with the rows counted when the report was made. A period is counted from the"
        " named moment; a record goes in the first run of its job after that."
    )
    section.lead.append(
        "The controller's name, the categories of people, recipients outside these systems and transfers to third"
        " countries are not in the policy file: they belong to the controller's own record."
    )
    section.tables.append(
        Table(
            "data",
            "Data, purpose and period",
            (
                Column("policy", "policy", weight=1.9),
                Column("what", "what", weight=1.9),
                Column("where", "where", weight=1.7),
                Column("kept", "kept, then", weight=2.2),
                Column("legal_basis", "legal basis", weight=2.3),
                Column("owner", "owner", weight=1.35),
                Column("rows", "rows now", "number", weight=1.25),
            ),
            [
                (
                    policy.name,
                    policy.description,
                    _where(policy),
                    f"{_kept(policy)}; then {THEN[policy.action]}",
                    policy.legal_basis,
                    policy.owner,
                    scope.looks[policy.name].rows,
                )
                for policy in policies.policies.values()
            ],
            "Why each period is what it is: the decision page that the policy names, in docs/decisions.",
        )
    )
    section.tables.append(
        Table(
            "kept",
            "Kept without a period",
            (Column("where", "where"), Column("why", "why", weight=2.5)),
            [
                *policies.kept.items(),
                ("ops.audit_batches", "proof of what was deleted, without personal data: kept for good"),
                ("ops.policy_versions", "each policy file that a run used: kept for good"),
            ],
        )
    )
    section.uncounted += [each.because for each in scope.looks.values() if each.rows is None and each.because]


def _where(policy: Policy) -> str:
    places = [policy.table]
    if policy.blob:
        places.append(f"Blob store, {policy.blob.prefix}")
    if policy.archive:
        places.append(f"archive, {policy.archive.keep.text} after it was sealed")
    return "; ".join(places)


def _kept(policy: Policy) -> str:
    if not policy.rules:
        return "for good"
    told = [_rule(rule, alone=len(policy.rules) == 1) for rule in policy.rules.values()]
    excepted = f", except {', '.join(policy.exceptions).replace('_', ' ')}" if policy.exceptions else ""
    return "; or ".join(told) + excepted


def _rule(rule: Rule, *, alone: bool) -> str:
    """Return a rule in words, with its conditions, so that two rules of one policy read differently."""
    kept = f"{rule.keep.text} after {rule.anchor}" if rule.ends else "for good"
    if isinstance(rule.keep, RowPeriod):
        bounds = [
            f"{what} {period.text}" for what, period in (("at least", rule.floor), ("at most", rule.ceiling)) if period
        ]
        kept = f"each for as long as {kept}" + "".join(f", {bound}" for bound in bounds)
    if rule.when:
        return f"{kept} where {conditions(rule.when)}"
    return kept if alone else f"{kept} whatever else is in the row"


def conditions(when: dict[str, Condition | LookedUp]) -> str:
    """Return conditions on a row's columns, and on values of other tables, in words."""
    return " and ".join(
        f"{each} {_condition(each.what)}" if isinstance(each, LookedUp) else f"{column} {_condition(each)}"
        for column, each in when.items()
    )


def _condition(condition: Condition) -> str:
    if condition.operator in ("set", "unset"):
        return f"is {condition.operator}"
    word = {"in": "is", "not_in": "is not", "before": "is before", "not_before": "is not before"}[condition.operator]
    return f"{word} {' or '.join(value or 'empty' for value in condition.values)}"
