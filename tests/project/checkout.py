"""A copy of the checkout, and a shell in it, as a person would have it open."""

import os
import shutil
import subprocess

from tests.project.conftest import ROOT

SECONDS = 300
_OF_THE_SHELL = {"_", "SHLVL", "PWD", "OLDPWD"}


def copied(files, folder):
    """Copy files of this checkout into a folder, and share its virtual environment; return the folder."""
    for path in files:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
        os.utime(target, (0, 0))  # older than what make has installed: it must not install into what is shared
    (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
    return folder


def stop(folder):
    """Stop the local stack of a copy, if it was started, and delete its data."""
    if (folder / ".stack").exists():
        command = [folder / ".venv/bin/python", "backend/local_stack.py", "stop", "--delete"]
        subprocess.run(command, cwd=folder, capture_output=True, check=False)


class Shell:
    """Types one command after the other; what a command exports stays.

    Args:
        folder: Where it is opened.
    """

    def __init__(self, folder):
        self.folder = folder
        self.env = {
            "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PGCONNECT_TIMEOUT": "10",
        }
        self._told = []

    def run(self, text, wanted=frozenset({0})):
        """Type a command and return what it printed; what came before is told when it ends otherwise than wanted."""
        after = self.folder / ".env-after"
        done = subprocess.run(
            ["bash", "-c", f'{text}\ncode=$?; env -0 > "{after}"; exit $code'],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if after.exists():
            pairs = (pair.split("=", 1) for pair in after.read_text().split("\0") if pair)
            self.env = {name: value for name, value in pairs if name not in _OF_THE_SHELL}
            after.unlink()
        self._told.append(f"$ {text}\n{done.stdout[-1500:]}{done.stderr[-1500:]}[{done.returncode}]")
        assert done.returncode in wanted, "\n".join(self._told[-3:])
        assert "Traceback" not in done.stdout + done.stderr, self._told[-1]
        return done.stdout
