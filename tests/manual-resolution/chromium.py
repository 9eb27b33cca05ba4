"""A headless Chromium from Debian's package, as ``make fetch`` fetched it; driven through a pipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.packages import debian_program, folder_of

PACKAGE = "chromium-headless-shell"
NOT_CHECKED = "THE REPORT'S PAGE IS NOT CHECKED IN A BROWSER"


def program():
    """Return the browser's program and its environment; skips the test, loudly, where there is none."""
    for name in (PACKAGE, "chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return [found], {}
    binary = debian_program(PACKAGE, PACKAGE)
    folders = sorted({str(path.parent) for path in folder_of(PACKAGE).rglob("*.so*")})
    return [binary], {"LD_LIBRARY_PATH": ":".join(folders)}


class Browser:
    """A running browser; its protocol speaks JSON through two pipes, so no port is opened."""

    def __init__(self):
        command, environment = program()
        self._profile = tempfile.TemporaryDirectory()
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic"]
        flags += ["--no-first-run", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "about:blank"]
        # The protocol's pipes are the descriptors 3 and 4, whatever numbers they have here.
        shell = f'exec 3<&{to_read} 4>&{to_write}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command, *flags],
            pass_fds=(to_read, to_write),
            env={"PATH": os.defpath, "HOME": self._profile.name, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self.events = []
        self._session = None
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        except EOFError:
            said = self._process.stderr.read().decode(errors="replace").splitlines()
            self.close()
            pytest.skip(f"{NOT_CHECKED}: Chromium does not start: {said[-1] if said else 'no word from it'}")
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **parameters):
        """Return the answer to one command; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path, *, width):
        """Load a file at a width in CSS pixels; forgets earlier events."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.ask("Page.navigate", url=Path(path).as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, expression):
        """Return what a JavaScript expression is worth."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self):
        """Return what the console was told, and what the page threw."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event for event in self.events if event.get("method") in kinds]

    def requests(self):
        """Return the addresses that were asked for."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def close(self):
        """End it."""
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(300)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stderr.close()
        shutil.rmtree(self._profile.name, ignore_errors=True)
        self._profile.cleanup()

    def _read(self):
        while b"\0" not in self._buffer:
            chunk = os.read(self._in, 1 << 16)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
