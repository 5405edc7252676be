"""The commands and the code of the pages, run page by page as a reader would, in front of a mock provider."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.databases import fresh_database, migrated_file, run_sql
from tests.support.doc_blocks import PAGES, ROOT, Block, blocks

SECONDS = 60.0
STANDALONE = ROOT / "docs" / "start" / "standalone.md"
RUN = ("sh", "python", "sql")
RUN_PAGES = [page for page in PAGES if any(block.runs and block.language in RUN for block in blocks(page))]
_PORT = re.compile(r"\b(8080|8000)\b")


class Reader:
    """Somebody in a folder of their own, who types what a page says."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        with ExitStack() as stack:  # both at once, so that they differ
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
            self.ports = dict(zip(("8080", "8000"), (str(one.getsockname()[1]) for one in sockets), strict=True))
        self.environ = {
            **{name: value for name, value in os.environ.items() if name.lower() not in ("http_proxy", "all_proxy")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "DATABASE_URL": database,
            "ARBSTR_TOKEN": "let-me-in",
            "ALPHA_KEY": "sk-alpha",
            "ALICE_TOKEN": "let-me-in",
            "OPENAI_API_KEY": "sk-none",
            "OPENAI_BASE_URL": self.here("http://127.0.0.1:8080/v1"),
        }
        self.environ.pop("PYTEST_ADDOPTS", None)
        self.running: list[tuple[Block, subprocess.Popen[bytes], Path]] = []

    def here(self, text: str) -> str:
        """A text with the ports that are free here; the mock server's, which it takes when nobody says one, too."""
        text = _PORT.sub(lambda match: self.ports[match[1]], text)
        return text.replace("serve --mock", f"serve --mock -l 127.0.0.1:{self.ports['8080']}")

    def settle(self) -> None:
        """Lay out the folder: the examples, a configuration, a ledger, and a curl that fails where a status does."""
        for path in (ROOT / "example_app").rglob("*.py"):
            there = self.folder / path.relative_to(ROOT / "example_app")
            there.parent.mkdir(exist_ok=True)
            there.write_text(self.here(path.read_text("utf-8")), "utf-8")
        shutil.copy(self.folder / "fastapi_postgres.py", self.folder / "app.py")
        [configuration, *_] = [block.text for block in blocks(STANDALONE) if block.language == "toml"]
        (self.folder / "arbstr.toml").write_text(self.here(configuration), "utf-8")
        (self.folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\nmax-time = 30\n")
        migrated_file(self.folder / "arbstr.db")

    def types(self, block: Block) -> str:
        """A block of a shell, to its end; returns what it says."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.here(block.text)],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{block.name}: {done.stdout}{done.stderr}{self.said()}"
        return done.stdout

    def starts(self, block: Block) -> None:
        """A block that runs on; a server until its port answers, where it takes the place of the one before."""
        for running in [one for one in self.running if block.port and one[0].port == block.port]:
            self.ends(running[1])
            self.running.remove(running)
        log = self.folder / f"log-{block.line}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", self.here(block.text)],
                cwd=self.folder,
                env=self.environ,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append((block, process, log))
        deadline = time.monotonic() + SECONDS
        while block.port is not None and not answers(int(self.ports[block.port])):
            assert process.poll() is None, f"{block.name}: {log.read_text()}"
            assert time.monotonic() < deadline, f"{block.name}: {log.read_text()}"
            time.sleep(0.05)

    def evaluates(self, text: str) -> None:
        """All the Python of a page, in a process of its own."""
        path = self.folder / "page.py"
        path.write_text(self.here(text), "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.doc_python", str(path)],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.said()}"

    def said(self) -> str:
        """What the processes in the background have said."""
        return "\n".join(log.read_text() for _, _, log in self.running)

    def leaves(self) -> None:
        """End what still runs, which must be all of it."""
        early = [block.name for block, process, _ in self.running if process.poll() is not None]
        for _, process, _ in reversed(self.running):
            self.ends(process)
        assert early == [], self.said()

    def ends(self, process: subprocess.Popen[bytes]) -> None:
        """End one of them, and all that it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(15)


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def reading(page: Path, folder: Path) -> Iterator[Reader]:
    """A reader of this page, with the mock provider that it starts or, where it starts none, one of ours."""
    servers = [block for block in blocks(page) if block.in_background]
    dialect = "postgresql" if any("PostgreSQL" in block.mark for block in servers) else "sqlite"
    with fresh_database(dialect, folder) as url:
        reader = Reader(folder, url.replace("postgresql://", "postgresql+asyncpg://"))
        reader.settle()
        # The examples have files of their own, which the pages ask with sqlite3.
        if not any("DATABASE_URL" in block.text for block in blocks(page) if block.language == "sh"):
            del reader.environ["DATABASE_URL"]
        try:
            if not any("arbstr serve" in block.text for block in servers):
                reader.starts(Block(page, 0, "sh", "server", "arbstr serve --mock"))
            yield reader
        finally:
            reader.leaves()


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path) -> None:
    """Each command of the page ends well, in their order, and its Python runs."""
    with reading(page, tmp_path) as reader:
        for block in blocks(page):
            if not block.runs or block.language not in RUN:
                continue
            if block.in_background:
                reader.starts(block)
            elif block.language == "sh":
                reader.types(block)
            elif block.language == "sql":
                time.sleep(1.0)  # a row comes 50 ms after its reply; what the page shows is one query
                assert run_sql(reader.environ["DATABASE_URL"].replace("+asyncpg", ""), block.text)
        text = "\n".join(block.text for block in blocks(page) if block.runs and block.language == "python")
        if text:
            reader.evaluates(text)
