"""How the package is built: imports go one way, rooms keep to themselves, nothing happens at import."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import arbstr_asgi
from arbstr_asgi.database.records import LedgerEntry

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "arbstr_asgi"
MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 60

# A module may import what is on the lines above its own, never what is beside or below it.
LEVELS = """
config estimating metrics terminal
errors spans entry usage interrupt stopwatch learning lifespan workers orders mock_reply metering.sse metering.grammar
callid
metering.excerpt estimating.keeping estimating.tokens
ledger.quiet tries mock stats.cursor stats.zones stats.histogram
stats.query
stats.plan stats.tally
stats
terminal.shown terminal.sparkline terminal.recent stats.moments stats.fields stats.telling
terminal.table terminal.series stats.span stats.lines terminal.remote
stats.params terminal.screen
stats.shapes terminal.options
ledger.columns ledger.faults ledger.losses ledger.snapshot ledger.slots ledger.turns ledger.memory
config.tomlfile config.variables config.unsupported config.places requestlog
config.checks replies config.section prompt splice metering.reading metering.stripping metering.pruning
metering.template
ledger.values ledger.statements ledger.location
config.apikey config.keysources ledger.fragments ledger.marks
config.rates config.settings chat config.policies
metering.meter metering.lean ledger.driver ledger.backlog ledger.trouble ledger.degrading supervisor
ledger.aggregates ledger.asked estimating.texts
config.provider estimate aliasing estimating.estimator
headers config.config drains holding leaving matching pricing keys transports metering.plain metering.events
ledger.sessions ledger.hand ledger.migrations ledger.rollups ledger.removal ledger.ordering
callers body models health routing watching closing verdict upstream listing metrics.labels ledger.closed ledger.live
answers export
ledger.sqlite ledger.postgresql ledger.mysql ledger.schema ledger.statistics ledger.roller
breaker lookahead ledger.target ledger.holder metering.decoding metering.sniffing ledger.pages ledger.upkeep
config.advice config.keyreport quote
ledger.spill ledger.migrate metering.opening ledger.eraser ledger.reader ledger.caretaker
ledger.spiller ledger.replay ledger.readable
ledger.writer ledger.visit
ledger.ledger
ledger metering
terminal.source
terminal.overview terminal.watch
terminal.lookups terminal.chores
outcome first_event metrics.gauges metrics.exposition
metrics.metrics
extras
metrics.sharing
account
head
asking relay
desk
failover
exchange
running
gateway
reports
endpoints probes
app middleware
arbstr_asgi
asgi serve
mocks worker
demo mock_server
cli
"""

PURE = """
errors spans entry usage stopwatch drains holding learning leaving replies chat headers routing pricing outcome breaker
estimate
matching prompt splice aliasing tries verdict first_event config.apikey config.keysources config.variables
config.unsupported config.places terminal.table listing models health quote terminal.shown terminal.sparkline
terminal.recent terminal.series terminal.screen orders mock_reply metrics.labels estimating.texts metering
metering.sse metering.reading metering.stripping metering.meter metering.grammar metering.excerpt metering.pruning
metering.plain metering.template metering.lean metering.events metering.decoding metering.sniffing
metering.opening ledger.columns ledger.values
ledger.statements ledger.snapshot ledger.degrading ledger.fragments ledger.memory ledger.asked ledger.aggregates
ledger.rollups ledger.marks
stats stats.cursor stats.zones stats.query stats.histogram stats.plan stats.tally stats.moments stats.span
stats.fields stats.params stats.telling stats.shapes stats.lines
"""
OUTSIDE = "asyncio concurrent http io os pathlib random selectors socket ssl subprocess tempfile threading time urllib"

# Who may import which package that is not Python's own; a package that is not here may not be imported at all.
FOREIGN = {
    "aiohttp": "transports upstream",
    "httpx_aiohttp": "transports",
    "httpx": "transports upstream gateway app middleware demo terminal.remote",
    "databases": "ledger.* gateway app middleware",
    "sqlalchemy": "ledger.migrations",
    "alembic": "ledger.migrations",
    "asyncpg": "ledger.postgresql",
    "pymysql": "ledger.mysql",
    "aiomysql": "ledger.mysql",
    "starlette": "app asgi body endpoints exchange export gateway lifespan middleware mock probes relay reports "
    "watching",
    "hypercorn": "serve",
    "uvloop": "serve",
    "click": "cli terminal.chores terminal.lookups mock_server terminal.options",
    "tenacity": "ledger.trouble failover",
    "prometheus_client": "metrics.metrics metrics.gauges metrics.exposition metrics.sharing",
    "bpe_openai": "estimating.tokens",
    "msgspec": "*",
}
ONLY_FOR_TYPES = {"gateway": "httpx databases", "app": "httpx databases", "middleware": "httpx databases"}


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


def ours(name: str) -> str:
    """The name of a module of ours below the package."""
    return name.removeprefix("arbstr_asgi.")


def test_every_module_has_a_level() -> None:
    """Each module is on exactly one line, and none is there that does not exist."""
    assert sorted(LEVELS.split()) == sorted(MODULES)


def test_imports_go_one_way() -> None:
    """No module imports one of its own level or of a level above it."""
    level = {name: number for number, line in enumerate(LEVELS.strip().splitlines()) for name in line.split()}
    wrong = [
        f"{module} imports {ours(name)}"
        for module in MODULES
        for name in imported(module)
        if name.split(".")[0] == "arbstr_asgi" and level[ours(name)] >= level[module]
    ]
    assert wrong == []


@pytest.mark.parametrize("module", PURE.split())
def test_pure(module: str) -> None:
    """A pure room has no way to wait, to read a clock, or to reach a file or the network."""
    roots = {name.split(".")[0] for name in imported(module)}
    assert not roots & {*OUTSIDE.split(), *(set(FOREIGN) - {"msgspec"})}
    called = {
        node.func.id for node in ast.walk(parsed(module)) if isinstance(node, ast.Call) and hasattr(node.func, "id")
    }
    assert not called & {"open", "print", "input", "exec", "eval"}
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(parsed(module))) or (
        module == "replies"  # it is handed the `send` that it awaits
    )


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
    """The shells name httpx and databases in their signatures, and do nothing with them."""
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


def test_readme_names_every_column() -> None:
    """The README says of every column what it holds."""
    table = (ROOT / "README.md").read_text().partition("## A row")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    named = {name.strip("` ") for cell in cells for name in cell.split(",")}
    assert {"id", *LedgerEntry.__struct_fields__} - {"tries"} <= named
    assert named - {"id", *LedgerEntry.__struct_fields__} <= {"column", "---"}


def test_every_module_is_importable_alone() -> None:
    """No module needs another to have been imported before it."""
    names = ["arbstr_asgi" if name == "arbstr_asgi" else f"arbstr_asgi.{name}" for name in MODULES if name != "asgi"]
    for name in names:
        assert importlib.import_module(name).__name__ == name


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
    script = WATCHED.format(foreign=sorted(FOREIGN), then=then)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=folder, check=False
    )


def test_no_import_side_effects(tmp_path: Path) -> None:
    """Importing everything and constructing the gateway opens no file, no socket, no database and no thread."""
    done = watched(IMPORTS + CONSTRUCTS, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "then", ["open('x.txt', 'w')", "import sqlite3; sqlite3.connect('x.db')", "import socket; socket.gethostname()"]
)
def test_the_watch_sees(then: str, tmp_path: Path) -> None:
    """The watch of the test above is no blind one."""
    done = watched(then, tmp_path)
    assert done.returncode == 1
    assert done.stdout != "[]\n"


def test_asgi_reads_its_file_only(tmp_path: Path) -> None:
    """`asgi` reads the file that ARBSTR_CONFIG names when it is imported, and opens nothing else."""
    path = tmp_path / "some.toml"
    path.write_text('[[providers]]\nname = "p"\nurl = "http://127.0.0.1:1/v1"\n')
    then = f"{IMPORTS}\nimport os\nos.environ.__dict__['_data'][b'ARBSTR_CONFIG'] = {str(path).encode()!r}\n"
    done = watched(then + "import arbstr_asgi.asgi", tmp_path)
    assert done.stdout == f"[('open', {str(path)!r})]\n"
    assert sorted(tmp_path.iterdir()) == [path]
    missing = watched("import arbstr_asgi.asgi", tmp_path)
    assert missing.stderr.splitlines()[-1] == ("arbstr_asgi.errors.ConfigError: arbstr.toml: No such file or directory")
