"""A mistake in the policy file is told with what is allowed there, the nearest right word and the corrected line."""

from __future__ import annotations

import re

import pytest

from scripts.lifecycle.policy.policy_file import load_policies, parse_policies
from scripts.utils.errors import Misconfigured
from tests.lifecycle.support import POLICY_TEXT as TEXT


def refusal(old, new):
    assert TEXT.count(old) == 1, "or the case tests something else"
    with pytest.raises(Misconfigured) as refused:
        parse_policies(TEXT.replace(old, new), "file")
    return str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "advice"),
    [
        ("keep: 30 days", "keep: 90", "90 of what? Say the unit, such as 90 days"),
        ("keep: 30 days", "keep: '30'", "30 of what?"),
        ("keep: 30 days", "keep: -1 day", "a length of time is not negative. Write `keep: 1 day`"),
        (
            "keep: 30 days",
            "keep: 1.5 days",
            "a whole number, of a smaller unit. Write `keep: 36 hours`",
        ),
        ("keep: 30 days", "keep: 2.5 years", "Write `keep: 30 months`"),
        ("keep: 30 days", "keep: 30m", "m may be minutes or months: write 30 minutes or 30 months"),
        ("keep: 30 days", "keep: 30 dys", "Write `keep: 30 days`"),
        ("keep: 30 days", "keep: 30 Days", "Write `keep: 30 days`"),
        ("keep: 30 days", "keep: P30D", "Write `keep: 30 days`"),
        ("keep: 30 days", "keep: [30 days]", "Write `keep: 30 days`"),
        ("keep: 30 days", "keep: Forever", "Write `keep: forever`"),
        ("keep: 30 days", "keep: null", "write forever where the rows are kept for good"),
        ("after: 1 day", "after: 1 dya", "Write `after: 1 day`"),
        ("lock_timeout: 1 second", "lock_timeout: 500", "500 of what?"),
        ("lock_timeout: 1 second", "lock_timeout: 1.5 seconds", "Write `lock_timeout: 1500 millisec"),
        ("budget: 60 seconds", "budget: 1 month", "months and years are not equally long: write days"),
        ("anchor: made_at, keep", "anchr: made_at, keep", "did you mean `anchor`?"),
        (
            "anchor: made_at, keep",
            "anchr: made_at, keep",
            "Allowed here: when, anchor, floor, ceiling",
        ),
        ("anchor: made_at, keep", "anchr: made_at, keep", "Write `anchor: made_at`"),
        (
            "    legal_basis: none\n",
            "",
            "is missing: Why the rows are kept so long and no longer. Example: `legal_basis: ",
        ),
        (
            ", keep: 30 days",
            "",
            "is missing: How long a row is kept after its anchor. It is due once the anchor lies more than that in the past.",
        ),
        ("action: delete\n", "action: delte\n", "Write `action: delete`"),
        ("action: delete\n", "action: [delete]\n", "one value and no list. Write `action: delete`"),
        ("priority: low", "priority: hgih", "Write `priority: high`"),
        ("table: public.things", "table: things", "Write `table: public.things`"),
        ("max_rows: 10", "max_rows: '1_000'", "Write `max_rows: 1000`"),
        ("owner: me", "owner: [me]", "must be a text; in quotation marks where YAML would read"),
        ("  things:\n", "  Things:\n", "Write `things:`"),
        ("item_type: odd_thing", "item_type: Odd Thing", "Write `item_type: odd_thing`"),
        ("jobs:", "job:", "is not a known key: did you mean `jobs`?"),
        ("    max_rows: 10\n", "    keep: 1 day\n", "or `policies.<name>.rules.<name>`: is the line indented rightly?"),
        (
            "  cleanup_things: {",
            "  owner: me\n  cleanup_things: {",
            "owner is a key of `defaults` or `policies.<name>`",
        ),
    ],
)
def test_advice(old, new, advice):
    message = refusal(old, new)

    line = r"\d+" if "is missing" in advice else str(TEXT[: TEXT.index(old)].count("\n") + 1)
    assert re.search(rf"\(line {line}, column \d+\): .*{re.escape(advice)}", message), message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    key: id\n", "\tkey: id\n", "line 6, column 1: found a tab character"),
        ("    key: id\n", "\tkey: id\n", "YAML allows no tab there. Write `    key: id`"),
        ("    rules:\n      old", "    rules:\n\t  old", "YAML allows no tab there. Write `      old: {when"),
        ("    key: id\n", "     key: id\n", "It is indented by 5, the lines above by 4 or 2 or 0"),
        ("    key: id\n", "   key: id\n", "It is indented by 3, the lines above by 4 or 2 or 0"),
        ("    owner: me\n", "  owner: me\n", "line 19, column 13: mapping values are not allowed"),
        ("    key: id\n", "    key: [id\n", "that begins on line 6, column 10). A bracket is opened and not closed"),
        ("    key: id\n", "    key: 'id\n", "A quotation mark is opened and not closed"),
        ("    key: id\n", "    key id\n", "A colon and a blank must stand between key and value"),
        ("owner: me", "owner: @me", "must stand in quotation marks"),
        ("owner: me", "owner: \x07", "line 18: holds characters that YAML does not allow (U+0007)"),
    ],
)
def test_what_is_no_yaml_is_named_with_its_cause(old, new, said):
    assert said in refusal(old, new)


def test_what_the_yaml_reads_otherwise_and_what_is_wrong_besides_are_named_at_once_in_the_order_of_the_file():
    text = TEXT.replace("    key: id\n", "    key: id\n    key: uid\n").replace("{kind: red}", "{kind: no}")
    text = text.replace("keep: 30 days", "keep: 30").replace("60 seconds,", "60 seconds, policies: [thing],")
    with pytest.raises(Misconfigured) as refused:
        parse_policies(text, "file")

    lines = str(refused.value).removeprefix("policy file file: ").split("; ")

    assert [line.partition("): ")[0].partition(", column")[0].strip() for line in lines] == [
        "line 7",
        "line 11",
        "policies.things.rules.old.keep (line 11",
        "jobs.cleanup_things.policies.0 (line 26",
    ]


def test_the_line_of_bytes_that_are_no_utf_8_is_named(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(TEXT.replace("Things", "Thüngs").encode("latin-1"))

    with pytest.raises(Misconfigured, match=r"latin\.yaml, line 4: cannot be read .*save the file as UTF-8"):
        load_policies(path)


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("24h", "24 hours"),
        ("90d", "90 days"),
        ("2 years", "2 years"),
        ("1y", "1 year"),
        ("6mo", "6 months"),
        ("2w", "2 weeks"),
    ],
)
def test_usual_spellings_of_a_period_mean_the_same(spelled, meant):
    (one, other) = (
        parse_policies(TEXT.replace("30 days", text), "file").policies["things"].rules["old"].keep
        for text in (spelled, meant)
    )

    assert one == other
    assert one.text == meant


def test_usual_spellings_of_a_duration_mean_the_same():
    written = TEXT.replace("1 second,", "1000ms,").replace("1 minute}", "1m}").replace("1 hour,", "60 min,")

    assert parse_policies(written, "file").policies == parse_policies(TEXT, "file").policies
