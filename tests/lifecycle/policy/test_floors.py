"""What the law allows cannot be crossed: neither the least nor the most."""

import re

import pytest

from scripts.lifecycle.policy.policy_file import load_policies, parse_policies
from scripts.utils.errors import Misconfigured
from tests.lifecycle.support import POLICY_TEXT as TEXT

LINE = TEXT[: TEXT.index("keep: 30 days")].count("\n") + 1


def with_limits(limits, keep="30 days"):
    return TEXT.replace("keep: 30 days", f"{limits}, keep: {keep}")


@pytest.mark.parametrize(
    ("limits", "keep"),
    [
        ("floor: 30 days", "30 days"),
        ("floor: 720 hours", "30 days"),
        ("floor: 1 year", "366 days"),
        ("floor: 7 years", "forever"),
        ("ceiling: 30 days", "30 days"),
        ("ceiling: 1 month", "28 days"),
        ("ceiling: forever", "forever"),
        ("floor: 1 day, ceiling: 1 year", "6 months"),
    ],
)
def test_a_period_within_the_law_is_accepted(limits, keep):
    rule = parse_policies(with_limits(limits, keep), "file").policies["things"].rules["old"]
    assert rule.keep.text == keep


@pytest.mark.parametrize(
    ("limits", "keep", "said"),
    [
        ("floor: 31 days", "30 days", "30 days is shorter than the floor of 31 days"),
        ("floor: 7 years", "6 years", "6 years is shorter than the floor of 7 years"),
        ("floor: 1 year", "365 days", "365 days is shorter than the floor of 1 year"),
        ("floor: forever", "100 years", "100 years is shorter than the floor of forever"),
        ("ceiling: 29 days", "30 days", "30 days is longer than the ceiling of 29 days"),
        ("ceiling: 1 month", "30 days", "30 days is longer than the ceiling of 1 month"),
        ("ceiling: 10 years", "forever", "forever is longer than the ceiling of 10 years"),
    ],
)
def test_a_period_beyond_it_is_refused_and_its_line_is_named(limits, keep, said):
    with pytest.raises(Misconfigured) as refused:
        parse_policies(with_limits(limits, keep), "file")
    place = rf"policies\.things\.rules\.old\.keep \(line {LINE}, column \d+\): "
    assert re.search(place + re.escape(said), str(refused.value))


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(
        Misconfigured, match=r"rules\.old\.ceiling \(line \d+, column \d+\): must not be shorter than the floor"
    ):
        parse_policies(with_limits("floor: 2 years, ceiling: 1 year", "2 years"), "file")


def test_a_crossed_floor_ends_a_run_with_two_and_touches_nothing(run_job, admin, redis_client, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(with_limits("floor: 31 days"))

    run = run_job("--policy-file", str(path))

    assert run.code == 2
    assert re.search(rf"line {LINE}, column \d+\): 30 days is shorter", run.closing["error"])
    assert (admin.execute("SELECT count(*) FROM ops.job_runs").fetchone(), redis_client.keys()) == ((0,), [])


def test_the_promises_of_the_product_stand_in_the_default_file():
    policies = load_policies().policies
    assert policies["meal_plan_pdfs"].rules["expired"].floor.text == "90 days"
    assert policies["quiz_responses"].rules["abandoned"].ceiling.text == "7 days"


PROOF = [
    *("ops.audit_batches", "ops.audit_head", "ops.policy_versions", "ops.schema_migrations"),
    *("ops.detached_partitions", "ops.partition_rights"),
]


@pytest.mark.parametrize("table", PROOF)
@pytest.mark.parametrize("place", ["table: public.things", "table: public.notes"])
def test_no_policy_changes_the_proof(table, place):
    with pytest.raises(Misconfigured, match=f"{table} is proof: no policy changes it"):
        parse_policies(TEXT.replace(place, f"table: {table}"), "file")
