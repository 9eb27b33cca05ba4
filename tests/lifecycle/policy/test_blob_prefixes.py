"""A blob belongs to one policy: what a second table names must be no orphan of the first."""

import pytest
import yaml

from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, parse_policies
from scripts.utils.errors import Misconfigured


def with_another(prefix):
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    other = yaml.safe_load(yaml.safe_dump(document["policies"]["meal_plan_pdfs"]))
    other |= {"table": "public.invoices", "person": None}
    other["blob"]["prefix"] = prefix
    document["policies"]["invoices"] = other
    return yaml.safe_dump(document, sort_keys=False)


@pytest.mark.parametrize("prefix", ["keto-meal-plan-", "keto-meal-plan-invoices/", "keto", "k"])
def test_a_prefix_below_that_of_another_policy_is_refused(prefix):
    with pytest.raises(Misconfigured, match=r"blob\.prefix: .* lies below that of"):
        parse_policies(with_another(prefix), "the file")


def test_prefixes_side_by_side_are_fine():
    assert len(parse_policies(with_another("invoices/"), "the file").policies) > 1
