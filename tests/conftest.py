"""Real servers for every test: the fixtures that scripts/utils/test_helpers.py gives to any project."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # --import-mode=importlib does not

from tests.pooler import Pooler

pytest_plugins = ["scripts.utils.test_helpers", "tests.shared"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Any test can be sent through PgBouncer; those that are marked ``pooled`` go both ways in every run."""
    parser.addoption("--through-pgbouncer", action="store_true", help="the jobs' connections go through PgBouncer")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked ``pooled`` twice: straight to the server, and through PgBouncer."""
    if "route" not in metafunc.fixturenames:
        return
    if metafunc.config.option.through_pgbouncer:
        metafunc.parametrize("route", ["pgbouncer"], indirect=True)
    elif metafunc.definition.get_closest_marker("pooled"):
        metafunc.parametrize("route", ["straight", "pgbouncer"], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say which tests have no meaning through PgBouncer, and which are run without counting the lines they reach.

    Counting makes Python half as fast. Of a test that has a database and many parameters, the first case alone counts:
    the report may miss a line that only another case reaches, and never names one that no test reached.
    """
    counted = set()
    for item in items:
        if config.option.through_pgbouncer and item.get_closest_marker("straight"):
            item.add_marker(pytest.mark.skip(reason="is about a connection without a pooler in between"))
        function = (item.path, item.parent.name, getattr(item, "originalname", item.name))
        if function in counted and "new_database" in item.fixturenames:
            item.add_marker("no_cover")
        counted.add(function)


@pytest.fixture(scope="session")
def pooler(stack):
    """A PgBouncer in transaction mode in front of the run's server."""
    pooler = Pooler(stack)
    yield pooler
    pooler.stop()


@pytest.fixture
def route(request):
    """What the jobs' connections go through: a pooler, or None."""
    return request.getfixturevalue("pooler") if getattr(request, "param", None) == "pgbouncer" else None


@pytest.fixture(autouse=True)
def _clean_environment(clean_environment):
    """No setting of the developer's shell reaches a test."""
