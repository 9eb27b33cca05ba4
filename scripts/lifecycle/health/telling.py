"""Raises an alert for each check and subject that is not well, and ends it when the subject is well again."""

from __future__ import annotations

from collections.abc import Iterable

from scripts.lifecycle.health.findings import Check, Finding
from scripts.lifecycle.monitoring.alerts import Alert, Alerts, Settled

SCOPE = "health:"
_RUNBOOK = "scripts/sla-monitoring/README.md#check_cleanup_health"


def tell(alerts: Alerts, checks: Iterable[Check], findings: list[Finding]) -> Settled:
    """Raise alerts for what is not well, and end those that are; a check that did not run changes none.

    Args:
        alerts: The installation's alerts.
        checks: Every check that exists.
        findings: What the checks found that were carried out.
    """
    looked = {finding.check for finding in findings}
    # A failure whose subject is the check itself means that it could not look. Its earlier findings may still hold.
    blind = {finding.check for finding in findings if finding.subject == finding.check and finding.status == "FAIL"}
    unknown = [f"{SCOPE}{check.name}:" for check in checks if check.name not in looked or check.name in blind]
    return alerts.settle(SCOPE, alerts_of(findings), unknown=unknown)


def alerts_of(findings: Iterable[Finding]) -> list[Alert]:
    """Return one alert for each subject that is not well; its severity is that of the subject's worst finding."""
    unwell: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.status != "PASS":
            unwell.setdefault(f"{SCOPE}{finding.check}:{finding.subject}", []).append(finding)
    return [
        Alert(
            key=key,
            severity="critical" if any(finding.status == "FAIL" for finding in found) else "warning",
            what=f"{found[0].check}: {found[0].subject} is not well",
            how_bad="; ".join(dict.fromkeys(finding.message for finding in found)),
            what_to_do="; ".join(dict.fromkeys(finding.cure or "see the runbook" for finding in found)),
            runbook=_RUNBOOK,
        )
        for key, found in unwell.items()
    ]
