"""docs/licences.md from the metadata of the installed dependencies: ``python -m tests.project.licences`` writes it."""

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "licences.md"
# Not installed on every machine that makes the page (environment markers).
ELSEWHERE = {"async-timeout": "Apache-2.0"}
HEAD = """\
# Licences of the dependencies

This project has no LICENSE file. Which licence it gets is its owner's decision.

The packages of `requirements.txt` with the licence that each names in its metadata. `make licences` writes this page, and
a test compares it with what is installed. psycopg is under the LGPL: the scripts import it and do not change it, so their
own licence is free to choose. certifi is under the MPL, which concerns changes of its own files only.

| package | version | licence |
|---|---|---|
"""


def page():
    """Return the page's text."""
    rows = []
    for line in (ROOT / "requirements.in").read_text().splitlines():
        if text := line.partition("#")[0].strip():
            needed = Requirement(text)
            version = str(needed.specifier).removeprefix("==")
            rows.append(f"| {needed.name} | {version} | {ELSEWHERE.get(needed.name) or _licence(needed.name)} |\n")
    return HEAD + "".join(sorted(rows, key=str.lower))


def _licence(name):
    """Return an SPDX expression where the package has one, else its own words."""
    about = metadata.metadata(name)
    words = about.get("License") or ""
    classifiers = [each.rpartition(" :: ")[2] for each in about.get_all("Classifier") or [] if "License ::" in each]
    return about.get("License-Expression") or (words if words and " " not in words else ", ".join(classifiers))


if __name__ == "__main__":
    PAGE.write_text(page())
