"""The map names every module, and every module of the domain lies in a room."""

import ast
import re

import pytest

from tests.project import structure
from tests.project.conftest import ROOT

DOMAIN = ROOT / "scripts" / "lifecycle"
ROOMS = {
    "policy",
    "audit",
    "jobs",
    "engine",
    "archives",
    "blobs",
    "purge",
    "erasure",
    "monitoring",
    "queue",
    "compliance",
    "health",
}


def test_the_map_lists_every_module_as_it_describes_itself():
    text = structure.MAP.read_text()
    written = text.partition(structure.BEGIN)[2].partition(structure.END)[0]
    assert written.strip() == structure.modules().strip(), "run: make map"


def test_every_module_that_answers_a_question_is_there():
    questions = structure.MAP.read_text().partition("## Where is it?")[2].partition("## Every module")[0]
    named = re.findall(r"`([\w/.-]+\.py)`", questions)
    assert len(named) > 40
    assert [name for name in named if not (DOMAIN / name).exists() and not (ROOT / name).exists()] == []


def test_every_module_of_the_domain_lies_in_a_room():
    assert [path.name for path in DOMAIN.glob("*.py")] == ["__init__.py"]
    assert {path.parent.name for path in DOMAIN.glob("*/*.py")} == ROOMS
    assert list(DOMAIN.glob("*/*/*.py")) == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_says_what_it_is_for_what_it_may_import_and_where_to_begin(room):
    header = ast.get_docstring(ast.parse((DOMAIN / room / "__init__.py").read_text()))
    assert header.count(". ") + header.count(".\n") >= 5
    assert "import" in header
    assert any(path.name in header for path in (DOMAIN / room).glob("*.py")), "it names no module to begin with"
