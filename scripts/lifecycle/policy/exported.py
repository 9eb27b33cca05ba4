"""Which columns an export of a person's data leaves out: what the policy file says, else what is a secret."""

from __future__ import annotations

import re
from collections.abc import Iterable

from scripts.lifecycle.policy.policy_set import PolicySet

# Words of a column's name that say that its value is a secret, which is no personal data to take along.
_SECRET = re.compile(
    r"passw(or)?d|passphrase|secret(?!ar)|(^|_)(salt|otp|totp)(_|$)|(two_?fa|two_?factor|mfa)_?(key|code)"
    r"|(token|api_?key|private_?key)(_?(hash|digest))?$"
)


def left_out(policies: PolicySet, table: str, columns: Iterable[str]) -> list[str]:
    """Return which of a table's columns an export leaves out: what the policy file says, else what is a secret."""
    steps = [step for step in policies.erasure.values() if step.table == table]
    said = [step.not_exported for step in steps if step.not_exported is not None]
    if said:
        return [column for column in columns if any(column in named for named in said)]
    return [column for column in columns if _SECRET.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower())]
