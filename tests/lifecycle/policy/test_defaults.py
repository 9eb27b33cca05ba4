"""What every policy repeats is said once, under ``defaults:``, and each policy is as if it had written it itself."""

from __future__ import annotations

import re

import pytest
import yaml

from scripts.lifecycle.audit.provenance import PolicyFile
from scripts.lifecycle.compliance.policy_changes import _changes
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, load_policies, parse_policies
from scripts.utils.errors import Misconfigured
from tests.lifecycle.support import AS_OF
from tests.lifecycle.support import POLICY_TEXT as TEXT

OVERDUE = "    overdue: {warning: 1 hour, critical: 2 hours}\n"
BATCH = "    batch: {rows: 10, lock_timeout: 1 second, statement_timeout: 1 minute}\n"
SHORT = TEXT.replace("    owner: me\n", "").replace("    key: id\n", "").replace("    max_poison: 0\n", "")
SHORT = SHORT.replace(BATCH, "    batch: {rows: 10}\n").replace(OVERDUE, "")
DEFAULTS = """\
defaults:
  owner: me
  key: id
  max_poison: 0
  batch: {rows: 500, lock_timeout: 1 second, statement_timeout: 1 minute}
  overdue: {warning: 1 hour, critical: 2 hours}
"""


def refusal(text):
    with pytest.raises(Misconfigured) as refused:
        parse_policies(text, "file")
    return str(refused.value)


@pytest.mark.parametrize("text", [DEFAULTS + SHORT, SHORT + DEFAULTS])
def test_a_policy_with_defaults_is_the_one_that_says_everything_itself(text):
    assert parse_policies(text, "file").policies == parse_policies(TEXT, "file").policies


def test_a_policy_s_own_keys_come_first():
    text = DEFAULTS + TEXT.replace("owner: me", "owner: other").replace("max_poison: 0", "max_poison: 7")

    things = parse_policies(text, "file").policies["things"]

    assert (things.owner, things.max_poison, things.batch.rows) == ("other", 7, 10)


def written_out(entry, defaults):
    """An entry with the defaults, written by hand: nothing of the loader's."""
    full = dict(defaults)
    for key, value in entry.items():
        full[key] = {**defaults[key], **value} if isinstance(defaults.get(key), dict) else value
    return full


def test_the_shipped_file_says_what_it_would_say_without_defaults():
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    defaults = document.pop("defaults")
    document["policies"] = {name: written_out(each, defaults) for name, each in document["policies"].items()}
    some = {"key": defaults["key"], "person": defaults["person"]}
    document["erasure"] = {name: written_out(each, some) for name, each in document["erasure"].items()}

    long = parse_policies(yaml.safe_dump(document, sort_keys=False), "file")

    shipped = load_policies()
    assert list(long.policies) == list(shipped.policies)
    assert (long.policies, long.jobs, long.erasure, long.kept) == (
        *(shipped.policies, shipped.jobs, shipped.erasure, shipped.kept),
    )


def test_no_shipped_policy_repeats_a_default_and_no_cap_or_limit_is_written_twice():
    text = DEFAULT_POLICY_FILE.read_text()
    document = yaml.safe_load(text)
    repeated = [
        (name, key)
        for name, policy in document["policies"].items()
        for key, value in document["defaults"].items()
        if policy.get(key, ()) == value
    ]
    numbers = re.findall(
        r"\b(?:max_rows|max_poison|rows|lock_timeout|statement_timeout|warning): (?:&\w+ )?(\d.*?)[,}\n]", text
    )

    assert repeated == []
    assert sorted(numbers) == sorted(set(numbers))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_poison: 0", "max_poison: few", "defaults.max_poison (line 4, column 15): must be a whole number"),
        ("rows: 500,", "rws: 500,", "defaults.batch.rws (line 5, column 11): is not a known key: did you mean `rows`?"),
        ("owner: me", "ownr: me", "defaults.ownr (line 2, column 3): is not a known key: did you mean `owner`?"),
        ("owner: me", "action: delete", "defaults.action (line 2, column 3): is not a known key"),
        ("owner: me", "owner: me\n  person: null", "defaults.person (line 3, column 11): must be a text"),
        ("owner: me", "owner: me\n  owner: you", "line 3, column 3: owner is written twice"),
        ("critical: 2 hours", "critical: 1 minute", "defaults.overdue (line 6, column 12): warning must not be longer"),
    ],
)
def test_a_mistake_in_the_defaults_is_named_there_and_once(old, new, said):
    two = SHORT.replace(
        "jobs:\n", SHORT[SHORT.index("  things:") : SHORT.index("jobs:")].replace("things", "others") + "jobs:\n"
    )

    message = refusal(DEFAULTS.replace(old, new) + two)

    assert message.count(said) == 1, message
    assert not re.search(r"policies\.\w+\.(max_poison|batch|overdue|person|action)", message)


def test_what_neither_says_is_missing_in_the_policy():
    assert "policies.things.owner (line 8, column 3): is missing" in refusal(
        DEFAULTS.replace("  owner: me\n", "") + SHORT
    )


def test_the_place_of_a_default_is_its_line():
    things = parse_policies(DEFAULTS + SHORT, "file").policies["things"]

    assert things.at("policies", "things", "key") == "policies.things.key (line 3)"


def test_an_explanation_knows_what_the_defaults_said():
    kept = PolicyFile("hash", DEFAULTS + SHORT, AS_OF)

    assert kept.said_of("policies", "things")["owner"] == "me"
    assert "defaults:\n  owner: me" in kept.section("policies", "things")


def test_keys_that_move_to_the_defaults_are_no_change_of_a_policy():
    assert [each for each in _changes(TEXT, DEFAULTS + SHORT) if each.startswith("policies.")] == []
    changed = _changes(DEFAULTS + SHORT, DEFAULTS.replace("owner: me", "owner: you") + SHORT)
    assert "policies.things.owner: me, now you" in changed
