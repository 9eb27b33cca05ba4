"""JSON that two readers could understand differently is read by nobody."""

import pytest

from scripts.utils import strict_json


@pytest.mark.parametrize(
    "text",
    [
        '{"rows": 1, "rows": 2}',
        '{"rows": 1, "rows": 1}',
        '[{"a": {"b": 1, "c": 2, "b": 3}}]',
        '{"\\u0072ows": 1, "rows": 2}',
        '{"rows": NaN}',
        '{"rows": -Infinity}',
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "1" * 10_000,
        '{"rows": 1} {"rows": 2}',
        '{"rows": 1,}',
        "",
        b"\xff\xfe{",
    ],
)
def test_what_is_ambiguous_or_bottomless_is_a_value_error(text):
    with pytest.raises(ValueError):
        strict_json.loads(text)


def test_everything_else_is_read_as_ever():
    text = '{"a": [1, 2.5, null, true, "\\u00fc"], "b": {"a": 1}, "c": [{"a": 1}, {"a": 2}]}'
    expected = {"a": [1, 2.5, None, True, "ü"], "b": {"a": 1}, "c": [{"a": 1}, {"a": 2}]}
    assert strict_json.loads(text) == strict_json.loads(text.encode()) == expected
