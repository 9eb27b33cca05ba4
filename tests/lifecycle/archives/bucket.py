"""A real S3 protocol server (moto's) on 127.0.0.1, with libraries of its own: they pin others than the scripts do.

``make fetch`` fetches them; where they cannot be had, each test skips and says why.
"""

import os
import subprocess
import urllib.request
import xml.etree.ElementTree as ET

from tests.packages import folder_of

NAME = "archives"
_SERVE = """
import sys
import logging
logging.disable()
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Bucket:
    """The server, with one bucket."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [folder_of("moto") / "bin" / "python", "-I", "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "HOME": os.devnull},
        )
        lines = (line.decode().strip() for line in self._process.stdout)
        port = next(line for line in lines if line.isdecimal())
        self.url = f"http://127.0.0.1:{port}"
        self._call("PUT", f"/{NAME}")
        return self

    def __exit__(self, *_):
        self._process.communicate(timeout=300)

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
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.read()
