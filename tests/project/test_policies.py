"""The policy file, the scripts, the schema and the documents speak of the same things."""

import ast
import re

import pytest

from scripts.lifecycle.policy.conditions import own_columns
from scripts.lifecycle.policy.policy_file import load_policies
from tests.project.conftest import ROOT, SCRIPTS, each_script, load_script

POLICIES = load_policies()
ORCHESTRATOR = "enforce_retention_policies"
each_policy = pytest.mark.parametrize("name", list(POLICIES.policies))
PERIOD = re.compile(r"\binterval\b|\b\d+\s*(second|minute|hour|day|week|month|year)s?\b", re.IGNORECASE)


def takes_what_it_is_given(script):
    """Whether a script carries out the policies under its name, whatever they are, as script_template.py does."""
    return "run.policies.job(run.script).policies" in script.read_text()


def headings(page):
    """The headings of a Markdown page, without those in code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for line in text.splitlines() if line.startswith("#")]


@pytest.mark.parametrize("job", list(POLICIES.jobs))
def test_every_job_has_its_script(job):
    assert [path.stem for path in SCRIPTS].count(job) == 1


@each_script
def test_every_script_that_deletes_has_its_job_with_a_lock(script):
    if load_script(script).JOB.changes_data:
        assert POLICIES.jobs[script.stem].lock
    else:
        assert script.stem not in POLICIES.jobs or POLICIES.jobs[script.stem].lock is None


def test_no_two_jobs_share_a_lock():
    locks = [job.lock for job in POLICIES.jobs.values() if job.lock]
    assert locks
    assert len(set(locks)) == len(locks)


@each_policy
def test_every_policy_is_some_script_s(name):
    if POLICIES.job_of(name) == ORCHESTRATOR:
        return  # it takes what the file gives it
    if POLICIES.policies[name].action == "archive_then_delete":
        return  # archive_before_delete carries out every one of them
    assert [
        path.stem for path in SCRIPTS if f'policy="{name}"' in path.read_text() or takes_what_it_is_given(path)
    ] != []


@each_policy
def test_every_policy_is_carried_out_by_the_job_that_says_so(name):
    """The monitor asks the file which job a policy belongs to; the script decides what it does."""
    if POLICIES.job_of(name) == ORCHESTRATOR:
        return
    (script,) = [path for path in SCRIPTS if path.stem == POLICIES.job_of(name)]
    if takes_what_it_is_given(script):
        return
    if POLICIES.policies[name].archive:
        assert script.stem == "archive_before_delete"  # it carries out every policy that archives
    else:
        assert f'policy="{name}"' in script.read_text()


@each_script
def test_every_policy_that_a_script_carries_out_is_named_under_its_job(script):
    named = set(re.findall(r'\bpolicy="(\w+)"', script.read_text())) & POLICIES.policies.keys()
    job = POLICIES.jobs.get(script.stem)
    if script.stem == ORCHESTRATOR:
        assert job.policies
        return
    if takes_what_it_is_given(script):
        assert job, f"{script.stem} has no entry under jobs:, and so no policy"
        assert job.policies
        return
    if script.stem == "archive_before_delete":
        named = {name for name, policy in POLICIES.policies.items() if policy.archive}
    assert named == set(job.policies if job else ())


@each_policy
def test_every_table_and_column_exists(name, database):
    policy = POLICIES.policies[name]
    wanted = {(policy.table, column) for column in policy.key} | {(policy.table, policy.person)} - {
        (policy.table, None)
    }
    for rule in (*policy.rules.values(), *policy.exceptions.values()):
        wanted |= {(policy.table, column) for column in own_columns(rule.when)}
    anchors = [rule.anchor for rule in policy.rules.values()]
    anchors += [exception.queue.anchor for exception in policy.exceptions.values() if exception.queue]
    wanted |= {(policy.table, anchor) for anchor in anchors if isinstance(anchor, str)}
    for lookup in policy.lookups:
        wanted |= {(policy.table, column) for column in lookup.own}
        wanted |= {(lookup.from_table, column) for column in lookup.columns}
    for dependant in policy.dependants:
        wanted |= {(dependant.table, column) for column in (*dependant.column, *dependant.key)}
    columns = database.superuser().execute(
        "SELECT table_schema || '.' || table_name, column_name FROM information_schema.columns"
    )
    assert wanted - set(columns) == set()


@each_policy
def test_every_policy_has_its_decision_page(name):
    decision = POLICIES.policies[name].decision
    assert re.fullmatch(r"docs/decisions/\d{4}-[a-z0-9-]+\.md", decision)
    page = ROOT / decision
    assert page.is_file(), f"{decision} is missing"
    assert name in page.read_text()


@each_script
def test_every_script_has_a_heading_in_its_runbook(script):
    """A job's docstring names its runbook, which is its folder's README."""
    named = re.search(r"Runbook: (\S+)", ast.get_docstring(ast.parse(script.read_text())))
    assert named, "the docstring names no runbook"
    assert named[1] == f"scripts/{script.parent.name}/README.md"
    runbook = ROOT / named[1]
    assert runbook.is_file(), f"{named[1]} is missing"
    assert [heading for heading in headings(runbook) if script.stem in heading] != []


def texts(tree):
    """The string literals of a module that are not docstrings."""
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
    ]


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path.parent.name == "cleanup"], ids=lambda path: path.stem
)
def test_no_period_stands_in_a_cleanup_script(script):
    tree = ast.parse(script.read_text())
    assert [text for text in texts(tree) if PERIOD.search(text)] == []
    names = {getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(tree)}
    assert names & {"timedelta", "relativedelta"} == set()


def test_the_search_for_periods_finds_them():
    for literal in ("x = \"interval '1 day'\"", 'x = "24 hours"', 'x = f"{n} and 90 days"'):
        assert any(PERIOD.search(text) for text in texts(ast.parse(literal)))
    assert texts(ast.parse('"""24 hours"""')) == []
