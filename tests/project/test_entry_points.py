"""Every script, wherever it is started and whatever is missing."""

import subprocess
import sys

from scripts.utils.test_helpers import script_environment
from tests.inside import run_inside
from tests.project.conftest import ROOT, SCRIPTS, each_script, load_script

TEMPLATE = ROOT / "scripts" / "utils" / "script_template.py"
OPENING = '''"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

'''


def test_there_are_scripts():
    runnable = [path for path in (ROOT / "scripts").rglob("*.py") if path.read_text().startswith("#!")]
    assert sorted(path for path in runnable if path != TEMPLATE) == SCRIPTS
    assert {path.stem for path in SCRIPTS} >= {"cleanup_quiz_responses", "legal_holds", "stop_switch", "verify_audit"}


@each_script
def test_help_needs_nothing(script, tmp_path):
    done = subprocess.run(
        [sys.executable, script, "--help"],
        cwd=tmp_path,
        env=script_environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {script.name}")
    assert "needs no environment" in done.stdout


def test_the_template_itself_is_no_job(database, redis_url, capsys, monkeypatch):
    env = {"DATABASE_URL": database.url, "REDIS_URL": redis_url}
    done = run_inside(TEMPLATE, (), env=env, capsys=capsys, monkeypatch=monkeypatch)
    assert done.returncode == 2
    assert "jobs.script_template with its schedule, budget and lock is missing" in done.stdout
    assert TEMPLATE.read_text().count(OPENING) == 1


@each_script
def test_the_opening_lines_are_the_same_and_come_before_every_other_import(script):
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env python3\n")
    before, opening, after = text.partition(OPENING)
    assert opening
    assert "\nimport " not in before
    assert "sys.path" not in after


@each_script
def test_the_job_is_named_like_its_file(script):
    job = load_script(script).JOB
    assert job.name == script.stem
    assert job.description.endswith(".")


@each_script
def test_no_module_beside_a_script_hides_a_library(script):
    """A script's own folder comes first on sys.path."""
    assert script.stem not in sys.stdlib_module_names
    assert script.stem not in {"redis", "yaml", "rich", "psycopg", "pydantic", "structlog", "queue", "utils"}
