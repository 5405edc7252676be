"""How the package is built: imports go down only, packages keep to themselves, nothing happens at import."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import arbstr_asgi

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "arbstr_asgi"
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_ENTRIES = 15

# Modules without I/O, clock and environment; `*` is all of a package. Which may import which: pyproject.toml.
PURE = """
errors protocols.* config.api_keys config.legacy config.policies config.provider config.section config.settings
config.validation database.columns database.records database.statements database.values
stats.aggregates stats.histogram stats.params stats.planner stats.query stats.resolved_query stats.serialize stats.sql
stats.timezones stats.totals stats.rollups.cache stats.rollups.dirty_hours stats.rollups.statements
providers.circuit_breaker providers.headers providers.pricing providers.retry_policy providers.routing
providers.stream_options gateway.record gateway.responses gateway.strict telemetry.access_log
api.cost api.models api.providers cli.mock.directives cli.output
"""
NOT_PURE = {"protocols.tokenizer"}  # its vocabulary is a file of a package of others
AWAITS = {"gateway.responses"}  # it is handed the `send` that it awaits
OUTSIDE = "asyncio concurrent http io os pathlib random selectors socket ssl subprocess tempfile threading time"

# Who may import which package that is not Python's own; a package that is not here may not be imported at all.
FOREIGN = {
    "aiohttp": "providers.client_errors providers.direct_client providers.http1 providers.httpx_client",
    "httptools": "providers.http1",
    "yarl": "providers.direct_client",
    "httpx_aiohttp": "providers.httpx_client",
    "httpx": "providers.client providers.client_errors providers.direct_client providers.httpx_client providers.tls"
    " gateway.gateway app cli.demo cli.remote",
    "databases": "database.* ledger.ledger ledger.retry gateway.gateway app",
    "sqlalchemy": "database.migrations",
    "alembic": "database.migrations",
    "asyncpg": "database.drivers.postgresql",
    "pymysql": "database.drivers.mysql",
    "aiomysql": "database.drivers.mysql",
    "starlette": "app asgi api.health api.paths api.routes api.stats gateway.* cli.mock.provider",
    "hypercorn": "cli.server",
    "uvloop": "cli.server",
    "click": "cli.*",
    "tenacity": "ledger.retry gateway.failover",
    "prometheus_client": "telemetry.prometheus telemetry.multiprocess",
    "bpe_openai": "protocols.tokenizer",
    "msgspec": "*",
}
ONLY_FOR_TYPES = {"gateway.gateway": "httpx databases"}
LIGHT = {  # what may be loaded of FOREIGN by whoever only imports, or only asks how a command is used
    "from arbstr_asgi import *": {"starlette", "msgspec"},
    "from arbstr_asgi.cli.main import main; main(['--help'], standalone_mode=False)": {"starlette", "msgspec", "click"},
}


def name_of(path: Path) -> str:
    """A module's name below the package; the package's own for its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "arbstr_asgi"


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parent.parts}


def parsed(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(MODULES[module].read_text())


def imported(module: str) -> Iterator[str]:
    """Everything that a module imports, wherever it does: `package.module`, without names in it."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if ours(inner) in MODULES else node.module


def imported_at_once(module: str) -> Iterator[str]:
    """What a module imports while it is imported itself."""
    for node in parsed(module).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if ours(inner) in MODULES else node.module


def ours(name: str) -> str:
    """The name of a module of ours below the package."""
    return name.removeprefix("arbstr_asgi.")


def pure_modules() -> list[str]:
    """The modules that `PURE` names."""
    found: list[str] = []
    for name in PURE.split():
        prefix = name.removesuffix("*")
        found += [module for module in MODULES if module == name or (prefix != name and module.startswith(prefix))]
    return [module for module in found if module not in NOT_PURE]


def test_imports_go_down_only() -> None:
    """The layers that pyproject.toml declares hold, and every module and package of the top belongs to one."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=environ,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "imports go down only KEPT" in done.stdout


def test_no_circles() -> None:
    """No module needs itself by way of others, in the whole package."""
    names = {f"arbstr_asgi.{module}" if module != "arbstr_asgi" else module: module for module in MODULES}
    needs = {name: set(imported_at_once(module)) & (names.keys() - {name}) for name, module in names.items()}
    while ready := {name for name, others in needs.items() if not others}:
        needs = {name: others - ready for name, others in needs.items() if name not in ready}
    assert needs == {}


def test_entries() -> None:
    """A folder has so few entries that they can be taken in at a look."""
    for folder in {PACKAGE, *(path.parent for path in MODULES.values())}:
        entries = [
            path.name
            for path in folder.iterdir()
            if path.name not in ("__init__.py", "__pycache__", "py.typed") and path.name != "migrations"
        ]
        assert len(entries) <= MAX_ENTRIES, f"{folder.name}: {len(entries)} entries"


@pytest.mark.parametrize("module", pure_modules())
def test_pure(module: str) -> None:
    """A pure module has no way to wait, to read a clock, or to reach a file or the network."""
    roots = {name.split(".")[0] for name in imported(module)}
    assert not roots & {*OUTSIDE.split(), *(set(FOREIGN) - {"msgspec"})}
    assert not {name for name in imported(module) if name.split(".")[0] == "urllib"} - {"urllib.parse"}
    called = {
        node.func.id for node in ast.walk(parsed(module)) if isinstance(node, ast.Call) and hasattr(node.func, "id")
    }
    assert not called & {"open", "print", "input", "exec", "eval"}
    awaits = any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(parsed(module)))
    assert not awaits or module in AWAITS


def test_foreign_packages() -> None:
    """What is not ours or Python's is imported where it belongs, and nowhere else."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        for name in imported(module):
            root = name.split(".")[0]
            if root not in sys.stdlib_module_names and root != "arbstr_asgi":
                found.setdefault(root, set()).add(module)
    assert set(found) == set(FOREIGN)
    for package, modules in found.items():
        allowed = FOREIGN[package].split()
        prefixes = tuple(name.rstrip("*") for name in allowed if name.endswith("*"))
        assert {
            module for module in modules if module not in allowed and not module.startswith(prefixes or "-")
        } == set()


@pytest.mark.parametrize(("module", "packages"), ONLY_FOR_TYPES.items())
def test_only_for_types(module: str, packages: str) -> None:
    """The gateway names httpx and databases in its signature, and does nothing with them."""
    tree = parsed(module)
    annotations = [node.annotation for node in ast.walk(tree) if isinstance(node, ast.arg) and node.annotation]
    in_types = {id(inner) for annotation in annotations for inner in ast.walk(annotation)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in in_types}
    assert not used & set(packages.split())


def test_sizes() -> None:
    """A module fits in a reader's head, and a function on a screen."""
    long = [
        f"{module}: {n}"
        for module in MODULES
        if (n := len(MODULES[module].read_text().splitlines())) > MAX_MODULE_LINES
    ]
    for module in MODULES:
        for node in ast.walk(parsed(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{module}.{node.name}: {lines}")
    assert long == []


def test_docstrings() -> None:
    """Every module says in its first line what it is for."""
    for module in MODULES:
        said = ast.get_docstring(parsed(module))
        assert said, module
        assert said.splitlines()[0].endswith((".", ":")), module


def test_public_api() -> None:
    """`__all__` is what the package exports, in order, and all of it is there."""
    exported = {
        alias.asname or alias.name
        for node in ast.walk(parsed("arbstr_asgi"))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert arbstr_asgi.__all__ == sorted(exported)
    assert all(getattr(arbstr_asgi, name).__doc__ for name in arbstr_asgi.__all__)
    assert arbstr_asgi.__version__.count(".") == 2
    assert (PACKAGE / "py.typed").exists()


def test_every_module_is_importable_alone() -> None:
    """No module needs another to have been imported before it."""
    names = ["arbstr_asgi" if name == "arbstr_asgi" else f"arbstr_asgi.{name}" for name in MODULES if name != "asgi"]
    for name in names:
        assert importlib.import_module(name).__name__ == name


@pytest.mark.parametrize(("then", "allowed"), LIGHT.items())
def test_imports_are_light(then: str, allowed: set[str]) -> None:
    """What a gateway needs is imported where one is made: not by an import of the package, nor by `arbstr --help`."""
    script = f"{then}\nimport sys\nsys.exit(' '.join(sys.modules))"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environ, check=False
    )
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "arbstr_asgi.app" in loaded
    assert loaded & {*FOREIGN, "aiosqlite", "sqlite3"} <= allowed
    assert not {"arbstr_asgi.gateway.gateway", "arbstr_asgi.ledger.ledger"} & loaded


def test_http_clients_are_imported_late() -> None:
    """Importing the package and constructing the gateway loads no HTTP client; opening it does."""
    program = CONSTRUCTS + "import sys; print(sorted({'aiohttp', 'httptools', 'httpx_aiohttp'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


WATCHED = """
import sys, importlib
for name in {foreign!r}:
    importlib.import_module(name)
import asyncio, ssl, alembic.command, sqlalchemy.ext.asyncio, hypercorn.asyncio, hypercorn.run, starlette.routing
import starlette.applications, starlette.responses, databases.core, httpx_aiohttp, concurrent.futures, aiosqlite

seen = []
QUIET = (".py", ".pyc", ".so", ".pyd")

def watch(event, arguments):
    if event == "open" and not str(arguments[0]).rstrip("0123456789").rstrip(".").endswith(QUIET):
        seen.append((event, str(arguments[0])))
    elif event.split(".")[0] in ("socket", "sqlite3", "subprocess", "tempfile", "shutil", "_thread"):
        seen.append((event, str(arguments)[:80]))
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.putenv", "os.fork", "os.system"):
        if "__pycache__" not in str(arguments) and ".pyc" not in str(arguments):
            seen.append((event, str(arguments)[:80]))

sys.addaudithook(watch)
{then}
print(seen)
sys.exit(1 if seen else 0)
"""
IMPORTS = "\n".join(
    f"import {name if name == 'arbstr_asgi' else f'arbstr_asgi.{name}'}" for name in MODULES if name != "asgi"
)
CONSTRUCTS = """
from arbstr_asgi import Arbstr, ArbstrMiddleware, Config, DatabaseConfig, Provider
provider = Provider(name="p", url="http://127.0.0.1:1/v1")
for url in ("sqlite+aiosqlite:///never.db", "postgresql+asyncpg://u:p@h/d", "mysql+aiomysql://u:p@h/d"):
    config = Config(providers=[provider], database=DatabaseConfig(url=url))
    ArbstrMiddleware(Arbstr(config), config)
"""


def watched(then: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run `then` in a process that notes what it opens, connects and starts."""
    return run(WATCHED.format(foreign=sorted(FOREIGN), then=then), folder)


def run(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=folder, check=False
    )


def test_no_import_side_effects(tmp_path: Path) -> None:
    """Importing everything and constructing the gateway opens no file, no socket, no database and no thread."""
    done = watched(IMPORTS + CONSTRUCTS, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_watch_sees(tmp_path: Path) -> None:
    """The watch of the test above is no blind one."""
    then = "import socket, sqlite3; open('x.txt', 'w'); sqlite3.connect('x.db'); socket.gethostname()"
    done = watched(then, tmp_path)
    assert done.returncode == 1
    for event in ("open", "sqlite3.connect", "socket.gethostname"):
        assert f"('{event}', " in done.stdout


def test_asgi_reads_its_file_only(tmp_path: Path) -> None:
    """`asgi` reads the file that ARBSTR_CONFIG names when it is imported, and opens nothing else."""
    path = tmp_path / "some.toml"
    path.write_text('[[providers]]\nname = "p"\nurl = "http://127.0.0.1:1/v1"\n')
    then = f"{IMPORTS}\nimport os\nos.environ.__dict__['_data'][b'ARBSTR_CONFIG'] = {str(path).encode()!r}\n"
    done = watched(then + "import arbstr_asgi.asgi", tmp_path)
    assert done.stdout == f"[('open', {str(path)!r})]\n"
    assert sorted(tmp_path.iterdir()) == [path]
    missing = run("import arbstr_asgi.asgi", tmp_path)
    assert missing.stderr.splitlines()[-1] == ("arbstr_asgi.errors.ConfigError: arbstr.toml: No such file or directory")
