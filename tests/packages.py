"""Programs that tests run and the project does not need: Debian packages and one Python package, in ``tests/.cache``.

Fetched once, by an ordinary user; where one cannot be had, its tests are skipped, loudly and counted.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

CACHE = Path(__file__).resolve().parent / ".cache"
FETCH_SECONDS = 170


def debian_program(package, name, *libraries):
    """Return a program of a Debian package, from this machine or unpacked; skips the test where it cannot be had.

    The packages of its libraries are unpacked into the same folder, ``tests/.cache/<package>``.
    """
    if found := shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
        return found
    root = debian_files(package, *libraries)
    found = (path for path in root.rglob(name) if path.parent.name in ("bin", "sbin") and path.is_file())
    binary = next(found, None)
    return str(binary) if binary else _skip(package, f"it has no program {name}")


def debian_files(name, *with_packages):
    """Return the folder into which a Debian package, and others that it needs, are unpacked; skips as above."""
    root = CACHE / name
    with _alone(name):
        if not root.is_dir():
            if not shutil.which("apt-get") or not shutil.which("dpkg"):
                _skip(name, "no apt-get here to fetch it with")
            _unpack(name, root, with_packages)
    return root


def python_environment(name, *requirements):
    """Return the folder ``bin`` of a virtual environment that holds the requirements; skips as above."""
    root = CACHE / f"{name}-{sys.implementation.cache_tag}"
    with _alone(name):
        if not (root / "complete").exists():
            shutil.rmtree(root, ignore_errors=True)
            _run(name, sys.executable, "-m", "venv", root)
            pip = [root / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--retries=1", "--timeout=15"]
            _run(name, *pip, "install", "--quiet", *requirements)
            (root / "complete").touch()
    return root / "bin"


def _unpack(package, root, with_packages=()):
    fresh = CACHE / f"{package}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    for folder in ("lists/partial", "archives/partial", "debs", "root"):
        (fresh / folder).mkdir(parents=True)
    # An ordinary user may not write the system's lists, and a fresh machine has none.
    own = ["-o", f"Dir::State::lists={fresh}/lists", "-o", f"Dir::Cache={fresh}", "-o", "APT::Sandbox::User="]
    own += ["-o", "Acquire::Retries=1", "-o", "Acquire::Languages=none"]
    _run(package, "apt-get", *own, "-qq", "update", folder=fresh)
    _run(package, "apt-get", *own, "-qq", "download", package, *with_packages, folder=fresh / "debs")
    for deb in (fresh / "debs").iterdir():
        _run(package, "dpkg", "-x", deb, fresh / "root", folder=fresh)
    (fresh / "root").rename(root)
    shutil.rmtree(fresh)


@contextmanager
def _alone(name):
    """Several workers fetch a thing once."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(name, *command, folder=None):
    try:
        subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        _skip(name, f"{Path(str(command[0])).name} did not fetch it ({type(error).__name__})")


def _skip(name, why):
    pytest.skip(f"NOT CHECKED AGAINST A REAL {name.upper()}: {why}")
