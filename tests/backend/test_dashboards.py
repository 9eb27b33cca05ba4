"""The dashboard and the alert rules ask for metrics that there are, in queries that Prometheus understands."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.utils.metrics_utils import METRICS
from tests.packages import debian_program

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "backend" / "dashboards"
DASHBOARD = json.loads((FOLDER / "lifecycle.json").read_text())
RULES = [
    rule for group in yaml.safe_load((FOLDER / "lifecycle.rules.yml").read_text())["groups"] for rule in group["rules"]
]
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def metrics_in(query):
    return set(re.findall(r"\blifecycle_\w+", query))


def promtool(*arguments):
    program = debian_program("prometheus", "promtool")
    done = subprocess.run([program, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_dashboard_shows_every_metric_and_no_other():
    assert set().union(*map(metrics_in, QUERIES)) == METRICS.keys()


@pytest.mark.parametrize("variable", [v for v in DASHBOARD["templating"]["list"] if v["type"] == "query"], ids=str)
def test_its_variables_ask_for_metrics_that_there_are(variable):
    assert metrics_in(variable["definition"])
    assert metrics_in(variable["definition"]) <= METRICS.keys()


def test_its_panels_do_not_overlap_and_each_has_its_own_number():
    seen = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & seen, panel["title"]
        assert place["x"] + place["w"] <= 24
        seen |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_its_queries_are_understood(tmp_path):
    known = {v["name"]: ".*" for v in DASHBOARD["templating"]["list"]}
    queries = [re.sub(r"\$(\w+)", lambda name: known[name[1]], query) for query in QUERIES]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(queries)} rules found" in promtool("check", "rules", str(path))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_judges_what_there_is_and_names_a_runbook_that_is_there(rule):
    assert metrics_in(rule["expr"])
    assert metrics_in(rule["expr"]) <= METRICS.keys()
    assert rule["labels"]["severity"] in {"warning", "critical"}
    page, _, section = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^## (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert not section or section in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_rules_are_understood():
    assert f"SUCCESS: {len(RULES)} rules found" in promtool("check", "rules", "lifecycle.rules.yml")


def test_each_rule_wakes_somebody_when_it_must_and_nobody_otherwise():
    cases = yaml.safe_load((FOLDER / "lifecycle.rules.test.yml").read_text())["tests"]
    quiet = {case["alertname"] for case in cases[0]["alert_rule_test"]}
    loud = {case["alertname"] for case in cases[1]["alert_rule_test"] if case.get("exp_alerts")}
    assert quiet == loud == {rule["alert"] for rule in RULES}
    assert "SUCCESS" in promtool("test", "rules", "lifecycle.rules.test.yml")
