"""The policy file's JSON Schema and the runbook's reference of its keys: ``make schema`` writes both anew."""

import json

from scripts.lifecycle.policy.schema import json_schema, reference
from tests.project.conftest import ROOT

SCHEMA = ROOT / "scripts" / "retention" / "retention_policies.schema.json"
RUNBOOK = ROOT / "scripts" / "retention" / "README.md"
BEGIN, END = "<!-- keys: written by make schema -->\n", "<!-- end of the keys -->\n"


def schema_text():
    """Return the schema as it stands in its file."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def runbook_text():
    """Return the runbook with the reference as the models give it."""
    text = RUNBOOK.read_text()
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    return head + BEGIN + "\n" + reference() + "\n" + END + tail


def main():
    """Write both."""
    SCHEMA.write_text(schema_text())
    RUNBOOK.write_text(runbook_text())


if __name__ == "__main__":
    main()
