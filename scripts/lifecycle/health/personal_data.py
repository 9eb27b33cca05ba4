"""Finds tables that seem to hold personal data and that no policy covers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from scripts.lifecycle.health.findings import Context, Finding, failed, passed, warned

# These actions cover the whole row. Any other action changes single columns and leaves the rest of the row.
COVERING = frozenset({"delete", "soft_delete", "anonymize", "archive_then_delete", "retain"})

_WORDS = frozenset(
    {
        *("email", "emails", "mail", "phone", "telephone", "mobile", "fax", "ip", "address", "addresses", "street"),
        *("zip", "postcode", "postal", "birth", "birthday", "birthdate", "birthplace", "dob", "surname", "username"),
        *("firstname", "lastname", "fullname", "forename", "nickname", "ssn", "iban", "passport", "gender", "sex"),
        *("latitude", "longitude", "geolocation", "nationality", "religion", "ethnicity", "salary", "weight", "height"),
    }
)
_WHOSE = frozenset(
    {"first", "last", "full", "middle", "given", "family", "maiden", "nick", "user", "customer", "person", "contact"}
    | {"billing", "shipping", "holder", "owner", "recipient", "patient", "member"}
)
# Words that are also found inside a longer one, as in emailaddress; "ip" is not among them, for the sake of zip.
_INSIDE = re.compile(r"e-?mail|phone|birth|ipaddr|passport|surname|firstname|lastname|fullname")
_ABOUT = ("boolean", "timestamp", "date", "time", "interval")
BIRTH = re.compile(r"birth|(?<![a-z])(dob|born)(?![a-z])")
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

# A policy on a table takes the rows of its inheritance children as well.
_COLUMNS = """
SELECT n.nspname || '.' || c.relname, array_agg(a.attname::text ORDER BY a.attnum),
       array_agg(format_type(a.atttypid, -1) ORDER BY a.attnum),
       ARRAY(WITH RECURSIVE above (oid) AS (
                 SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = c.oid
                  UNION SELECT i.inhparent FROM pg_inherits i JOIN above ON above.oid = i.inhrelid)
             SELECT m.nspname || '.' || p.relname
               FROM above JOIN pg_class p USING (oid) JOIN pg_namespace m ON m.oid = p.relnamespace)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relkind IN ('r', 'p', 'm') AND NOT c.relispartition
   AND n.nspname <> 'ops' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
 GROUP BY c.oid, n.nspname ORDER BY 1
"""


def looks_personal(column: str, kind: str = "text") -> bool:
    """Tell whether a column reads like personal data, by its name and its type."""
    parts = [part.lower() for part in _PARTS.findall(column)]
    # email_sent_at and email_confirmed are facts about an e-mail, not addresses. A date of birth is personal.
    if kind.startswith(_ABOUT) and not BIRTH.search(column.lower()):
        return False
    if _WORDS.intersection(parts) or _INSIDE.search(column.lower()):
        return True
    return "name" in parts and (len(parts) == 1 or bool(_WHOSE.intersection(parts)))


def personal_data(context: Context) -> Iterator[Finding]:
    """Compare every table of the database, readable or not, with the policy file."""
    policies = context.run.policies
    covered = {policy.table for policy in policies.policies.values() if policy.action in COVERING}
    covered |= {d.table for policy in policies.policies.values() for d in policy.dependants if d.action == "delete"}
    partly = {policy.table for policy in policies.policies.values()} - covered
    rows = context.run.database.read(lambda link: link.execute(_COLUMNS).fetchall())
    if not rows:
        yield failed("tables", "no table was looked at", "does DATABASE_URL name the application's database?")
        return
    found = []
    for table, columns, kinds, above in rows:
        personal = [column for column, kind in zip(columns, kinds, strict=True) if looks_personal(column, kind)]
        if not personal or {table, *above} & covered or {table, *above} & policies.kept.keys():
            continue
        what = f"looks personal ({', '.join(personal)}) and "
        what += "its policy keeps the row for ever" if table in partly else "has no policy"
        found.append(warned(table, what, "add a policy for it, or name it under kept in the policy file and say why"))
    names = {table for table, *_ in rows}
    found += [
        warned(table, "is named under kept and is not there", "correct the name, or take it out")
        for table in sorted(policies.kept.keys() - names)
    ]
    yield from found or [
        passed("tables", f"{len(rows)} tables: what looks personal has a policy, or is kept knowingly")
    ]
