"""Checks settings and policy file for values that are valid and most likely not meant."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict

from scripts.lifecycle.health.findings import Context, Finding, passed, warned
from scripts.lifecycle.policy.schedules import longest_interval
from scripts.utils import tls


def settings(context: Context) -> Iterator[Finding]:
    """Look for settings that are valid and most likely not meant, such as a dry run that was left on."""
    found = [*_quiet_switches(context), *_in_the_open(context), *_long_budgets(context)]
    yield from found
    if not found:
        policies = context.run.policies
        yield passed(
            "environment and policy file",
            f"{len(policies.policies)} policies, {len(policies.jobs)} jobs, policy file {policies.hash[:12]}",
        )


def _quiet_switches(context: Context) -> Iterator[Finding]:
    given = context.run.settings
    if given.cleanup_dry_run:
        yield warned("CLEANUP_DRY_RUN", "is true: no job deletes anything", "unset it when the trial is over")
    if given.audit_pseudonym_key is None and any(policy.blob for policy in context.run.policies.policies.values()):
        yield warned(
            "AUDIT_PSEUDONYM_KEY",
            "is not set: --reconcile cannot name a blob that no row names",
            "set it to k1:$(openssl rand -hex 32) and keep it",
        )


def _in_the_open(context: Context) -> Iterator[Finding]:
    given = context.run.settings
    database = conninfo_to_dict(given.database_url.get_secret_value())
    mode = tls.libpq_options(given.database_url.get_secret_value()).get("sslmode", "verify-full")
    if not all(is_private(host) for host in str(database.get("host", "")).split(",")):
        cure = "say sslmode=verify-full in the URL, or nothing: it is the default"
        if mode in ("disable", "allow", "prefer"):
            yield warned("DATABASE_URL", f"sslmode={mode} does not insist on encryption to a public host", cure)
        elif mode != "verify-full":
            yield warned("DATABASE_URL", f"sslmode={mode} does not check which server answers", cure)
    redis = urlsplit(given.redis_url.get_secret_value())
    if redis.scheme == "redis" and not is_private(redis.hostname or ""):
        yield warned("REDIS_URL", "is not encrypted to a public host", "use rediss://")


def _long_budgets(context: Context) -> Iterator[Finding]:
    for name, job in context.run.policies.jobs.items():
        if job.budget >= longest_interval(job.schedule):
            yield warned(
                f"jobs.{name}",
                f"may run for {job.budget.total_seconds():.0f} s, longer than until its next run",
                "shorten its budget, or run it less often",
            )


def is_private(host: str) -> bool:
    """Tell whether a host's name or address is of this machine or of a private network."""
    try:
        return not ip_address(host).is_global
    except ValueError:
        # A socket's folder, a name without a domain, or a name that only an internal resolver knows.
        return host.startswith("/") or "." not in host or host.endswith((".internal", ".local", ".localhost"))
