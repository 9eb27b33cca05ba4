"""A run's figures, and that losing them is not losing the run."""

import json
import time

import pytest

from scripts.lifecycle.jobs import figures as run_figures
from scripts.lifecycle.jobs.entry_point import Job, main
from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.policy.policy_file import load_policies
from scripts.utils import metrics_utils
from scripts.utils.errors import ExitCode
from scripts.utils.logging_utils import configure_logging
from scripts.utils.metrics_utils import METRICS

COUNTED = PolicyResult(
    "quiz", "completed", "done", ExitCode.DONE, records_deleted=7, records_remaining=2, oldest_overdue_seconds=61.5
)
NOT_COUNTED = PolicyResult("pdfs", "failed", "database_error", ExitCode.FAILED)


class Broken:
    """A sink that is out of reach."""

    def send(self, script, figures):
        raise ConnectionError("to https://push:pw@metrics.example.com")


class Kept:
    """A sink that keeps what it is sent."""

    def __init__(self):
        self.figures = []

    def send(self, script, figures):
        self.figures += figures


def test_a_policy_that_a_run_did_not_come_to_is_not_counted():
    spec = load_policies().jobs["cleanup_pdfs"]
    facts = {"duration_seconds": 1, "exit_code": 1, "budget_seconds": 60}
    figures = run_figures.figures_of("cleanup_pdfs", [], spec=spec, **facts)
    missing = {figure.name: figure.value for figure in figures if figure.labels.get("policy") == "meal_plan_pdfs"}
    assert missing == {"lifecycle_job_records_remaining": None, "lifecycle_job_oldest_overdue_seconds": None}


@pytest.fixture
def kept(monkeypatch):
    """A sink that keeps figures, behind one that is broken."""
    sink = Kept()
    monkeypatch.setattr(metrics_utils, "sinks_of", lambda _: [Broken(), sink])
    return sink


@pytest.fixture
def run_job(job_environment, capsys):
    """A function that runs a job which comes to COUNTED, and returns its code and lines."""

    def run(*arguments):
        job = Job("cleanup_quiz_responses", lambda run: run.results.append(COUNTED), "A job.")
        code = main(job, ["--log-format", "json", *arguments])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def values(figures):
    return {(figure.name, figure.labels.get("policy")): figure.value for figure in figures}


def figures_of(results, *, exit_code, duration_seconds=1.0, **more):
    return run_figures.figures_of(
        "a_job", results, duration_seconds=duration_seconds, exit_code=exit_code, budget_seconds=10.0, **more
    )


def test_figures_of_a_run():
    before = time.time()
    figures = figures_of([COUNTED], duration_seconds=1.23456, exit_code=4)
    found = values(figures)
    for name in ("last_completion", "last_success"):
        assert before <= found.pop((f"lifecycle_job_{name}_timestamp_seconds", None)) <= time.time()
    assert found == {
        ("lifecycle_job_last_run_duration_seconds", None): 1.235,
        ("lifecycle_job_last_exit_code", None): 4,
        ("lifecycle_job_budget_seconds", None): 10,
        ("lifecycle_job_sla_utilization_ratio", None): 0.123456,
        ("lifecycle_job_last_run_records_deleted", "quiz"): 7,
        ("lifecycle_job_last_run_records_queued", "quiz"): 0,
        ("lifecycle_job_records_remaining", "quiz"): 2,
        ("lifecycle_job_oldest_overdue_seconds", "quiz"): 61.5,
    }
    assert {figure.labels["script"] for figure in figures} == {"a_job"}


def test_what_a_figure_is_judged_by_stands_beside_it():
    policies = load_policies()
    figures = figures_of(
        [PolicyResult("quiz_responses", "completed", "done", ExitCode.DONE)],
        exit_code=0,
        spec=policies.jobs["cleanup_quiz_responses"],
        policies=policies.policies,
    )
    found = values(figures)
    assert found["lifecycle_job_interval_seconds", None] == 86_400
    assert found["lifecycle_policy_overdue_warning_seconds", "quiz_responses"] == 25 * 3600
    assert found["lifecycle_policy_overdue_critical_seconds", "quiz_responses"] == 48 * 3600


def test_every_figure_has_its_meaning():
    policies = load_policies()
    figures = figures_of([COUNTED], exit_code=0, spec=policies.jobs["cleanup_pdfs"], policies=policies.policies)
    assert {figure.name for figure in figures} <= METRICS.keys()
    assert all(meaning.endswith(".") for meaning in METRICS.values())


def test_what_was_not_counted_is_neither_zero_nor_left_out():
    found = values(figures_of([NOT_COUNTED, COUNTED], exit_code=1))
    assert found["lifecycle_job_last_run_records_deleted", "pdfs"] == 0
    assert found["lifecycle_job_records_remaining", "pdfs"] is None
    assert found["lifecycle_job_oldest_overdue_seconds", "pdfs"] is None
    assert found["lifecycle_job_records_remaining", "quiz"] == 2


@pytest.mark.parametrize("code", [1, 2, 3, 75, 130, 143])
def test_only_a_run_that_did_its_work_is_a_success(code):
    found = values(figures_of([], exit_code=code))
    assert ("lifecycle_job_last_success_timestamp_seconds", None) not in found
    assert found["lifecycle_job_last_exit_code", None] == code


def test_a_broken_sink_costs_a_warning_and_nothing_else(run_job, kept):
    code, lines = run_job()
    assert code == 0
    (warning,) = [line for line in lines if line["event"] == "metrics_lost"]
    assert (warning["level"], warning["sink"], warning["error"]) == ("WARNING", "Broken", "ConnectionError")
    assert "metrics.example.com" not in json.dumps(lines)
    assert lines[-1]["event"] == "cleanup_completed"
    assert values(kept.figures)["lifecycle_job_last_run_records_deleted", "quiz"] == 7


def test_the_log_alone_has_all_the_figures(run_job):
    _, lines = run_job()
    (line,) = [line for line in lines if line["event"] == "run_figures"]
    figures = {figure["name"]: figure for figure in line["figures"]}
    assert figures["lifecycle_job_records_remaining"] == {
        "name": "lifecycle_job_records_remaining",
        "value": 2,
        "script": "cleanup_quiz_responses",
        "policy": "quiz",
    }
    assert len(figures) == 11


def test_the_log_leaves_out_what_was_not_counted(capsys):
    configure_logging(script="a_job", correlation_id="-", level="INFO", log_format="json")
    metrics_utils.LogSink().send("a_job", figures_of([NOT_COUNTED], exit_code=1))
    (line,) = capsys.readouterr().out.splitlines()
    names = {figure["name"] for figure in json.loads(line)["figures"]}
    assert "lifecycle_job_records_remaining" not in names
    assert "lifecycle_job_last_run_records_deleted" in names


def test_a_dry_run_has_no_figures(run_job, kept):
    code, lines = run_job("--dry-run")
    assert code == 0
    assert kept.figures == []
    assert not {"run_figures", "metrics_lost"} & {line["event"] for line in lines}
