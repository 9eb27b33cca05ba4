"""What would go wrong on another machine: versions that drift, folders that are only here."""

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.project import licences
from tests.project.conftest import ROOT

REQUIREMENTS = sorted([*ROOT.glob("requirements*.txt"), *ROOT.glob("*/requirements*.txt")])
# A folder of one person's or one container's machine, at the beginning of an absolute path.
SOMEBODY_S_FOLDER = re.compile(r"(?<![\w.~/-])/(?:home|mnt|root|tmp|Users|work)/\w")


def lines_of(path):
    """The lines of a requirements file without comments and hashes."""
    text = re.sub(r" \\\n    --hash=\S+", "", path.read_text())
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def pinned(path):
    """The requirements that a file states itself."""
    return [Requirement(line) for line in lines_of(path) if not line.startswith("-r ")]


def test_the_requirements_are_found():
    names = [str(path.relative_to(ROOT)) for path in REQUIREMENTS]
    assert {"requirements.txt", "requirements-dev.txt", "backend/requirements.txt"} <= set(names)


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_requirement_is_one_version(path):
    for line in lines_of(path):
        if line.startswith("-r "):
            assert (path.parent / line.removeprefix("-r ")).is_file()
        else:
            assert re.fullmatch(r"[\w.-]+(\[[\w, -]+\])?==[\w.]+( ?; .+)?", line), line


def test_every_requirement_has_hashes_and_is_that_of_requirements_in():
    text = (ROOT / "requirements.txt").read_text()
    asked, found = (
        {
            (canonicalize_name(each.name), frozenset(each.extras), str(each.specifier), str(each.marker))
            for each in stated
        }
        for stated in (pinned(ROOT / "requirements.in"), pinned(ROOT / "requirements.txt"))
    )
    assert found == asked, "make requirements"
    for block in re.split(r"\n(?=\w)", text.partition("\n")[2]):
        assert re.fullmatch(r"[^\\\n]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n?", block), block[:80]
    assert "://" not in text, "a registry is the reader's own choice"


def test_everything_is_installed_by_its_hashes():
    for name in ("Makefile", "render.yaml"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if re.search(r"requirements?\.txt", line)]
        installs = [line for line in lines if "pip install" in line and "requirements-dev.txt" not in line]
        assert installs
        assert all("--require-hashes" in line for line in installs)


def test_the_page_of_licences_is_that_of_what_is_installed():
    assert licences.PAGE.read_text() == licences.page(), "make licences"


def test_what_the_first_group_brings_along_is_pinned_too():
    stated = pinned(ROOT / "requirements.txt")
    requirements = [each for each in stated if not each.marker or each.marker.evaluate()]
    versions = {canonicalize_name(each.name): str(each.specifier) for each in requirements}
    todo = [(canonicalize_name(each.name), frozenset(each.extras)) for each in requirements]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        assert name in versions, f"{name} is brought along and not pinned"
        assert versions[name] == f"=={metadata.version(name)}", f"{name} is installed in another version"
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    assert {name for name, _ in seen} == set(versions)


def test_no_file_names_a_folder_of_somebody_s_machine(project_files):
    assert len(project_files) > 20
    found = []
    for path in project_files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        lines = enumerate(text.splitlines(), start=1)
        here = (str(ROOT) + "/", str(ROOT.parent) + "/") if len(ROOT.parts) > 2 else (str(ROOT) + "/",)
        found += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in lines
            if SOMEBODY_S_FOLDER.search(line) or any(folder in line for folder in here)
        ]
    assert found == []


@pytest.mark.parametrize("folder", ["home", "mnt", "root", "tmp", "Users", "work"])
def test_the_search_for_folders_finds_them(folder):
    for text in ("cd /{}/x", '"/{}/x"', "a=/{}/x", "(/{}/x)"):
        assert SOMEBODY_S_FOLDER.search(text.format(folder))
    for text in ("https://example.com/{}/x", "./{}/x", "a/{}/x"):
        assert not SOMEBODY_S_FOLDER.search(text.format(folder))
