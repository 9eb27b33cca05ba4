"""The report as an operator runs it, over a queue whose figures are known."""

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scripts.utils.test_helpers import run_script

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "scripts" / "manual-resolution" / "report_metrics.py"
HOUR = timedelta(hours=1)


def pytest_collection_modifyitems(items):
    """A browser is slow to fetch, once."""
    for item in items:
        if item.path.parent == HERE and item.path.stem == "test_page_in_browser":
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture
def now():
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def put(database):
    """A function that puts items on the queue; what is not said is open and harmless."""
    connection = database.superuser()

    def insert(first_seen_at, *, items=1, deadline_at=None, **columns):
        columns = {
            "item_type": "quiz_undelivered",
            "priority": "high",
            "status": "resolved" if columns.get("resolved_at") else "pending",
            "first_seen_at": first_seen_at,
            "deadline_at": deadline_at or first_seen_at + timedelta(days=3650),
            **columns,
        }
        connection.execute(
            f"INSERT INTO ops.manual_resolution_queue (resource_type, resource_id, reason, raised_by, {', '.join(columns)})"
            " SELECT 'public.quiz_responses', gen_random_uuid()::text, 'a reason', 'system:test',"
            f" {', '.join(['%s'] * len(columns))} FROM generate_series(1, %s)",
            (*columns.values(), items),
        )

    return insert


@pytest.fixture
def report(database, redis_url):
    """A function that runs the script; settings are given by name."""
    env = {"DATABASE_URL": database.url, "REDIS_URL": redis_url}
    return lambda *arguments, **settings: run_script(SCRIPT, *arguments, env=env | settings)


@pytest.fixture(scope="session")
def browser():
    spec = importlib.util.spec_from_file_location("chromium_for_tests", HERE / "chromium.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    running = module.Browser()
    yield running
    running.close()
