import pytest

from scripts.lifecycle.jobs.run import checked_operator
from scripts.utils.errors import Misconfigured


def test_an_operator_is_a_handle():
    assert checked_operator("ana.k") == "ana.k"


@pytest.mark.parametrize("name", ["ana@example.com", "ana k"])
def test_what_may_be_personal_never_reaches_the_audit(name):
    with pytest.raises(Misconfigured, match="handle") as caught:
        checked_operator(name)

    assert name not in str(caught.value)
