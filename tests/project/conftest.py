"""What the project consists of, as the tests that compare its parts see it."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cleanup", "sla-monitoring", "manual-resolution", "retention")
SCRIPTS = sorted(
    path for folder in FOLDERS for path in (ROOT / "scripts" / folder).glob("*.py") if path.name != "__init__.py"
)
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def load_script(path):
    """Import a script from its file: a hyphen in its folder's name is illegal in an import statement."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path, project_files):
    """A copy of the checkout, which a test may change; its local stack is stopped at the end."""
    from tests.project.checkout import copied, stop

    copy = copied(project_files, tmp_path / "checkout")
    yield copy
    stop(copy)


@pytest.fixture(scope="session")
def project_files():
    """Every file that is or would be committed."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project is unknown")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]
