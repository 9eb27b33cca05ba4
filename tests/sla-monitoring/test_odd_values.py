"""One odd value in one table never silences the watch over the others."""

from datetime import timedelta

import pytest
import yaml

from scripts.lifecycle.monitoring import sla_watch
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE


@pytest.fixture
def two(world):
    """Two policies, the odd value in the first one's table."""
    policies = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())["policies"]
    other = next(name for name in policies if name != "quiz_responses" and policies[name]["action"] == "delete")
    world.document["policies"][other] = policies[other]
    world.write()
    return world


@pytest.mark.parametrize("moment", ["0001-01-01 BC", "4713-01-01 BC", "-infinity", "infinity", "294276-01-01"])
def test_an_odd_moment_is_watched_like_any_other(monitor, two, moment):
    two.quiz(timedelta(hours=50), rows=2)
    two.admin.execute(
        "UPDATE quiz_responses SET created_at = %s WHERE ctid = (SELECT min(ctid) FROM quiz_responses)", (moment,)
    )

    assert monitor()["policies"] == 2

    seen = {subject: (status, items) for subject, status, items, _ in two.observations()}
    assert seen.pop("quiz_responses") == ("breached", 1 if moment in ("infinity", "294276-01-01") else 2)
    assert [status for status, _ in seen.values()] == ["within_sla"]


def test_a_policy_that_cannot_be_judged_is_named_and_the_others_are_judged(monitor, two, monkeypatch):
    measured = sla_watch.measure

    def odd(database, settings, policy, **arguments):
        if policy.name == "quiz_responses":
            raise OverflowError("date value out of range")
        return measured(database, settings, policy, **arguments)

    monkeypatch.setattr(sla_watch, "measure", odd)

    assert monitor()["not_counted"] == 1
    assert sorted(status for _, status, _, _ in two.observations()) == ["unknown", "within_sla"]
