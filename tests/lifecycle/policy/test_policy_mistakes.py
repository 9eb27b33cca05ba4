"""Every mistake in a policy file is named with its place, before any connection."""

from __future__ import annotations

import re

import pytest

from scripts.lifecycle.policy.policy_file import parse_policies
from scripts.utils.errors import Misconfigured
from tests.lifecycle.support import POLICY_TEXT as TEXT

PERIOD = "is not a period: write a number and a unit"
DURATION = "is not a duration: write a number and a unit"
CONDITION = (
    "is not a condition: write set, unset, a value, {in: [...]}, {not_in: [...]}, {before: ...} or {not_before: ...}"
)
TABLE = "is not a table with its schema, such as public.quiz_responses"
NAME = "is not a name of lower-case letters, digits and underscores"
BACK = "reaches back beyond the calendar"


# Ten values, ten of those, and so on: 30 anchors would be more values than there are atoms.
BOMB = f"[&a0 [{'x,' * 10}], " + ", ".join(f"&a{n} [" + f"*a{n - 1}," * 10 + "]" for n in range(1, 30)) + "]"
THREE = "\N{ARABIC-INDIC DIGIT THREE}"


def parse(text):
    return parse_policies(text, "file")


def refusal(text):
    with pytest.raises(Misconfigured) as refused:
        parse(text)
    return str(refused.value)


MISTAKES = [
    ("keep: 30 days", "keep: 30", "rules.old.keep", PERIOD),
    ("keep: 30 days", "keep: 30 fortnights", "rules.old.keep", PERIOD),
    ("keep: 30 days", "keep: -1 days", "rules.old.keep", PERIOD),
    ("keep: 30 days", "keep: 1.5 days", "rules.old.keep", PERIOD),
    ("keep: 30 days", "keep: null", "rules.old.keep", PERIOD),
    ("keep: 30 days", "keep: P30D", "rules.old.keep", PERIOD),
    ("keep: 30 days", "keep: Forever", "rules.old.keep", PERIOD),
    ("keep: 30 days", "keep: 30 days ago", "rules.old.keep", PERIOD),
    ("keep: 30 days", "keep: 3000 years", "rules.old.keep", BACK),
    ("keep: 30 days", "keep: 99999999999999 days", "rules.old.keep", BACK),
    (", keep: 30 days", "", "rules.old.keep", "is missing"),
    ("anchor: made_at, keep", "anchor: null, keep", "rules.old.anchor", "must be a text"),
    ("anchor: made_at, keep", "anchor: '', keep", "rules.old.anchor", "at least 1 character"),
    ("keep: 30 days}", "keep: 30 days, unless: x}", "rules.old.unless", "is not a known key"),
    ("when: {kind: red}", "when: {kind: {like: [red]}}", "rules.old.when.kind", CONDITION),
    ("when: {kind: red}", "when: {kind: null}", "rules.old.when.kind", CONDITION),
    ("when: {kind: red}", "when: {kind: 1.5}", "rules.old.when.kind", CONDITION),
    ("when: {kind: red}", "when: {kind: [red]}", "rules.old.when.kind", CONDITION),
    ("when: {kind: red}", "when: {kind: {in: []}}", "rules.old.when.kind", CONDITION),
    ("when: {kind: red}", "when: {kind: {in: red}}", "rules.old.when.kind", CONDITION),
    ("when: {kind: red}", "when: {kind: {in: [null]}}", "rules.old.when.kind", CONDITION),
    ("when: {kind: red}", "when: {kind: {in: [red], not_in: [blue]}}", "rules.old.when.kind", CONDITION),
    ("when: {kind: red}", "when: red", "rules.old.when", "must be keys with their values"),
    ("when: {kind: set}", "when: {}", "exceptions.odd.when", "at least 1 item"),
    ("after: 1 day", "after: soon", "exceptions.odd.queue.after", PERIOD),
    (
        "priority: low",
        "priority: urgent",
        "exceptions.odd.queue.priority",
        "must be 'critical', 'high', 'medium' or 'low'",
    ),
    ("item_type: odd_thing", "item_type: Odd", "exceptions.odd.queue.item_type", NAME),
    ("table: public.things", "table: things", "table", TABLE),
    ("table: public.things", "table: a.b.c", "table", TABLE),
    ("table: public.things", "table: 'public.\"things\"'", "table", TABLE),
    ("table: public.notes", "table: notes", "dependants.0.table", TABLE),
    ("action: delete}", "action: cascade}", "dependants.0.action", "must be 'delete', 'set_null' or 'refuse'"),
    ("    action: delete\n", "    action: shred\n", "action", "must be 'delete'"),
    ("    person: null\n", "", "person", "is missing"),
    ("    legal_basis: none\n", "", "legal_basis", "is missing"),
    ("owner: me", "owner: ''", "owner", "at least 1 character"),
    ("description: Things", "descripton: Things", "descripton", "is not a known key"),
    ("    key: id\n", "    key: []\n", "key", "Tuple should have at least 1 item"),
    ("    key: id\n", "    key: [id, id]\n", "key", "names a column twice"),
    ("description: Things", "name: other", "name", "is not a known key"),
    ("max_rows: 10", "max_rows: 0", "max_rows", "greater than or equal to 1"),
    ("max_rows: 10", "max_rows: many", "max_rows", "must be a whole number"),
    ("max_rows: 10", "max_rows: true", "max_rows", "must be a whole number"),
    ("max_rows: 10", "max_rows: 10.0", "max_rows", "must be a whole number"),
    ("max_rows: 10", "max_rows: .inf", "max_rows", "must be a whole number"),
    ("max_rows: 10", "max_rows: '10'", "max_rows", "must be a whole number"),
    ("max_rows: 10", f"max_rows: {THREE}", "max_rows", "must be a whole number"),
    ("max_poison: 0", "max_poison: false", "max_poison", "must be a whole number"),
    ("rows: 10, lock", "rows: true, lock", "batch.rows", "must be a whole number"),
    ("keep: 30 days", f"keep: {THREE} days", "rules.old.keep", PERIOD),
    ("lock_timeout: 1 second", f"lock_timeout: {THREE} second", "batch.lock_timeout", DURATION),
    ("    person: null\n", "    drop_partitions: 'no'\n    person: null\n", "drop_partitions", "must be true or false"),
    ("max_poison: 0", "max_poison: -1", "max_poison", "greater than or equal to 0"),
    ("rows: 10, lock", "rows: 100001, lock", "batch.rows", "less than or equal to 100000"),
    ("lock_timeout: 1 second", "lock_timeout: 0 seconds", "batch.lock_timeout", DURATION),
    ("lock_timeout: 1 second", "lock_timeout: 500", "batch.lock_timeout", DURATION),
    ("lock_timeout: 1 second", "lock_timeout: 99999999999 days", "batch.lock_timeout", "is too long"),
    ("warning: 1 hour,", "warning: 3 hours,", "overdue", "warning must not be longer than critical"),
]
JOB_MISTAKES = [
    ('"0 2 * * *"', '"0 25 * * *"', "schedule", "is not a cron expression"),
    ('"0 2 * * *"', '"daily"', "schedule", "is not a cron expression"),
    ('"0 2 * * *"', f'"{THREE} 2 * * *"', "schedule", "is not a cron expression"),
    ("budget: 60 seconds", "budget: 1 month", "budget", DURATION),
    ('"lock:cleanup:things"', "things", "lock", "is not a lock's name, such as lock:cleanup:quiz_responses"),
]
PLACES = [(old, new, f"policies.things.{place}", said) for old, new, place, said in MISTAKES]
PLACES += [(old, new, f"jobs.cleanup_things.{place}", said) for old, new, place, said in JOB_MISTAKES]


@pytest.mark.parametrize(("old", "new", "place", "said"), PLACES)
def test_a_mistake_is_named_with_its_place(old, new, place, said):
    assert TEXT.count(old) == 1, "or the case tests something else"
    message = refusal(TEXT.replace(old, new))

    line = r"\d+" if said == "is missing" else str(TEXT[: TEXT.index(old)].count("\n") + 1)
    assert re.search(rf"[:;\n] +{re.escape(place)} \(line {line}, column \d+\): [^;]*{re.escape(said)}", message), (
        message
    )


def test_every_mistake_is_named_at_once():
    message = refusal(TEXT.replace("30 days", "soon").replace("max_rows: 10", "max_rows: 0").replace("0 2 *", "0 99 *"))

    for place in ("policies.things.rules.old.keep", "policies.things.max_rows", "jobs.cleanup_things.schedule"):
        assert place in message


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("    key: id\n", "    key: id\n    key: uuid\n", 7, "key is written twice"),
        ("jobs:\n", "policies: {}\njobs:\n", 24, "policies is written twice"),
        ("keep: 30 days}", "keep: 30 days, keep: 1 day}", 10, "keep is written twice"),
        ("    key: id\n", "    key: [id\n", 7, "expected ',' or ']'"),
        ("    key: id\n", "\tkey: id\n", 6, "found a tab character"),
        ("    key: id\n", "    key: !!python/object:os.system id\n", 6, "could not determine a constructor"),
        ("    key: id\n", "    ? [a, b]\n    : id\n", 6, "found unhashable key"),
        ("owner: me", "owner: *nobody", 18, "found undefined alias"),
        ("{kind: red}", "{kind: {in: [se, no]}}", 10, "no would mean false: write that, or quote it"),
        ("{kind: red}", "{kind: On}", 10, "On would mean true: write that, or quote it"),
        ("{kind: red}", "{kind: {in: [010]}}", 10, "010 would mean 8: write that, or quote it"),
        ("{kind: red}", "{kind: 0x10}", 10, "0x10 would mean 16: write that, or quote it"),
        ("{kind: red}", "{<<: {kind: red}}", 10, "merge keys (<<) are not allowed here: write the keys out"),
        ("    key: id\n", "    <<: {key: id}\n", 6, "merge keys (<<) are not allowed here: write the keys out"),
        ("{kind: red}", f"{{kind: {'[' * 60}red{']' * 60}}}", 10, "nested deeper than 32 levels"),
        ("{kind: red}", f"{{kind: {'{a: ' * 5000}", 10, "nested deeper than 32 levels"),
        ("{kind: red}", f"{{kind: {'a' * 10_001}}}", 10, "the value is longer than 10000 characters"),
        ("{kind: red}", f"{{kind: {'9' * 5000}}}", 10, "Exceeds the limit"),
        ("{kind: red}", "{kind: &a {in: [*a]}}", 10, "an alias may not stand inside of what it names"),
        ("{kind: red}", f"{{kind: {{in: {BOMB}}}}}", 10, "holds more than 100000 values"),
        ("{kind: red}", "{kind: 12:30}", 10, "12:30 would mean 750: write that, or quote it"),
    ],
)
def test_a_mistake_in_the_yaml_is_named_with_its_line(old, new, line, said):
    message = refusal(TEXT.replace(old, new))

    assert message.startswith("policy file file")
    assert re.search(rf"line {line}, column \d+: [^\n]*{re.escape(said)}", message), message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "[]",
        "policies",
        "policies: {}\njobs: {}\n",
        "policies: []\njobs: {}\n",
        TEXT.replace("jobs:", "job:"),
        TEXT.replace("  things:\n", "  Things:\n"),
        TEXT.replace("  things:\n", "  1:\n"),
        TEXT.replace("      old: {", "      drop table: {"),
        TEXT.replace("owner: me", "owner: 2024-13-45"),
        TEXT.replace("owner: me", "owner: 2024-01-01"),
        TEXT.replace("owner: me", "owner: \x07"),
        TEXT.replace("owner: me", "owner: !!int abc"),
        TEXT.replace("max_rows: 10", "max_rows: .nan"),
        TEXT + "---\n" + TEXT,
    ],
)
def test_whatever_is_wrong_it_is_an_error_of_the_file_and_no_crash(text):
    assert refusal(text).startswith("policy file file")


def test_two_policies_for_one_thing_are_refused():
    block = TEXT[TEXT.index("  things:") : TEXT.index("jobs:")]

    message = refusal(TEXT.replace("jobs:", f"{block.replace('things:', 'others:', 1)}jobs:"))

    assert "policies.others: things already says what to delete in public.things" in message


SOFT = "soft_delete: {deleted_at: deleted_at}"
BLOB = (
    "blob: {column: pdf, deleted_at: null, prefix: pdfs/, orphans: 7 days, item_type: pdf_deletion_failed,"
    " priority: low}"
)
TOGETHER = {
    "soft_delete": "action soft_delete and the section soft_delete belong together",
    "delete_blob": "action delete_blob and the section blob belong together",
}


def with_action(action, *sections):
    """The text with another action, without dependants and with these sections."""
    text = re.sub(r"    dependants:\n.*\n", "    dependants: []\n", TEXT)
    said = "".join(f"    {section}\n" for section in sections)
    return text.replace("    action: delete\n", f"    action: {action}\n{said}")


@pytest.mark.parametrize(
    ("action", "sections", "said"),
    [
        ("soft_delete", [], TOGETHER["soft_delete"]),
        ("delete", [SOFT], TOGETHER["soft_delete"]),
        ("delete_blob", [SOFT, BLOB], TOGETHER["soft_delete"]),
        ("delete_blob", [], TOGETHER["delete_blob"]),
        ("delete", [BLOB], TOGETHER["delete_blob"]),
        ("soft_delete", [SOFT, BLOB], TOGETHER["delete_blob"]),
    ],
)
def test_an_action_and_its_section_belong_together(action, sections, said):
    assert f"policies.things (line 3, column 3): {said}" in refusal(with_action(action, *sections))


@pytest.mark.parametrize(("action", "section"), [("soft_delete", SOFT), ("delete_blob", BLOB)])
def test_rows_that_stay_have_no_dependants(action, section):
    text = TEXT.replace("    action: delete\n", f"    action: {action}\n    {section}\n")

    assert f"dependants are for rows that go; action {action} keeps them" in refusal(text)


@pytest.mark.parametrize(("action", "sections"), [("delete", []), ("soft_delete", [SOFT]), ("delete_blob", [BLOB])])
def test_an_action_with_its_section_is_accepted(action, sections):
    assert parse(with_action(action, *sections)).policies["things"].action == action


@pytest.mark.parametrize(
    ("section", "old", "new", "place", "said"),
    [
        (SOFT, "deleted_at: deleted_at", "flag: gone", "soft_delete.deleted_at", "is missing"),
        (SOFT, "deleted_at: deleted_at", "deleted_at: null", "soft_delete.deleted_at", "must be a text"),
        (SOFT, "deleted_at: deleted_at", "deleted_at: x, by: y", "soft_delete.by", "is not a known key"),
        (BLOB, "prefix: pdfs/", "prefix: ''", "blob.prefix", "at least 1 character"),
        (BLOB, " prefix: pdfs/,", "", "blob.prefix", "is missing"),
        (BLOB, " deleted_at: null,", "", "blob.deleted_at", "is missing"),
        (BLOB, "orphans: 7 days", "orphans: soon", "blob.orphans", PERIOD),
        (BLOB, "priority: low", "priority: urgent", "blob.priority", "must be 'critical', 'high', 'medium' or 'low'"),
        (BLOB, "item_type: pdf_deletion_failed", "item_type: Pdf", "blob.item_type", NAME),
    ],
)
def test_a_mistake_in_a_section_is_named_with_its_place(section, old, new, place, said):
    action = "soft_delete" if section is SOFT else "delete_blob"
    assert section.count(old) == 1

    message = refusal(with_action(action, section.replace(old, new)))

    assert re.search(
        rf"policies\.things\.{re.escape(place)} \(line \d+, column \d+\): [^;]*{re.escape(said)}", message
    ), message


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ("policies: [thing]", r"jobs\.cleanup_things\.policies\.0 \(line 25, column \d+\): there is no policy thing"),
        (
            "policies: [things, things]",
            r"jobs\.cleanup_things\.policies\.1 \(line 25, column \d+\): things is already carried out by cleanup_things",
        ),
    ],
)
def test_a_job_carries_out_policies_that_are_there_and_no_other_job_s(jobs, message):
    assert re.search(message, refusal(TEXT.replace("budget: 60 seconds,", f"budget: 60 seconds, {jobs},")))


def test_who_carries_out_a_policy():
    named = parse(TEXT.replace("budget: 60 seconds,", "budget: 60 seconds, policies: [things],"))
    assert (named.job_of("things"), parse(TEXT).job_of("things")) == ("cleanup_things", None)
