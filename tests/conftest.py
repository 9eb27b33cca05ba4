"""Real servers for every test: the fixtures that scripts/utils/test_helpers.py gives to any project."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # --import-mode=importlib does not

pytest_plugins = ["scripts.utils.test_helpers", "tests.shared"]


@pytest.fixture(autouse=True)
def _clean_environment(clean_environment):
    """No setting of the developer's shell reaches a test."""
