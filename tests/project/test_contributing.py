"""CONTRIBUTING.md, carried out as it stands in a copy of the checkout: its files, its commands, its test."""

import os
import re
import shutil
import subprocess

import pytest

from tests.project import commands as documented
from tests.project.checkout import Shell
from tests.project.conftest import ROOT

PAGE = ROOT / "CONTRIBUTING.md"
# What stands in the line before a block, and what it asks for.
NEW_FILE = re.compile(r"New file `(\S+)`:")
UNDER = re.compile(r"In `(\S+)`, under `(\S+)`")
AFTER = re.compile(r"In `(\S+)`, after the line of `(\S+)`")
APPEND = re.compile(r"At the end of `(\S+)`")


def steps():
    """The page's blocks in their order, each with the line that says what to do with it."""
    lines = PAGE.read_text().splitlines()
    found = []
    for number, language, text in documented.blocks(PAGE):
        before = next(line for line in reversed(lines[: number - 1]) if line.strip())
        found.append((number, before, language, text))
    return found


def write(folder, before, text):
    """Do with a block what its line says; False: the line says nothing of a file."""
    if match := NEW_FILE.fullmatch(before):
        path = folder / match[1]
        assert not path.exists(), f"{match[1]} is there already"
        path.write_text(text)
    elif match := APPEND.fullmatch(before):
        path = folder / match[1]
        path.write_text(path.read_text().rstrip("\n") + "\n" + text)
    elif match := UNDER.fullmatch(before) or AFTER.fullmatch(before):
        path = folder / match[1]
        lines = path.read_text().splitlines(keepends=True)
        wanted = f"{match[2]}\n" if UNDER.fullmatch(before) else f"| `{match[2]}` |"
        places = [place for place, line in enumerate(lines) if line.startswith(wanted)]
        assert places, f"{match[1]} has no line of {match[2]}"
        lines.insert(places[0] + 1, text)
        path.write_text("".join(lines))
    else:
        return False
    return True


@pytest.mark.timeout(600)
@pytest.mark.soak
def test_a_new_job_in_ten_minutes(checkout):
    carried_out = []
    shell = Shell(checkout)
    for number, before, language, text in steps():
        if language == "bash":
            for _, command in documented.split(text):
                shell.run(command)
                carried_out.append(command)
        else:
            assert write(checkout, before, text), f"CONTRIBUTING.md:{number}: nobody knows what to do with this block"
    assert any(command.startswith("cp scripts/utils/script_template.py") for command in carried_out)
    assert sum("pytest" in command for command in carried_out) == 2


@pytest.mark.usefixtures("page_written")
def test_the_job_of_the_page_works(checkout):
    """The same in the time of every change: the files, and the job's own test; `make soak` types all of it."""
    done = subprocess.run(
        [checkout / ".venv/bin/python", "-m", "pytest", "-q", "tests/cleanup/test_cleanup_newsletter_signups.py"],
        cwd=checkout,
        env={"PATH": os.environ["PATH"], "HOME": str(checkout)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.fixture
def page_written(checkout):
    """The page's files, written; the copied template among them."""
    for number, before, language, text in steps():
        if language != "bash":
            assert write(checkout, before, text), f"CONTRIBUTING.md:{number}: nobody knows what to do with this block"
    (copied,) = [
        command.text for command in documented.commands(PAGE) if command.whole and command.text.startswith("cp ")
    ]
    _, source, target = copied.split()
    shutil.copy(checkout / source, checkout / target)
    assert (checkout / target).read_text().startswith("#!")
