"""A real S3 protocol server (moto's) on 127.0.0.1, with libraries of its own: they pin others than the scripts do.

They are fetched once into ``tests/.cache``; where they cannot be had, each test skips and says why.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import urllib.request
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.packages import CACHE

HERE = Path(__file__).parent

WANTED = HERE / "requirements.txt"
INSTALL_SECONDS = 240
NAME = "archives"
_SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
import logging
logging.disable()
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def _libraries():
    CACHE.mkdir(exist_ok=True)
    version = hashlib.sha256(f"{sys.implementation.cache_tag}-{WANTED.read_text()}".encode()).hexdigest()[:12]
    folder = CACHE / f"moto-{version}"
    with (CACHE / "moto.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        fresh = folder.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries=1", "--timeout=15", "install"]
        try:
            subprocess.run(
                [*pip, "--quiet", "--target", fresh, "--requirement", WANTED],
                check=True,
                timeout=INSTALL_SECONDS,
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            pytest.skip("ARCHIVES ARE NOT CHECKED AGAINST S3: moto's server cannot be fetched")
        fresh.rename(folder)
    return folder


class Bucket:
    """The server, with one bucket."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, _libraries()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "HOME": str(CACHE)},
        )
        lines = (line.decode().strip() for line in self._process.stdout)
        port = next(line for line in lines if line.isdecimal())
        self.url = f"http://127.0.0.1:{port}"
        self._call("PUT", f"/{NAME}")
        return self

    def __exit__(self, *_):
        self._process.communicate(timeout=20)

    def settings(self):
        return {
            "ARCHIVE_URL": f"s3://{NAME}/cold/storage",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "a-login",
            "AWS_SECRET_ACCESS_KEY": "a-secret",
        }

    def names(self):
        listed = ET.fromstring(self._call("GET", f"/{NAME}?list-type=2"))
        return [each.text for each in listed.iter() if each.tag.endswith("}Key")]

    def read(self, name):
        return self._call("GET", f"/{NAME}/{name}")

    def write(self, name, data):
        self._call("PUT", f"/{NAME}/{name}", data)

    def empty(self):
        for name in self.names():
            self._call("DELETE", f"/{NAME}/{name}")

    def _call(self, method, path, data=None):
        # Signed like a client's that the server knows: it looks at the form only.
        headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"}
        request = urllib.request.Request(self.url + path, method=method, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()
