"""Database servers of our own, in temporary folders, which may be stopped, killed and frozen."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.databases import administer_at
from tests.support.servers import free_port

START_SECONDS = 30.0
PROGRAMS = ("postgres", "initdb", "mariadbd", "mariadb-install-db")
USERS = {"postgresql": "postgres", "mysql": "mysql"}  # neither server runs as root


class Missing(Exception):
    """What a fault needs is not on this machine."""


def program(name: str) -> str:
    """The path of a server's program. Raises Missing."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/bin"]
    places += sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


class Instance:
    """One server. Everything here waits: call it in a thread."""

    def __init__(self, dialect: str) -> None:
        """Make its files; nothing runs yet. Raises Missing."""
        self.dialect = dialect
        self._program = program("postgres" if dialect == "postgresql" else "mariadbd")
        self._folder = Path(tempfile.mkdtemp(prefix="arbstr-fault-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(self._folder, USERS[dialect])
            self._as = {"user": USERS[dialect], "group": USERS[dialect], "extra_groups": []}
        self._data = self._folder / "data"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = (self._folder / "log").open("wb")
        try:
            self._make()
        except BaseException:
            self.remove()
            raise

    def _make(self) -> None:
        if self.dialect == "postgresql":
            made = [
                program("initdb"),
                "-D",
                str(self._data),
                "-A",
                "trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--no-sync",
            ]
        else:
            made = [program("mariadb-install-db"), "--no-defaults", f"--datadir={self._data}", "--skip-test-db"]
            made += ["--auth-root-authentication-method=normal", "--skip-name-resolve"]
        subprocess.run(made, check=True, stdout=self._log, stderr=self._log, cwd=self._folder, timeout=120, **self._as)
        if self.dialect == "postgresql":  # so that a password counts
            (self._data / "pg_hba.conf").write_text(
                "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            )

    def _command(self) -> list[str]:
        if self.dialect == "postgresql":
            settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=16MB"]
            options = [part for setting in settings for part in ("-c", setting)]
            return [self._program, "-D", str(self._data), "-p", str(self._port), *options]
        place = [f"--datadir={self._data}", f"--socket={self._folder}/s", f"--pid-file={self._folder}/pid"]
        return [
            self._program,
            "--no-defaults",
            *place,
            f"--port={self._port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=32M",
        ]

    @property
    def at(self) -> str:
        """The administrator's URL, without a database."""
        user, name = ("postgres", "postgres") if self.dialect == "postgresql" else ("root", "mysql")
        return f"{self.dialect}://{user}@127.0.0.1:{self._port}/{name}"

    @property
    def runs(self) -> bool:
        """Whether it has been started and not been stopped."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and return once it answers."""
        if self.runs:
            return
        self._process = subprocess.Popen(
            self._command(), stdout=self._log, stderr=self._log, cwd=self._folder, start_new_session=True, **self._as
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.sql("SELECT 1")
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self._folder / "log").read_text("utf-8", "replace")
                    raise RuntimeError(f"{self.dialect} does not start: {error}\n{log[-2000:]}") from error
            time.sleep(0.05)

    def stop(self, *, crash: bool = False) -> None:
        """End it in an orderly way, or as it would crash."""
        if self._process is None:
            return
        self.thaw()
        if self.dialect == "postgresql":
            number = signal.SIGQUIT if crash else signal.SIGINT
        else:
            number = signal.SIGKILL if crash else signal.SIGTERM
        self._process.send_signal(number)
        try:
            self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def freeze(self) -> None:
        """SIGSTOP to it and to the processes that it has started."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT to all of them."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        for pid in (self._process.pid, *_children(self._process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def sql(self, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run statements as the administrator; returns the rows of the last one."""
        return administer_at(urlsplit(self.at), *statements, database=database)

    def remove(self) -> None:
        """Stop it and delete its files."""
        self.stop(crash=True)
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text("utf-8", "replace").rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(stat.parent.name))
    return found
