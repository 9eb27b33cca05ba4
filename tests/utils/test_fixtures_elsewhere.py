"""The fixtures in another project: its own tables, its own policy file, a script of this suite, and nothing but a conftest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "conftest.py": 'pytest_plugins = ["scripts.utils.test_helpers"]\n',
    "pytest.ini": "[pytest]\nlifecycle_tables = tables.sql\nlifecycle_policy_file = policies.yaml\n",
    "tables.sql": "CREATE TABLE parcels (id uuid PRIMARY KEY, sent_at timestamptz); CREATE INDEX ON parcels (sent_at);",
    "policies.yaml": """
policies:
  parcels:
    description: Parcels
    table: public.parcels
    key: id
    person: null
    action: delete
    rules: {sent: {anchor: sent_at, keep: 30 days}}
    dependants: []
    legal_basis: none
    owner: tests
    decision: none
    max_rows: 1000
    max_poison: 5
    batch: {rows: 100, lock_timeout: 500 milliseconds, statement_timeout: 60 seconds}
    overdue: {warning: 25 hours, critical: 48 hours}
jobs:
  enforce_retention_policies:
    schedule: "30 0 * * *"
    budget: 600 seconds
    lock: lock:retention:enforce_retention_policies
    policies: [parcels]
""",
    "test_parcels.py": """
import os
from pathlib import Path

HERE = Path(__file__).parent
SCRIPT = Path(os.environ["THE_SUITE"]) / "scripts" / "retention" / "enforce_retention_policies.py"


def test_old_parcels_go(database, run_a_script, redis_client, blobs):
    admin = database.superuser()
    admin.execute(
        "INSERT INTO parcels SELECT gen_random_uuid(), now() - make_interval(days => n) FROM generate_series(1, 60) n"
    )
    assert admin.execute("SELECT to_regclass('public.quiz_responses')").fetchone() == (None,)
    done = run_a_script(SCRIPT, "--policy-file", str(HERE / "policies.yaml"))
    assert (done.code, done.closing["records_deleted"]) == (0, 31), done.out
    assert admin.execute("SELECT count(*) FROM parcels").fetchone() == (29,)
    assert redis_client.keys("*") == []


def test_the_next_test_starts_anew(database):
    assert database.connect().execute("SELECT count(*) FROM parcels").fetchone() == (0,)
""",
}


@pytest.mark.soak
def test_another_project_has_the_same_fixtures(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "THE_SUITE": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
