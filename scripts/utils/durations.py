"""The spellings of a length of time: ``24 hours`` and ``24h``, ``90 days`` and ``90d``, ``2 years`` and ``2y``."""

from __future__ import annotations

import difflib
import re

_SHORTEST_WORD = 3
_SPELLED = re.compile(r"([0-9]+) ?([a-z]+)")
_UNITS = {
    "millisecond": ("milliseconds", "ms"),
    "second": ("seconds", "sec", "secs", "s"),
    "minute": ("minutes", "min", "mins", "m"),
    "hour": ("hours", "hr", "hrs", "h"),
    "day": ("days", "d"),
    "week": ("weeks", "w"),
    "month": ("months", "mo"),
    "year": ("years", "yr", "yrs", "y"),
}
UNIT_OF = {spelling: unit for unit, others in _UNITS.items() for spelling in (unit, *others)}
"""The unit, in the singular, that each spelling means."""
PERIODS = frozenset({"minute", "hour", "day", "week", "month", "year"})
"""The units of a retention period. The letter ``m`` is none of its spellings: it may mean minutes or months."""
DURATIONS = frozenset({"millisecond", "second", "minute", "hour", "day", "week"})
"""The units of a duration: those that are equally long at any time."""


def number_and_unit(text: str, units: frozenset[str]) -> tuple[int, str] | None:
    """Return number and unit (in the singular) of a length of time; None: the text is no such length."""
    match = _SPELLED.fullmatch(text)
    unit = UNIT_OF.get(match[2]) if match else None
    if not match or unit not in units or (match[2] == "m" and "month" in units):
        return None
    return int(match[1]), unit


def spelled_out(number: int, unit: str) -> str:
    """Return a length of time as messages and reports write it, such as ``1 day`` or ``24 hours``."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def advice(text: str, units: frozenset[str]) -> tuple[str, str | None]:
    """Return what to say about a text that is no length of time in these units, and what was probably meant."""
    plain = " ".join(text.lower().split()).removesuffix(" ago")
    if re.fullmatch(r"[0-9]+", plain):
        return (
            f"{plain} of what? Say the unit, such as {plain} days, if days are meant",
            None,
        )
    if match := re.fullmatch(r"-\s?(.+)", plain):
        meant = _meant(match[1], units)
        return "a length of time is not negative", meant
    if match := re.fullmatch(r"([0-9]+)[.,]([0-9]{1,3}) ?([a-z]+)", plain):
        return "write a whole number, of a smaller unit", _of_a_smaller_unit(match[1], match[2], match[3], units)
    if re.fullmatch(r"[0-9]+ ?m", plain) and "month" in units:
        return f"m may be minutes or months: write {plain.rstrip('m ')} minutes or {plain.rstrip('m ')} months", None
    if re.fullmatch(r"[0-9]+ ?[a-z]+", plain) and UNIT_OF.get(plain.lstrip("0123456789 ")) in {"month", "year"} - units:
        return "months and years are not equally long: write days", None
    return "", _meant(plain, units)


def _meant(text: str, units: frozenset[str]) -> str | None:
    if text == "forever" and "month" in units:
        return text
    iso = re.fullmatch(r"p(t?)([0-9]+)([ymwdhs])", text)
    if iso:
        unit = {"y": "year", "w": "week", "d": "day", "h": "hour", "s": "second", "m": "minute" if iso[1] else "month"}
        return spelled_out(int(iso[2]), unit[iso[3]]) if unit[iso[3]] in units else None
    match = _SPELLED.fullmatch(text)
    if not match:
        return None
    words = [name for name in UNIT_OF if UNIT_OF[name] in units and len(name) >= _SHORTEST_WORD]
    near = difflib.get_close_matches(match[2], words, 1)
    length = number_and_unit(text, units) or (near and (int(match[1]), UNIT_OF[near[0]]))
    return spelled_out(*length) if length and length[0] else None


def _of_a_smaller_unit(whole: str, fraction: str, spelling: str, units: frozenset[str]) -> str | None:
    """Return 1.5 days as 36 hours; None: no smaller unit makes the number whole."""
    smaller = {"year": (12, "month"), "week": (7, "day"), "day": (24, "hour"), "hour": (60, "minute")}
    smaller |= {"minute": (60, "second"), "second": (1000, "millisecond")}
    times, unit = smaller.get(UNIT_OF.get(spelling, ""), (0, ""))
    number, rest = divmod(int(whole + fraction) * times, 10 ** len(fraction))
    return spelled_out(number, unit) if unit in units and number and not rest else None
