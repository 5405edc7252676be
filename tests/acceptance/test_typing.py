"""What a type checker says of a user's code: nothing where it is right, and something where it is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER_CODE = Path(__file__).parent / "typing" / "api.py"
START = """
from decimal import Decimal
from arbstr_asgi import Arbstr, ArbstrMiddleware, Caller, Config, Provider
provider = Provider(name="p", url="http://h")
config = Config(providers=(provider,))
llm = Arbstr(config)
"""
WRONG = {
    "identify says a number": ("Arbstr(config, identify=lambda scope: 42)", "arg-type|return-value"),
    "identify takes nothing": ("Arbstr(config, identify=lambda: 'a')", "arg-type|misc"),
    "async identify says bytes": (
        "async def who(scope: object) -> bytes:\n    return b''\nArbstrMiddleware(llm, config, identify=who)",
        "arg-type",
    ),
    "a name that is a number": ("Caller(42)", "arg-type"),
    "a caller is frozen": ("Caller('a').end_user = 'b'", "misc"),
    "the configuration is frozen": ("config.metering = 'require'", "misc"),
    "no such metering": ("Config(providers=(provider,), metering='sometimes')", "arg-type"),
    "no such setting": ("Provider(name='p', url='http://h', retries=3)", "call-arg"),
    "settings have names": ("Provider('p', 'http://h')", "misc|call-arg|arg-type"),
    "a missing configuration": ("ArbstrMiddleware(llm)", "call-arg"),
    "a key that is a number": ("Provider(name='p', url='http://h', api_key=1)", "arg-type"),
    "a key of a function that gives a number": (
        "Provider(name='p', url='http://h', api_key=lambda: 1)",
        "arg-type|return-value",
    ),
    "a client of another kind": ("Arbstr(config, client='http')", "arg-type"),
    "float money": ("llm.ledger.spawn_usage_update('id', 1, 2, 0.5)", "arg-type"),
    "a missing column": ("llm.ledger.spawn_usage_update('id', 1, 2)", "call-arg"),
    "private": ("from arbstr_asgi import Gateway", "attr-defined"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the checks here, and none of it in the project."""
    return tmp_path_factory.mktemp("mypy")


def checked(path: Path, cache: Path) -> "subprocess.CompletedProcess[str]":
    """Run mypy on a user's file, with no configuration of ours."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(cache)]
    command += ["--no-error-summary", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


def test_right_use(cache: Path) -> None:
    """All four ways of use pass the strictest check, with the types that the documentation promises."""
    done = checked(USER_CODE, cache)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_wrong_use(cache: Path, tmp_path: Path) -> None:
    """Each misuse is an error on its own line; the lines before them are none."""
    lines = START.splitlines()
    expected: dict[int, tuple[str, str]] = {}
    for name, (code, kind) in WRONG.items():
        lines += code.splitlines()
        expected[len(lines)] = (name, kind)
    path = tmp_path / "wrong.py"
    path.write_text("\n".join(lines) + "\n")
    done = checked(path, cache)
    assert done.returncode == 1
    found: dict[int, str] = {}
    for line in done.stdout.splitlines():
        place, separator, message = line.partition(": error: ")
        if separator:
            found[int(place.rpartition(":")[2])] = message
    assert sorted(found) == sorted(expected), done.stdout
    for number, (name, kind) in expected.items():
        assert any(f"[{one}]" in found[number] for one in kind.split("|")), f"{name}: {found[number]}"
