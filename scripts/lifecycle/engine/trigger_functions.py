"""What the text of a trigger's function says that it does: what it raises, and what rights it needs.

PostgreSQL runs a function only when a row goes, and PL/pgSQL leaves no dependencies in the catalogue. So the text is
read. What stands before every branch happens each time the trigger fires: such a finding stops a policy. What
stands behind a branch, in a function that is called, or in another table's trigger, may happen: it is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scripts.lifecycle.engine.catalogue import DOER, rows_of
from scripts.lifecycle.engine.obstacles import Event, Trigger, triggers_of
from scripts.utils.db_utils import Connection

# A function that is not SECURITY DEFINER runs with the rights of the role whose statement fired the trigger.
_FUNCTIONS = f"""{DOER}
SELECT f.oid::bigint AS oid, n.nspname || '.' || f.proname AS name, f.prosecdef AS definer, f.prosrc AS body,
       has_function_privilege(doer.role, f.oid, 'EXECUTE') AS may_execute, doer.role,
       coalesce((SELECT regexp_split_to_array(replace(substr(c, 13), '"', ''), '\\s*,\\s*') FROM unnest(f.proconfig) c
                  WHERE c LIKE 'search_path=%%'), current_schemas(false)::text[]) AS path
  FROM doer, pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
  JOIN pg_language l ON l.oid = f.prolang AND l.lanname IN ('plpgsql', 'sql')
 WHERE f.oid = ANY (%(oids)s) OR n.nspname NOT IN ('pg_catalog', 'information_schema')
   AND EXISTS (SELECT FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS w (schema, name)
                WHERE f.proname = w.name
                  AND (w.schema = n.nspname OR w.schema = '' AND n.nspname = ANY (%(path)s::text[])))
"""  # noqa: S608 - constants

_TARGETS = f"""{DOER}
SELECT c.oid::bigint AS oid, n.nspname || '.' || c.relname AS name, w.right AS "right",
       w.schema AS written_schema, w.name AS written_name, doer.role,
       has_schema_privilege(doer.role, n.oid, 'USAGE') AS may_use_schema,
       CASE w.right WHEN 'DELETE' THEN has_table_privilege(doer.role, c.oid, 'DELETE')
                    ELSE has_any_column_privilege(doer.role, c.oid, w.right) END AS allowed,
       (SELECT coalesce(array_agg(sn.nspname || '.' || s.relname), '{{}}')
          FROM pg_attrdef d JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
                                            AND p.refclassid = 'pg_class'::regclass
          JOIN pg_class s ON s.oid = p.refobjid JOIN pg_namespace sn ON sn.oid = s.relnamespace
         WHERE w.right = 'INSERT' AND d.adrelid = c.oid
           AND CASE s.relkind WHEN 'S' THEN NOT has_sequence_privilege(doer.role, s.oid, 'USAGE, UPDATE') END)
       AS sequences
  FROM doer, unnest(%(schemas)s::text[], %(names)s::text[], %(rights)s::text[]) AS w (schema, name, "right")
  JOIN pg_class c ON c.relname = w.name AND c.relkind IN ('r', 'p', 'v', 'f')
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE w.schema = n.nspname OR w.schema = '' AND n.nspname = ANY (%(path)s::text[])
"""  # noqa: S608 - constants

_NAME = r'((?:"[^"]+"|\w+)(?:\s*\.\s*(?:"[^"]+"|\w+))?)'
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
# In one pass: two hyphens in a literal begin no comment.
_SILENT = re.compile(r"--[^\n]*|/\*.*?\*/|(?P<literal>'(?:[^']|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)", re.DOTALL)
# What follows one of these words may not be reached; what stands in a block that handles errors may raise none.
_BRANCH = re.compile(
    r"\b(IF|ELSE|ELSIF|CASE|WHEN|LOOP|WHILE|FOR|FOREACH|RETURN|EXIT|CONTINUE|BEGIN|END)\b", re.IGNORECASE
)
_HANDLER = re.compile(r"\bEXCEPTION\s+WHEN\b", re.IGNORECASE)
_RAISE = re.compile(r"\bRAISE\s+(?!(?:DEBUG|LOG|INFO|NOTICE|WARNING)\b)", re.IGNORECASE)
# Such a name hides a table of the same name, so the right to the table may not be needed.
_HIDING = re.compile(r"\b(WITH|TEMP|TEMPORARY)\b", re.IGNORECASE)
_WRITES: dict[str, re.Pattern[str]] = {
    "INSERT": re.compile(rf"\bINSERT\s+INTO\s+{_NAME}", re.IGNORECASE),
    "UPDATE": re.compile(rf"\bUPDATE\s+(?:ONLY\s+)?{_NAME}(?:\s+(?:AS\s+)?(?!SET\b)\w+)?\s+SET\b", re.IGNORECASE),
    "DELETE": re.compile(rf"\bDELETE\s+FROM\s+(?:ONLY\s+)?{_NAME}", re.IGNORECASE),
    "SELECT": re.compile(rf"(?<!DELETE )\b(?:FROM|JOIN)\s+(?:ONLY\s+)?{_NAME}(?!\s*\()", re.IGNORECASE),
}
_CALL = re.compile(rf"""(?<!INTO )(?<![\w".]){_NAME}\s*\(""", re.IGNORECASE)

_CURE = "correct the function, or give the trigger a WHEN condition that leaves out the rows of this policy"


@dataclass(frozen=True)
class Finding:
    """What a trigger's function does that a run may not get past."""

    text: str
    certain: bool
    """Whether it happens each time that the statement is carried out on a row; False: it may."""


def read(
    connection: Connection, oid: int, event: Event, columns: list[str] | None = None, *, own: bool = True
) -> Iterator[Finding]:
    """Say which errors the functions of a table's triggers raise, and which rights they need that the role lacks.

    Args:
        connection: Where the table is.
        oid: The table.
        event: What happens to its rows.
        columns: The columns that an UPDATE changes; None: every trigger of the event counts.
        own: Whether rows of the table go in every batch; False: it is a dependant's, of which there may be none.
    """
    for call, function in _walked(connection, oid, event, columns, own=own):
        first = _before_branches(function["body"], event) if call.always else ""
        if _RAISE.search(first):
            what = f"{call.trigger} runs {function['name']}, which raises an error each time"
            yield Finding(f"{what}: {_CURE}", certain=True)
        if not function["definer"]:
            yield from _lacking(call, function, first)


def needs(
    connection: Connection, oid: int, event: Event, columns: list[str] | None = None
) -> Iterator[tuple[int, str]]:
    """Return table (oid) and verb of the rights that the functions of a table's triggers seem to need.

    What a function builds as text is not seen. The arguments are those of :func:`read`.
    """
    for _, function in _walked(connection, oid, event, columns):
        yield from ((target["oid"], target["right"]) for target in function["targets"])


def _walked(
    connection: Connection, oid: int, event: Event, columns: list[str] | None, *, own: bool = True
) -> Iterator[tuple[_Call, dict[str, Any]]]:
    """Return each function that a change sets off, once, with the tables and functions that its text names.

    What a SECURITY DEFINER function names is left out: that function runs with its owner's rights.
    """
    todo = [
        _Call(each, each.function, always=each.own and not each.conditional and (own or not each.each_row))
        for each in triggers_of(connection, oid, event, columns)
    ]
    todo.sort(key=lambda call: not call.always)  # a function is read once
    known: set[int] = set()
    while todo:
        call = todo.pop(0)
        if call.function in known:
            continue
        known.add(call.function)
        called: dict[str, Any] = {"oids": [call.function], "schemas": [], "names": [], "path": []}
        for row in rows_of(connection, _FUNCTIONS, called):
            body = "" if row["definer"] else " ".join(_COMMENT.sub(" ", row["body"]).split())
            row["targets"] = _targets(connection, _named(body), row["path"])
            row["callees"] = _called(connection, body, row["path"])
            yield call, row
            for target in row["targets"]:
                if target["right"] != "SELECT":
                    fired = triggers_of(connection, target["oid"], target["right"])
                    todo += [_Call(call.trigger, each.function) for each in fired]
            todo += [_Call(call.trigger, callee["oid"]) for callee in row["callees"]]


@dataclass(frozen=True)
class _Call:
    """A function that a trigger runs, by way of others perhaps."""

    trigger: Trigger
    function: int
    always: bool = False


def _lacking(call: _Call, function: dict[str, Any], first: str) -> Iterator[Finding]:
    """Return the rights that a function needs and the role lacks; ``first`` is carried out each time."""
    runs = f"{call.trigger} runs {function['name']}"
    sure = set() if _HIDING.search(function["body"]) else _named(first)
    for target in function["targets"]:
        certain = (target["written_schema"], target["written_name"], target["right"]) in sure
        for problem, needed in _missing(target):
            yield Finding(f"{runs}, {problem}", certain and needed)
    for callee in function["callees"]:
        if not callee["may_execute"]:
            right = f"EXECUTE on {callee['name']}"
            yield Finding(f"{runs}, {_cure(right, callee['role'])}", certain=False)


def _before_branches(body: str, event: Event) -> str:
    """Return the statements that every call for this event carries out, without comments and literals."""
    asked = f"'{event}'"
    body = _SILENT.sub(lambda match: asked if match[0] == asked else "''" if match["literal"] else " ", body)
    this_event = rf"\bIF\s+\(?\s*TG_OP\s*=\s*{asked}\s*\)?\s+THEN\b"
    body = re.sub(this_event, " ", " ".join(body.split()), flags=re.IGNORECASE)
    begin = re.search(r"\bBEGIN\b", body, re.IGNORECASE)
    if begin is None or _HANDLER.search(body):
        return ""
    return _BRANCH.split(body[begin.end() :], maxsplit=1)[0]


def _named(text: str) -> set[tuple[str, str, str]]:
    """Return the tables that a text names: schema, name, and the right that what it does to them needs."""
    return {(*_split(name), right) for right, verb in _WRITES.items() for name in verb.findall(text)}


def _targets(connection: Connection, named: set[tuple[str, str, str]], path: list[str]) -> list[dict[str, Any]]:
    """Return the tables of these names that there are, and whether the jobs' role has the right."""
    if not named:
        return []
    schemas, names, rights = map(list, zip(*sorted(named), strict=True))
    return rows_of(connection, _TARGETS, {"schemas": schemas, "names": names, "rights": rights, "path": path})


def _called(connection: Connection, body: str, path: list[str]) -> list[dict[str, Any]]:
    found = sorted({_split(name) for name in _CALL.findall(body)})
    schemas, names = [schema for schema, _ in found], [name for _, name in found]
    return rows_of(connection, _FUNCTIONS, {"oids": [], "schemas": schemas, "names": names, "path": path})


def _split(name: str) -> tuple[str, str]:
    """Return schema (empty: none is written) and name, as the catalogue has them."""
    parts = [part[1:-1] if part.startswith('"') else part.lower() for part in re.split(r"\s*\.\s*", name)]
    return (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])


def _missing(target: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Return what is missing and its cure, each with whether it is needed in any case."""
    role = target["role"]
    if not target["may_use_schema"]:
        yield _cure(f"USAGE on the schema of {target['name']}", role), True
    if not target["allowed"]:
        yield _cure(f"{target['right']} on {target['name']}", role), True
    for sequence in target["sequences"]:  # unneeded where the statement gives the column a value
        yield _cure(f"USAGE on sequence {sequence}", role), False


def _cure(right: str, role: str) -> str:
    return (
        f"which needs {right}, and {role} does not have it: GRANT it, or make the function SECURITY DEFINER with a"
        " search_path of its own"
    )
