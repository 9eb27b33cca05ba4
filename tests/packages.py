"""Programs and libraries that only tests need: Debian packages, Python and npm packages, unpacked into ``tests/.cache``.

``make fetch`` fetches them before the first test, as an ordinary user; no test fetches anything. A component that cannot
be had is told in one line there, and each of its tests is skipped with the reason.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
FETCH_SECONDS = 600


class NotFetched(Exception):
    """A component cannot be had on this machine."""


@dataclass(frozen=True)
class Debian:
    """A Debian package and those that it needs, unpacked. ``complete``: also whatever else this machine lacks of them."""

    package: str
    needs: tuple[str, ...] = ()
    complete: bool = False

    @property
    def name(self):
        return self.package

    @property
    def recipe(self):
        return repr(self)

    def fetch(self, folder):
        lists = _package_lists()
        debs = folder / "debs"
        debs.mkdir()
        names = [self.package, *self.needs]
        if self.complete:
            planned = _run("apt-get", *lists, "-s", "install", "--no-install-recommends", self.package)
            names = [line.split()[1] for line in planned.splitlines() if line.startswith("Inst ")]
        _run("apt-get", *lists, "-qq", "download", *names, folder=debs)
        for deb in sorted(debs.iterdir()):
            _run("dpkg", "-x", deb, folder)
        shutil.rmtree(debs)


@dataclass(frozen=True)
class Python:
    """Python packages in a virtual environment of their own: they pin other versions than the scripts do."""

    name: str
    requirements: Path

    @property
    def recipe(self):
        return f"{sys.implementation.cache_tag} {self.requirements.read_text()}"

    def fetch(self, folder):
        _run(sys.executable, "-m", "venv", "--without-pip", folder)
        python = folder / "bin" / "python"
        try:
            _run(Path(sys.executable).with_name("uv"), "pip", "install", "--python", python, "-r", self.requirements)
        except (OSError, subprocess.CalledProcessError):  # it does not read pip's settings, which may name the index
            pip = ("-m", "pip", "--disable-pip-version-check", "--quiet", "--timeout=15", "--python", python)
            _run(sys.executable, *pip, "install", "--requirement", self.requirements)


@dataclass(frozen=True)
class Npm:
    """npm packages, as a ``package.json`` names them."""

    name: str
    package_file: Path

    @property
    def recipe(self):
        return self.package_file.read_text()

    def fetch(self, folder):
        shutil.copy(self.package_file, folder)
        quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--fetch-retries=1")
        _run("npm", "install", *quiet, folder=folder)


COMPONENTS = {
    each.name: each
    for each in (
        Debian("pgbouncer", ("libc-ares2", "libevent-2.1-7")),
        Debian("prometheus"),
        Debian("prometheus-pushgateway"),
        Debian("chromium-headless-shell", complete=True),
        Debian("postgresql-15-partman", ("postgresql-15", "libpq5")),
        Python("bugsink", HERE / "utils" / "bugsink.txt"),
        Python("moto", HERE / "lifecycle" / "archives" / "requirements.txt"),
        Python("vercel-blob", HERE / "contracts" / "requirements.txt"),
        Npm("@vercel/blob", HERE / "contracts" / "package.json"),
    )
}


def folder_of(name):
    """Return the folder of a fetched component; skips the test, with the reason, where there is none."""
    folder = _place(name)
    if not folder.is_dir():
        reason = folder.with_suffix(".reason")
        why = reason.read_text() if reason.exists() else "make fetch has not been run"
        pytest.skip(f"NOT CHECKED AGAINST A REAL {name.upper()}: {why}")
    return folder


def debian_program(package, name):
    """Return a program of a Debian package, from this machine or unpacked; skips as :func:`folder_of` does."""
    if found := shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
        return found
    # Neither the scripts of /etc nor shell completions of the same name.
    found = (path for path in (folder_of(package) / "usr").rglob(name) if os.access(path, os.X_OK) and path.is_file())
    binary = next(found, None)
    if binary is None:
        pytest.skip(f"NOT CHECKED AGAINST A REAL {package.upper()}: it has no program {name}")
    return str(binary)


def fetch(name):
    """Fetch a component unless it is there.

    Raises:
        NotFetched: It cannot be had; the reason stands beside its place, for the tests that are skipped.
    """
    place = _place(name)
    if place.is_dir():
        return
    reason = place.with_suffix(".reason")
    # A virtual environment holds its own path, so it is made in its place; a folder that is half made is removed.
    try:
        place.mkdir(parents=True)
        COMPONENTS[name].fetch(place)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(place, ignore_errors=True)
        reason.write_text(_why(error))
        raise NotFetched(reason.read_text()) from error
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    reason.unlink(missing_ok=True)


def _place(name):
    component = COMPONENTS[name]
    digest = hashlib.sha256(component.recipe.encode()).hexdigest()[:12]
    return CACHE / f"{name.strip('@').replace('/', '-')}-{digest}"


def _package_lists():
    """Return the options that have apt use lists of its own: an ordinary user may not write the system's."""
    root = CACHE / "apt"
    return [
        *("-o", f"Dir::State::lists={root}/lists", "-o", f"Dir::Cache={root}", "-o", "APT::Sandbox::User="),
        *("-o", "Acquire::Retries=1", "-o", "Acquire::Languages=none", "-o", "Debug::NoLocking=true"),
    ]


def _update_package_lists():
    for folder in ("lists/partial", "archives/partial"):
        (CACHE / "apt" / folder).mkdir(parents=True, exist_ok=True)
    _run("apt-get", *_package_lists(), "-qq", "update")


def _run(*command, folder=None):
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=FETCH_SECONDS,
        check=True,
    )
    return done.stdout


def _why(error):
    if isinstance(error, FileNotFoundError):
        return f"no {error.filename} here to fetch it with"
    if isinstance(error, subprocess.CalledProcessError):
        said = [line for line in error.stderr.splitlines() if line.startswith(("ERROR", "E:", "npm error"))]
        return f"{Path(str(error.cmd[0])).name} did not fetch it: {(said or ['no word of it'])[0]}"
    return f"it was not fetched ({type(error).__name__})"


def main():
    """Fetch every component; a component that cannot be had fails nothing, and is told."""
    missing = [name for name in COMPONENTS if not _place(name).is_dir()]
    if any(isinstance(COMPONENTS[name], Debian) for name in missing):
        try:
            _update_package_lists()
        except (OSError, subprocess.SubprocessError) as error:
            print(f"NO DEBIAN PACKAGES: {_why(error)}", file=sys.stderr)
    with ThreadPoolExecutor(3) as pool:
        for name, future in {name: pool.submit(fetch, name) for name in missing}.items():
            try:
                future.result()
            except NotFetched as error:
                print(f"NOT FETCHED: {name}, its tests will be skipped: {error}", file=sys.stderr)
            else:
                print(f"fetched {name}")


if __name__ == "__main__":
    main()
