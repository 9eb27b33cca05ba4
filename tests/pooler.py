"""A real PgBouncer in transaction mode, as Neon's pooled host is one: Debian's, which knows no prepared statements.

Every database of the server is behind it under its own name, so each test has a pool of its own. Few connections to the
server: what one transaction leaves behind in a session, the next one meets at once.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.packages import CACHE, debian_program, folder_of

HOST = "127.0.0.1"
SERVER_CONNECTIONS = 3
START_SECONDS = 300


class Pooler:
    """A PgBouncer in front of the run's PostgreSQL.

    Args:
        stack: The run's servers; PgBouncer runs as the same account, as it refuses to run as root.
        settings: What ``pgbouncer.ini`` says beside what every test needs; bytes become a file's content.
    """

    def __init__(self, stack, **settings):
        program = Path(debian_program("pgbouncer", "pgbouncer"))
        self._account = stack.account
        self._folder = Path(tempfile.mkdtemp(prefix="lifecycle-pooler-"))
        self._folder.chmod(0o711)
        self.port = _free_port()
        superuser = f'"postgres" "{stack.superuser_password}"\n'
        everything = {
            "listen_addr": HOST,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "pool_mode": "transaction",
            "default_pool_size": SERVER_CONNECTIONS,
            "max_client_conn": 400,
            "auth_type": "scram-sha-256",
            "auth_file": self._file("userlist.txt", superuser.encode()),
            "auth_user": "postgres",  # looks the others up
        } | {name: self._file(name, value) if isinstance(value, bytes) else value for name, value in settings.items()}
        text = f"[databases]\n* = host={HOST} port={stack.postgres_port}\n[pgbouncer]\n"
        text += "".join(f"{name} = {value}\n" for name, value in everything.items())
        ini = self._file("pgbouncer.ini", text.encode())
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [self._reachable(program), ini], cwd="/", stdout=log, stderr=log, **self._environment(), **self._who()
            )
        self._wait()

    def through(self, url):
        """Return a URL of the server with PgBouncer in its place."""
        return f"{url.partition('@')[0]}@{HOST}:{self.port}/{url.rpartition('/')[2]}"

    @property
    def log(self):
        """What PgBouncer said."""
        return (self._folder / "log").read_text()

    def stop(self):
        """Stop it, and delete its folder."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)

    def _file(self, name, content):
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        if self._account:
            shutil.chown(path, self._account)
        return path

    def _who(self):
        if not self._account:
            return {}
        return {"user": self._account, "group": pwd.getpwnam(self._account).pw_gid, "extra_groups": []}

    def _reachable(self, program):
        """Copy it to where its account can reach it."""
        if not program.is_relative_to(CACHE):
            return program
        for file in (program, *folder_of("pgbouncer").rglob("*.so.*")):
            shutil.copy(file, self._folder)
            (self._folder / file.name).chmod(0o755)
        return self._folder / program.name

    def _environment(self):
        return {"env": {"PATH": os.defpath, "LC_ALL": "C", "LD_LIBRARY_PATH": str(self._folder)}}

    def _wait(self):
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"PgBouncer did not start: {self.log}")


def _free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
