"""The list of checks, in the order in which they run: what other checks need comes first."""

from __future__ import annotations

from scripts.lifecycle.health import (
    configuration,
    database,
    erasure,
    legal_holds,
    locks,
    ownership,
    personal_data,
    schedule,
    services,
    vacuum,
)
from scripts.lifecycle.health.findings import CONNECTION, Check

CHECKS = (
    Check("settings", configuration.settings, needs_database=False),
    Check(CONNECTION, database.connection, needs_database=False),
    Check("role", database.role),
    Check("schema", database.schema),
    Check("suite", database.suite),
    Check("rights", database.rights),
    Check("policies", database.policies),
    Check("erasure", erasure.erasure),
    Check("indexes", database.indexes),
    Check("personal_data", personal_data.personal_data),
    Check("owners", ownership.ownership),
    Check("autovacuum", vacuum.autovacuum),
    Check("snapshots", vacuum.snapshots),
    Check("clock", database.clock),
    Check("session", database.session),
    Check("redis", locks.redis_answers, needs_database=False),
    Check("locks", locks.zombie_locks),
    Check("blob", services.blob, needs_database=False),
    Check("archives", services.archives),
    Check("holds", legal_holds.legal_holds),
    Check("sentry", services.sentry, needs_database=False),
    Check("schedule", schedule.schedule, needs_database=False),
)
