"""``--suggest``: a policy file for the tables that there are, made from the catalogue; a person decides the periods.

What is suggested is what can be told without knowing the application: keys, dates, foreign keys, people by the names of
columns. How long something is kept cannot be told, so each ``keep`` is ``???``, which does not load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import yaml

from scripts.lifecycle.engine.selection import ForeignKey
from scripts.lifecycle.health import schema_facts
from scripts.lifecycle.health.ownership import Reference, decided, owned, people_of, references
from scripts.lifecycle.health.schema_facts import Table
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.jobs.terminal import emit
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.lifecycle.policy.policy_order import foreign_keys, in_order
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.utils.db_utils import Connection

_JOB = "enforce_retention_policies"
_NO_PERIOD = "keep: ???"
_ENDLESS = 1_000_000
"""A width at which YAML breaks no line."""

_HEAD = """\
# Suggested from the catalogue and the statistics of the database. Read every line before you use it.
# `keep: ???` does not load: write how long a row is kept after its anchor, such as `90 days`, or `forever`.
# Then: enforce_retention_policies.py --check, migrate.py --grants, a dry run.
"""
_DEFAULTS = """
defaults:
  key: id
  dependants: []
  legal_basis: not decided yet
  owner: not named yet
  max_rows: 100000
  max_poison: 20
  batch: {rows: 1000, lock_timeout: 500 milliseconds, statement_timeout: 60 seconds}
  overdue: {warning: 25 hours, critical: 48 hours}
"""


def suggest(run: Run, *, beside: PolicySet | None) -> None:
    """Write a policy file to standard output: YAML, with what a person must decide in comments.

    Args:
        run: The run; it changes nothing.
        beside: Only what this policy file does not cover; None: everything.
    """
    emit(run.database.read(lambda connection: text(connection, beside)))


def text(connection: Connection, beside: PolicySet | None) -> str:
    """Return the policy file, or the part of one, that :func:`suggest` writes.

    Args:
        connection: In a transaction that only reads.
        beside: See :func:`suggest`.
    """
    found = schema_facts.tables(connection)
    for table in found.values():
        schema_facts.look_at_rows(connection, table)
    keys = references(connection)
    people = people_of(beside) if beside else set()
    people |= {table.name for table in found.values() if table.person and _nameable(table)}
    hers = owned(people, keys, set(beside.kept) if beside else set())
    known = decided(beside) if beside else set()
    new = [table for table in found.values() if table.name not in known]
    taken = {*beside.policies, *beside.erasure} if beside else set()
    writer = _Writer(new, people, hers, taken, foreign_keys(connection))
    return writer.whole() if beside is None else writer.part()


def _nameable(table: Table) -> bool:
    return bool(table.key) and table.not_a_key is None


@dataclass(frozen=True)
class _Step:
    """A step of an erasure, as far as its place among the others depends on it."""

    table: str
    action: str = "delete"
    removes_rows: bool = True

    @property
    def name(self) -> str:
        """The table's name: one step for each."""
        return self.table


class _Writer:
    """Writes what is suggested for some tables.

    Args:
        tables: The tables.
        people: Tables that know the person of each row.
        hers: The references that make a table's rows a person's, by table.
        taken: Names that entries of the file beside have.
        pairs: Child and parent table of every foreign key.
    """

    def __init__(
        self,
        tables: list[Table],
        people: set[str],
        hers: dict[str, list[Reference]],
        taken: set[str],
        pairs: set[tuple[str, str]],
    ) -> None:
        self._people = people
        self._hers = hers
        self._referred_to = {table.name for table in tables if any(key.table != table.name for key in table.incoming)}
        self._keys = {table.name: table.key for table in tables}
        self._names = _names(tables, taken)
        concerned = [t for t in tables if t.anchors or t.personal or t.name in people or t.name in hers]
        self._with_policy = [table for table in concerned if _nameable(table) and table.anchors]
        personal = [table for table in concerned if table.personal or table.name in people or table.name in hers]
        self._kept = [table for table in personal if table not in self._with_policy]
        erased = {t.name: t for t in personal if _nameable(t) and (t.name in people or t.name in hers)}
        self._erased = [erased[name] for name in in_order(map(_Step, erased), pairs).names]
        self._rest = [table.name for table in tables if table not in concerned]
        self._nameless = [t.name for t in concerned if t not in self._with_policy and t not in self._kept]
        self._unread = [table.name for table in tables if not table.readable]

    def whole(self) -> str:
        """Return a policy file."""
        own, jobs = _of_the_suite([self._names[table.name] for table in self._with_policy])
        sections = [_HEAD + "".join(self._remarks()) + _DEFAULTS]
        sections.append("\npolicies:\n" + "".join(self._policies()) + "  # The suite's own tables.\n" + own)
        sections += self._kept_and_erasure()
        return "".join([*sections, "\njobs:\n", jobs])

    def part(self) -> str:
        """Return what a policy file lacks: entries to be copied into its sections."""
        if not (self._with_policy or self._kept or self._erased):
            return "# Nothing to suggest: each table is covered, or has neither a date nor anything of a person.\n"
        head = "# To be copied into the sections of the policy file; name the policies under a job.\n"
        policies = "".join(self._policies())
        return "".join(
            [head, *self._remarks(), f"\npolicies:\n{policies}" if policies else "", *self._kept_and_erasure()]
        )

    def _remarks(self) -> Iterator[str]:
        if self._unread:
            yield f"# Rows of these tables could not be counted and dated, for lack of rights: {_said(self._unread)}.\n"
        if self._nameless:
            yield f"# Without a primary key no policy can name a row, so there is none for: {_said(self._nameless)}.\n"
        if self._rest:
            yield f"# Nothing of a person and no date was found in: {_said(self._rest)}.\n"

    def _policies(self) -> Iterator[str]:
        for table in self._with_policy:
            yield from (f"  {line}\n" if line else "\n" for line in self._policy(table))

    def _policy(self, table: Table) -> Iterator[str]:
        anchor, *others = table.anchors
        since = f", the oldest of {table.oldest}" if table.oldest else ""
        yield f"{_scalar(self._names[table.name])}:"
        yield f"  description: {_scalar(f'Rows of {table.name}')}"
        yield f"  table: {_table(table.name)}  # about {table.rows:,} rows{since}"
        yield from self._key(table)
        yield from self._person(table)
        for column, count in table.blobs.items():
            yield f"  # {_said([column])} names blobs ({count:,} of the rows looked at). A deleted row leaves its"
            yield '  # blob behind. Put a policy with action delete_blob before this one (runbook, "Every key": blob).'
        if table.name in self._people and table.name in self._referred_to:
            yield "  # `forever`: until the person asks for erasure."
        yield "  action: delete"
        yield "  rules:"
        yield "    expired:"
        if others:
            yield f"      # or {', '.join(_with_index(table, name) for name in others)}"
        yield f"      anchor: {_scalar(anchor)}  # {'indexed' if anchor in table.indexed else 'no index yet: --check'}"
        yield f"      {_NO_PERIOD}"
        if dependants := [self._dependant(key) for key in table.incoming]:
            yield "  dependants:"
            yield from (f"    {line}" for line in dependants)
        yield f"  decision: {_scalar('not written yet')}"

    def _person(self, table: Table) -> Iterator[str]:
        if table.name in self._people and table.person:
            also = [name for name in table.personal if name != table.person]
            more = f"  # also personal: {_said(also)}" if also else ""
            yield f"  person: {_scalar(table.person)}{more}"
        else:
            more = f"  # personal: {_said(table.personal)}; which column says whose?" if table.personal else ""
            yield f"  person: null{more}"

    def _key(self, table: Table) -> Iterator[str]:
        if table.key != ("id",):
            yield f"  key: {_columns(table.key)}"

    def _dependant(self, key: ForeignKey) -> str:
        own_key = self._keys.get(key.table, ())
        action = {"c": "delete", "n": "set_null"}.get(key.on_delete, "refuse")
        # Rows that others refer to go by a policy of their own. What has no key cannot be named in the audit.
        if not own_key or (action == "delete" and key.table in self._referred_to):
            action = "refuse"
        named = f", key: {_columns(own_key)}" if own_key not in ((), ("id",)) and action != "refuse" else ""
        said = "" if action != "refuse" or key.on_delete in "ar" else "  # its rows go first"
        return f"- {{table: {_table(key.table)}, column: {_columns(key.columns)}, action: {action}{named}}}{said}"

    def _kept_and_erasure(self) -> Iterator[str]:
        if self._kept:
            yield "\n# No date says how old these rows are.\nkept:\n"
            for table in self._kept:
                why = "kept until the person asks for erasure" if table in self._erased else _no_key(table)
                yield f"  {_table(table.name)}: {_scalar(why)}\n"
        if self._erased:
            yield "\n# Children before parents.\nerasure:\n"
            for table in self._erased:
                yield "".join(f"  {line}\n" for line in self._step(table))

    def _step(self, table: Table) -> Iterator[str]:
        yield f"{_scalar(self._names[table.name])}:"
        yield f"  table: {_table(table.name)}"
        yield from self._key(table)
        if table.name in self._people and table.person:
            yield f"  person: {_scalar(table.person)}"
        else:
            yield "  person: null"
            columns = list(dict.fromkeys(each.columns for each in self._hers.get(table.name, [])))
            if len(columns) > 1:
                several = list(dict.fromkeys(column for each in columns for column in each))
                yield "  # Two foreign keys lead to a person: whose rows are these? A step may be about one of them."
                yield f"  by: {_columns(tuple(several))}"
        yield "  action: delete"
        yield f"  ground: {_scalar('personal data, GDPR Art. 17(1)')}"


def _of_the_suite(policies: list[str]) -> tuple[str, str]:
    """Return the policies of the suite's own tables, and the jobs; these policies go to the one without a script."""
    shipped = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    own = {name: each for name, each in shipped["policies"].items() if each["table"].startswith("ops.")}
    jobs = {}
    for name, job in shipped["jobs"].items():
        named = [policy for policy in job.get("policies", []) if policy in own]
        if name == _JOB:
            jobs[name] = job | {"policies": policies + named}
        elif not job.get("policies") or named:
            jobs[name] = job
    return _indented(own), _indented(jobs)


def _indented(entries: dict[str, object]) -> str:
    plain = yaml.dump(entries, Dumper=_Plain, sort_keys=False, width=110, default_flow_style=None)
    return "".join(f"  {line}\n" for line in plain.splitlines())


class _Plain(yaml.SafeDumper):
    """Writes equal values out where they stand, instead of naming the first one."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _names(tables: Iterable[Table], taken: set[str]) -> dict[str, str]:
    """Return a name for each table's entries: the table's own, as far as it is one."""
    names: dict[str, str] = {}
    used = set(taken)
    for table in tables:
        schema, _, short = table.name.partition(".")
        words = [_word(short), f"{_word(schema)}_{_word(short)}"]
        words += [f"{words[1]}_{number}" for number in range(2, len(used) + 3)]
        names[table.name] = next(word for word in words if word not in used)
        used.add(names[table.name])
    return names


def _word(text: str) -> str:
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()
    word = re.sub(r"[^a-z0-9]+", "_", split).strip("_")
    return word if word[:1].isalpha() else f"t_{word}".rstrip("_")


def _scalar(value: str) -> str:
    """Write a text as YAML does, in quotation marks where it would be read as something else, and on one line."""
    if not value.isprintable():
        return json.dumps(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, width=_ENDLESS, allow_unicode=True).removesuffix("...\n").strip()
    )


def _columns(columns: tuple[str, ...]) -> str:
    return _in_flow(columns[0]) if len(columns) == 1 else f"[{', '.join(map(_in_flow, columns))}]"


def _in_flow(value: str) -> str:
    """Write a text as an entry of a list or mapping in brackets, where commas and brackets end it."""
    if not value.isprintable():
        return json.dumps(value)
    return yaml.safe_dump([value], default_flow_style=True, width=_ENDLESS, allow_unicode=True).strip()[1:-1]


def _table(name: str) -> str:
    schema, _, short = name.partition(".")
    if re.search(r"[.\"]", short) or short != short.strip() or schema != schema.strip() or '"' in schema:
        quoted = ['"' + part.replace('"', '""') + '"' for part in (schema, short)]
        return _in_flow(".".join(quoted))
    return _in_flow(name)


def _with_index(table: Table, column: str) -> str:
    return f"{column} (indexed)" if column in table.indexed else column


def _no_key(table: Table) -> str:
    if not table.key:
        return "not decided: without a primary key no policy can name its rows"
    return f"not decided: {table.not_a_key or 'no date says how old a row is'}"


def _said(names: list[str]) -> str:
    """Write names into a comment, where a line break would end it."""
    return ", ".join(re.sub(r"[\x00-\x1f\x7f]", "?", name) for name in names)
