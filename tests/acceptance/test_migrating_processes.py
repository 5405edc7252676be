"""Migrations by whole processes: eight that start at once, and a package installed from its wheel."""

import asyncio
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi.database import migrations
from arbstr_asgi.ledger.ledger import Ledger
from tests.support.databases import DIALECTS, an_entry, fresh_database, require, run_sql

PROCESSES = 8
ROUNDS = 10


def _start_rounds(urls: list[str], barrier: Any, results: Any) -> None:
    """One of the processes: for each database, wait for the others, open, record, close."""
    migrated: list[bool] = []
    for number, url in enumerate(urls):
        barrier.wait(60)
        try:
            migrated.append(asyncio.run(_open_and_record(url, f"{number}-{os.getpid()}")))
        except Exception as error:
            results.put((number, f"{type(error).__name__}: {error}"))
    results.put((-1, migrated))


async def _open_and_record(url: str, correlation_id: str) -> bool:
    """Whether this process made the tables."""
    ledger = Ledger(url)
    await ledger.open()
    ledger.record(an_entry(correlation_id))
    await ledger.close()
    assert ledger.lost == 0
    return ledger._target.schema == "nothing -> 0004"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_eight_processes_migrate_an_empty_database_once(dialect: str, tmp_path: Path) -> None:
    """All start at the same moment, ten times over: each opens, exactly one migrates, each row is stored."""
    require(dialect)
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        urls = [stack.enter_context(fresh_database(dialect, tmp_path)) for _ in range(ROUNDS)]
        barrier, results = context.Barrier(PROCESSES), context.Queue()
        processes = [context.Process(target=_start_rounds, args=(urls, barrier, results)) for _ in range(PROCESSES)]
        for process in processes:
            process.start()
        answers: list[tuple[int, Any]] = []
        while sum(number == -1 for number, _ in answers) < PROCESSES:
            answers.append(results.get(timeout=60))
        for process in processes:
            process.join(10)
            process.close()
        results.close()
        results.join_thread()
        assert [answer for answer in answers if answer[0] != -1] == []
        migrated = [sum(column) for column in zip(*(flags for number, flags in answers if number == -1), strict=True)]
        assert migrated == [1] * ROUNDS
        for url in urls:
            assert run_sql(url, "SELECT count(*) FROM requests") == [(PROCESSES,)]
            assert run_sql(url, "SELECT version_num FROM arbstr_version") == [("0004",)]


def test_the_wheel_carries_the_migrations(tmp_path: Path) -> None:
    """A wheel has them as arbstr_asgi/migrations, and an installed package finds them there."""
    root = Path(migrations.__file__).resolve().parents[2]
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("arbstr_asgi", "migrations"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(root / name, copy / name)
    (copy / "README.md").write_text("read me")
    version = copy / "arbstr_asgi" / "__init__.py"
    if not version.is_file() or "__version__" not in version.read_text():
        version.write_text('__version__ = "0"\n')
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=copy,
        capture_output=True,
        timeout=60,
        check=True,
    )
    (wheel,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    scripts = (root / "migrations" / "versions").glob("*.py")
    shipped = {
        "arbstr_asgi/migrations/env.py",
        "arbstr_asgi/migrations/script.py.mako",
        *(f"arbstr_asgi/migrations/versions/{path.name}" for path in scripts),
    }
    assert shipped <= names
    program = (
        "import importlib.util, sys, pathlib\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "sys.modules['arbstr_asgi'] = package = type(sys)('arbstr_asgi')\n"  # without what __init__ imports
        "package.__path__ = [sys.argv[1] + '/arbstr_asgi']\n"
        "from arbstr_asgi.database import migrations\n"
        "from arbstr_asgi.database.database import migration_sql\n"
        "assert migrations.folder() == pathlib.Path(sys.argv[1], 'arbstr_asgi', 'migrations'), migrations.folder()\n"
        "assert 'CREATE TABLE requests' in migration_sql('sqlite:///x.db')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "installed")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
