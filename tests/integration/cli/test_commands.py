"""The `arbstr` command, in this process where it can be and as a process of its own where it serves."""

import json
import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arbstr_asgi import Config, Provider, __version__
from arbstr_asgi.api.providers import provider_listing
from arbstr_asgi.cli.main import STANDALONE, main
from arbstr_asgi.cli.mock.directives import CHEAP, EXPENSIVE, MEANINGS
from arbstr_asgi.cli.mock.provider import MockProvider
from arbstr_asgi.stats.serialize import to_json

SECONDS = 30.0
COMMANDS = ["check", "demo", "forget", "migrate", "providers", "prune", "rollups", "serve", "stats", "tail"]
ALPHA_KEY = "sk-alpha-secret-key"
GOOD = """
[server]
auth_token = "${ARBSTR_TOKEN}"
[[providers]]
name = "alpha"
url = "https://api.example.com/v1"
api_key = "${ALPHA_KEY}"
models = ["gpt-4o", "gpt-4o-mini"]
input_rate = 10000
output_rate = 30000
[[providers]]
name = "beta"
url = "http://127.0.0.1:1/v1"
input_rate = 0
output_rate = 0
"""


def arbstr(*arguments: str, **environ: str | None) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, [*arguments], env={"ARBSTR_CONFIG": None, "ALPHA_KEY": ALPHA_KEY, **environ})


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    """A configuration file."""
    path = folder / "arbstr.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, option: str) -> None:
    """Each command says what it is for and which options it has."""
    result = arbstr(*command.split(), option)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.output.startswith(f"Usage: main {command}".strip())
    assert len(result.output.splitlines()) > 4


def test_help_names_the_commands() -> None:
    """The list of commands is complete."""
    assert re.findall(r"^  (\w+)  ", arbstr("--help").output, re.MULTILINE) == COMMANDS


def test_version() -> None:
    """`--version` says the package's version."""
    assert arbstr("--version").output == f"arbstr, version {__version__}\n"


@pytest.mark.parametrize("command", [["serve"], ["serve", "--mock"], ["demo"]])
def test_without_hypercorn(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hypercorn is not installed, what needs it says how to get it, in one line."""
    for name in [name for name in sys.modules if name.split(".")[0] == "hypercorn"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("server", "demo", "mock.server"):
        monkeypatch.delitem(sys.modules, f"arbstr_asgi.cli.{name}", raising=False)
        monkeypatch.delattr(f"arbstr_asgi.cli.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "hypercorn", None)
    result = arbstr(*command)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {STANDALONE}\n"


def test_check(tmp_path: Path) -> None:
    """A good file is summed up, without its secrets and without a warning."""
    result = arbstr("check", "-c", str(written(tmp_path, GOOD)), ARBSTR_TOKEN="t-secret")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "listen     127.0.0.1:8080, 1 worker(s)",
        "callers    bearer token",
        "metering   respect",
        f"spill      {tmp_path / 'arbstr.db-spill'}",
        "provider   alpha: https://api.example.com/v1 (gpt-4o, gpt-4o-mini; key: from ${ALPHA_KEY} sk-alp…***)",
        "provider   beta: http://127.0.0.1:1/v1 (every model; key: none)",
        "ok",
    ]


def test_check_warnings(tmp_path: Path) -> None:
    """What is probably not meant is a warning each: no guard, no rates, a file that others can read."""
    path = written(tmp_path, '[[providers]]\nname = "a"\nurl = "http://h"\ninput_rate = 1\n', mode=0o644)
    result = arbstr("check", ARBSTR_CONFIG=str(path))
    assert result.exit_code == 0
    assert result.stdout.endswith("ok\n")
    rates, guard, mode = result.stderr.splitlines()
    assert rates.startswith("warning: provider a: input_rate or output_rate is not set")
    assert guard.startswith("warning: nobody guards the server")
    assert mode.endswith("chmod 600 it if it holds a key")


@pytest.mark.parametrize(
    "key", ['"sk-quoted-key-1234"', "'sk-quoted-key-1234'", " sk-spaced-key-1234", "sk-spaced-key-1234 "]
)
def test_check_warns_of_quotes(key: str, tmp_path: Path) -> None:
    """A key that an env file's reader has left in its quotes, or with spaces, is a warning that does not show it."""
    config = '[[providers]]\nname = "a"\nurl = "http://h"\ninput_rate = 1\noutput_rate = 1\n[server]\n'
    path = written(tmp_path, config + 'tokens = [{ name = "ann", token = "${ANN}" }]\n')
    result = arbstr("check", "-c", str(path), ARBSTR_A_API_KEY=key, ANN='"t"')
    assert result.exit_code == 0
    of_key, of_token = result.stderr.splitlines()
    assert of_key.startswith("warning: provider a: its key has quotes or spaces around it")
    assert of_token.startswith("warning: server.tokens: the token of 'ann' has quotes")
    assert "1234" not in result.stderr


def test_check_warns_of_quotes_in_a_file(tmp_path: Path) -> None:
    """So is the key in a file of its own."""
    (tmp_path / "key").write_text("'sk-quoted-key-1234'\n")
    (tmp_path / "key").chmod(0o600)
    config = '[[providers]]\nname = "a"\nurl = "http://h"\ninput_rate = 1\noutput_rate = 1\napi_key_file = "key"\n'
    result = arbstr("check", "-c", str(written(tmp_path, config + "[server]\npublic = true\n")))
    assert result.stderr.startswith("warning: provider a: its key has quotes or spaces around it")


SOURCES = """
[server]
public = true
[[providers]]
name = "alpha"
url = "https://a/v1"
api_key = "sk-literal-0123456789"
input_rate = 10000
output_rate = 30000.5
base_fee = 1
tier = "frontier"
[providers.model_rates.gpt-4o]
output_rate = 12.25
[[providers]]
name = "beta"
url = "https://b/v1"
api_key = "${BETA_KEY}"
models = ["m-1", "m-2"]
[[providers]]
name = "gamma"
url = "https://c/v1"
api_key_file = "gamma.key"
[[providers]]
name = "delta"
url = "https://d/v1"
[[providers]]
name = "eps"
url = "https://e/v1"
"""
ENVIRON = {"BETA_KEY": "sk-beta-0123456789", "ARBSTR_DELTA_API_KEY": "short-secret"}
GAMMA_KEY = "sk-gamma-0123456789"


def with_sources(folder: Path, mode: int = 0o600) -> Path:
    """A configuration with a key of each kind, and the key's file beside it."""
    path = written(folder, SOURCES, mode)
    file = folder / "gamma.key"
    file.write_text(GAMMA_KEY + "\n")
    file.chmod(mode)
    return path


def shows_no_key(text: str) -> bool:
    """Whether no more than the beginning of a key is there."""
    return not any(key in text for key in ("literal-0", "beta-0", "gamma-0", "short", "secret"))


def test_check_says_where_keys_come_from(tmp_path: Path) -> None:
    """Each key's source is said, with a mask of a long one; keys in the file and open modes are warnings."""
    path = with_sources(tmp_path, 0o640)
    result = arbstr("check", "-c", str(path), **ENVIRON)
    assert result.exit_code == 0
    keys = [line.rpartition("; key: ")[2] for line in result.stdout.splitlines() if line.startswith("provider")]
    assert keys == [
        "literal sk-lit…***)",
        "from ${BETA_KEY} sk-bet…***)",
        "file gamma.key sk-gam…***)",
        "ARBSTR_DELTA_API_KEY)",
        "none)",
    ]
    warnings = [line.removeprefix("warning: ") for line in result.stderr.splitlines()]
    unknown = "input_rate or output_rate is not set, so its cost is unknown (NULL)"
    assert warnings == [
        *(f"provider {name}: {unknown}" for name in ("beta", "gamma", "delta", "eps")),
        "provider eps: no key for an https:// provider; set ARBSTR_EPS_API_KEY, or api_key or api_key_file",
        f"provider alpha: its key itself is in {path}; "
        'say api_key = "${VARIABLE}" or api_key_file, or set ARBSTR_ALPHA_API_KEY instead',
        f"{path} can be read by others; chmod 600 it if it holds a key",
        f"{tmp_path / 'gamma.key'} can be read by others; chmod 600 it",
    ]
    assert shows_no_key(result.output)


@pytest.mark.parametrize(("content", "said"), [(None, "No such file or directory"), ("\n", "its first line is no key")])
def test_check_reads_key_files(content: str | None, said: str, tmp_path: Path) -> None:
    """A key's file that is not there, or has no key in it, is a warning."""
    path = with_sources(tmp_path)
    file = tmp_path / "gamma.key"
    file.unlink()
    if content is not None:
        file.write_text(content)
        file.chmod(0o600)
    result = arbstr("check", "-c", str(path), **ENVIRON)
    assert result.exit_code == 0
    assert f"warning: provider gamma: {file}: {said}" in result.stderr.splitlines()


def test_check_reads_certificates(tmp_path: Path) -> None:
    """A `ca_file` that can't be read is an error, as it is at start."""
    path = written(tmp_path, GOOD + 'ca_file = "none.pem"\n')
    result = arbstr("check", "-c", str(path), ARBSTR_TOKEN="t")
    assert result.exit_code == 1
    assert result.stderr == f"Error: providers[1].ca_file: {tmp_path / 'none.pem'}: No such file or directory\n"


def test_rates_of_all_models_are_enough(tmp_path: Path) -> None:
    """Where each model that is served has its rates, nothing is unknown."""
    rates = "{ input_rate = 1, output_rate = 2 }"
    text = '[server]\npublic = true\n[[providers]]\nname = "a"\nurl = "http://h"\nmodels = ["m"]\n'
    text += f"model_rates.m = {rates}\n"
    assert arbstr("check", "-c", str(written(tmp_path, text))).stderr == ""
    more = text + 'aliases.n = "m"\n'
    assert "is not set" in arbstr("check", "-c", str(written(tmp_path, more))).stderr


def test_providers(tmp_path: Path) -> None:
    """The table has each provider's rates and those of its models, and of keys the source and a mask."""
    result = arbstr("providers", "-c", str(with_sources(tmp_path)), **ENVIRON)
    assert (result.exit_code, result.stderr) == (0, "")
    head, _, *lines = [re.split(r"  +", line.strip()) for line in result.stdout.split("\n\n")[0].splitlines()]
    assert head == ["name", "url", "models", "input", "output", "base", "key"]
    assert lines == [
        ["alpha", "https://a/v1", "every model", "10000", "30000.5", "1", "literal sk-lit…***"],
        ["gpt-4o", "10000", "12.25", "1"],
        ["beta", "https://b/v1", "m-1, m-2", "-", "-", "0", "from ${BETA_KEY} sk-bet…***"],
        ["gamma", "https://c/v1", "every model", "-", "-", "0", "file gamma.key sk-gam…***"],
        ["delta", "https://d/v1", "every model", "-", "-", "0", "ARBSTR_DELTA_API_KEY"],
        ["eps", "https://e/v1", "every model", "-", "-", "0", "none"],
    ]
    assert "sats per 1,000,000 tokens" in result.stdout
    assert shows_no_key(result.output)


def test_providers_as_json(tmp_path: Path) -> None:
    """The JSON has the shape of GET /providers, and amounts that are numbers of the same value."""
    result = arbstr("providers", "--json", "-c", str(with_sources(tmp_path)), **ENVIRON)
    listing = json.loads(result.stdout, parse_float=Decimal)
    assert set(listing) == {"providers", "rate_unit"}
    assert listing["rate_unit"] == "sats_per_1m_tokens"
    alpha, beta, gamma, delta, eps = listing["providers"]
    assert alpha == {
        "name": "alpha",
        "url": "https://a/v1",
        "models": [],
        "input_rate_sats_per_1m": 10000,
        "output_rate_sats_per_1m": Decimal("30000.5"),
        "base_fee_sats": 1,
        "model_rate_count": 1,
        "tier": "frontier",
        "source": None,
        "provider_id": None,
        "routable": True,
        "has_api_key": True,
        "api_key": "sk-lit…***",
    }
    assert (beta["models"], beta["input_rate_sats_per_1m"], beta["api_key"]) == (["m-1", "m-2"], None, "sk-bet…***")
    assert [(one["has_api_key"], one["api_key"]) for one in (gamma, delta, eps)] == [
        (True, "sk-gam…***"),
        (True, None),
        (False, None),
    ]
    assert shows_no_key(result.output)


@pytest.mark.parametrize("amount", ["0.1", "1E+2", "0", "123456789012345678901234567890.123456789"])
def test_amounts_in_json(amount: str) -> None:
    """An amount is the number that it was, with all of its digits; the key of a function is not asked for."""
    one = Provider(name="a", url="http://h", base_fee=Decimal(amount), api_key=lambda: "sk-0123456789abcdef")
    listing = provider_listing(Config(providers=[one]))
    assert f'"base_fee_sats":{amount}'.encode() in to_json(listing)
    assert (listing["providers"][0]["has_api_key"], listing["providers"][0]["api_key"]) == (True, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "providers"),
        ("[[providers]\n", "not valid TOML"),
        (GOOD.replace("input_rate = 10000", "input_rat = 10000"), "unknown field `input_rat`"),
        (GOOD.replace("input_rate = 10000", "input_rate = -1"), "input_rate: must be a number that is not negative"),
        (GOOD.replace("${ARBSTR_TOKEN}", "${NOT_SET_ANYWHERE}"), "server.auth_token: environment variable NOT_SET"),
        (GOOD.replace("https://api", "ftp://api"), "url: must be http:// or https://"),
    ],
)
def test_check_bad(text: str, said: str, tmp_path: Path) -> None:
    """A bad file is one line that says where, without a traceback and without a secret, and exit status 1."""
    result = arbstr("check", "-c", str(written(tmp_path, text)), ARBSTR_TOKEN="t-secret")
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert said in line
    assert "secret" not in result.stderr


@pytest.mark.parametrize("command", ["check", "serve", "migrate", "providers"])
def test_no_file(command: str, tmp_path: Path) -> None:
    """A file that isn't there is one line, for each command that needs one."""
    result = arbstr(command, "-c", str(tmp_path / "none.toml"))
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path / 'none.toml'}: No such file or directory\n"


@pytest.mark.parametrize("listen", ["8080", ":8080", "127.0.0.1:", "127.0.0.1:99999", "localhost:http"])
def test_bad_listen(listen: str, tmp_path: Path) -> None:
    """An address that nobody can listen on is refused before anything starts."""
    path = written(tmp_path, GOOD)
    for arguments in (["serve", "-c", str(path), "-l", listen], ["serve", "--mock", "-l", listen]):
        result = arbstr(*arguments, ARBSTR_TOKEN="t")
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: server.listen: must be host:port")


def tables(path: Path) -> set[str]:
    """The tables of an SQLite file."""
    with sqlite3.connect(path) as connection:
        found = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    return found


def test_migrate(tmp_path: Path) -> None:
    """`migrate` makes the tables of a new file, and has nothing to do the second time."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'new.db'}"
    first, second = arbstr("migrate", "--url", url), arbstr("migrate", "--url", url)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.output
    assert first.output != second.output
    assert "requests" in tables(tmp_path / "new.db")


def test_migrate_from_config(tmp_path: Path) -> None:
    """The URL and the prefix come from the file, where the options say nothing else."""
    database = f'[database]\npath = "{tmp_path / "new.db"}"\ntable_prefix = "mine_"\n'
    path = written(tmp_path, GOOD + database)
    assert arbstr("migrate", "-c", str(path), ARBSTR_TOKEN="t").exit_code == 0
    assert "mine_requests" in tables(tmp_path / "new.db")
    assert arbstr("migrate", "-c", str(path), "--table-prefix", "", ARBSTR_TOKEN="t").exit_code == 0
    assert "requests" in tables(tmp_path / "new.db")


@pytest.mark.parametrize("dialect", ["sqlite+aiosqlite:///", "postgresql+asyncpg://u@h/", "mysql+aiomysql://u@h/"])
def test_migrate_sql(dialect: str, tmp_path: Path) -> None:
    """`--sql` prints what `migrate` would run, and touches no database."""
    result = arbstr("migrate", "--url", f"{dialect}{tmp_path.name}/none.db", "--table-prefix", "arbstr_", "--sql")
    assert result.exit_code == 0
    assert "CREATE TABLE arbstr_requests" in result.output.replace("`", "").replace('"', "")
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("url", ["nonsense", "oracle://h/x", "sqlite+aiosqlite:////nowhere/at/all.db"])
def test_migrate_bad_url(url: str) -> None:
    """A database that can't be is one line."""
    result = arbstr("migrate", "--url", url)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.output


def environment(**more: str) -> dict[str, str]:
    """For a process of our own: no proxies, no configuration of this machine's user."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    kept.pop("ARBSTR_CONFIG", None)
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def listed(text: str, heading: str) -> list[dict[str, str]]:
    """The rows of the table below a heading, whose cells have no spaces."""
    header, _, *found = text.partition(heading)[2].partition(":\n\n")[2].partition("\n\n")[0].splitlines()
    return [dict(zip(header.split(), line.split(), strict=True)) for line in found]


def test_demo(tmp_path: Path) -> None:
    """`arbstr demo` shows the injection, equal digests, priced rows and a failover, and leaves nothing behind."""
    command = [sys.executable, "-c", "from arbstr_asgi.cli.main import main; main()", "demo"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=tmp_path,
        env=environment(TMPDIR=str(temporary)),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    streaming, _, plain = done.stdout.partition("A plain call")
    assert '"stream_options":{"include_usage":true}' in streaming
    assert "stream_options" not in plain
    for part in (streaming, plain):
        direct, through = re.findall(r"digest, .*?  ?([0-9a-f]{64} \(\d+ bytes\))", part)
        assert direct == through
    cells = listed(plain, "one row a call")
    assert [row["streaming"] for row in cells] == ["True", "False", "True"]
    assert [(row["provider"], row["attempts"]) for row in cells] == [(CHEAP, "1"), (CHEAP, "1"), (EXPENSIVE, "2")]
    for row, (given, answered, base) in zip(cells, [(5_000, 15_000, 0)] * 2 + [(10_000, 30_000, 1)], strict=True):
        assert (row["end_user"], row["end_reason"]) == ("alice", "completed")
        tokens = int(row["input_tokens"]) * given + int(row["output_tokens"]) * answered
        assert float(row["cost_sats"]) == pytest.approx(base + tokens / 1_000_000)
    assert f"answered by     {EXPENSIVE}, status 200" in plain
    attempts = listed(plain.replace("provider answered 503", "failed"), "The attempts of the last call")
    assert [(row["number"], row["provider"], row["status"]) for row in attempts] == [
        ("1", CHEAP, "503"),
        ("2", EXPENSIVE, "200"),
    ]
    assert attempts[0]["error_message"] == "failed"
    assert list(temporary.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


@pytest.mark.parametrize("differs", ["plain", "stream"])
def test_demo_differs(differs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo in which the client can tell the difference says so and ends with 1."""
    chat = MockProvider._chat

    async def lying(self: MockProvider, request: Request) -> Response:
        response = await chat(self, request)
        stream = b'"stream": true' in self.received[-1]
        if "idempotency-key" not in request.headers and stream == (differs == "stream"):  # a direct call
            return JSONResponse({"not": "the same"})
        return response

    monkeypatch.setattr(MockProvider, "_chat", lying)
    result = arbstr("demo")
    assert result.exit_code == 1
    assert "The client's bytes DIFFER from the provider's." in result.output


def first_line(process: "subprocess.Popen[str]") -> str:
    """What a process says first, if it does so in time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], SECONDS)
    assert ready
    return process.stdout.readline()


def answered(url: str, **options: Any) -> httpx.Response:
    """The reply of a server that has just been started."""
    deadline = time.monotonic() + SECONDS
    with httpx.Client(trust_env=False, timeout=SECONDS) as client:
        while True:
            try:
                return client.post(url, **options)
            except httpx.ConnectError:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def free_port() -> int:
    """A port that was free a moment ago."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def chat_body(word: str, model: str = "gpt-4o", *, stream: bool = False) -> dict[str, Any]:
    """A chat completion that tells the cheap provider what to do."""
    content = f"hello [{CHEAP}: {word}]" if word else "hello"
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": content}]}


def ledger_of(path: Path, count: int) -> list[dict[str, Any]]:
    """The rows that a process has written, once there are so many finished ones."""
    deadline = time.monotonic() + SECONDS
    while True:
        with sqlite3.connect(path) as connection:
            connection.row_factory = sqlite3.Row
            found = [dict(row) for row in connection.execute("SELECT * FROM requests ORDER BY id")]
        connection.close()
        if len(found) == count and all(row["end_reason"] != "in_flight" for row in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@contextmanager
def mocking(folder: Path) -> Iterator[tuple[str, list[str], "subprocess.Popen[str]"]]:
    """`arbstr serve --mock`: its URL, what it says at first, and its process."""
    port = free_port()
    script = "from arbstr_asgi.cli.main import main; main()"
    command = [sys.executable, "-c", script, "serve", "--mock", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(TMPDIR=str(folder)),
    ) as process:
        try:
            assert process.stdout is not None
            said = [first_line(process)]
            while "-d '{" not in said[-1]:
                said.append(process.stdout.readline())
                assert said[-1], process.communicate()
            yield f"http://127.0.0.1:{port}", said, process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_mock(number: signal.Signals, tmp_path: Path) -> None:
    """`arbstr serve --mock` answers any client, and ends with 0 when told to, its ledger gone."""
    with mocking(tmp_path) as (base, said, process):
        assert f"{base}/v1" in said[0]
        ledger = Path(said[0].rpartition("ledger: ")[2].strip())
        url = f"{base}/v1/chat/completions"
        plain = answered(url, json=chat_body(""))
        assert plain.json()["usage"]["completion_tokens"] > 0
        streamed = answered(url, json=chat_body("", stream=True))
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert "usage" not in streamed.text
        assert [reply.headers["x-arbstr-provider"] for reply in (plain, streamed)] == [CHEAP, CHEAP]
        assert ledger.exists()
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert not ledger.exists()
    assert f"curl -i {url}" in "".join(said)
    assert all(word in "".join(said) for word in (*MEANINGS, "/v1/models", "/v1/cost", "/providers", "/health"))


def test_serve_mock_directives(tmp_path: Path) -> None:
    """As a process of its own: a failure is failed over, odd streams keep their rows true, and a stall holds no end."""
    with mocking(tmp_path) as (base, said, process):
        ledger = Path(said[0].rpartition("ledger: ")[2].strip())
        url = f"{base}/v1/chat/completions"
        over = answered(url, json=chat_body("503"))
        assert (over.status_code, over.headers["x-arbstr-provider"]) == (200, EXPENSIVE)
        assert over.headers["x-arbstr-retries"] == f"1/{CHEAP}"
        for word in ("no-usage", "usage-everywhere", "late-error"):
            assert answered(url, json=chat_body(word, "gpt-4o-mini", stream=True)).status_code == 200
        assert answered(url, json=chat_body("", "mock-1")).status_code == 404
        rows = ledger_of(ledger, 5)
        assert [(row["provider"], row["attempts"], row["output_tokens"], row["end_reason"]) for row in rows] == [
            (EXPENSIVE, 2, 17, "completed"),
            (CHEAP, 1, None, "completed"),
            (CHEAP, 1, 17, "completed"),
            (CHEAP, 1, None, "upstream_error"),
            (None, 0, None, "completed"),
        ]
        with httpx.Client(trust_env=False, base_url=base) as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == "gpt-4o"
            assert client.post("/v1/cost", json=chat_body("")).json()["provider"] == CHEAP
            assert client.get("/health").json()["status"] == "ok"
            with suppress(httpx.TimeoutException):
                client.post(url, json=chat_body("stall"), timeout=0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=SECONDS)
        assert time.monotonic() - began < 15
    assert (process.returncode, "Traceback" in errors) == (0, False)


def test_serve_mock_is_one_process() -> None:
    """More workers would each have a ledger and providers of their own, so they are refused."""
    result = arbstr("serve", "--mock", "-w", "2")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: --mock is one process with its providers and its ledger; leave out -w\n"


def test_serve_mock_on_a_port_that_is_taken() -> None:
    """An address that somebody else has is one line here, too."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [
            sys.executable,
            "-c",
            "from arbstr_asgi.cli.main import main; main()",
            "serve",
            "--mock",
            "-l",
            listen,
        ]
        result = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False
        )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"Error: can't listen on {listen}: ")
    assert "Traceback" not in result.stderr


def test_help_names_the_mock_directives() -> None:
    """`serve --help` explains each word."""
    text = arbstr("serve", "--help").output
    for word, meaning in MEANINGS.items():
        assert re.search(rf"^ +{re.escape(word)} +{re.escape(meaning)}$", text, re.MULTILINE)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_without_a_ledger(workers: str, tmp_path: Path) -> None:
    """A ledger that can't be opened ends `serve` before it listens, with a line that says why."""
    path = written(tmp_path, GOOD + f'[database]\npath = "{tmp_path}/none/x.db"\n')
    result = arbstr("serve", "-c", str(path), "-w", workers, ARBSTR_TOKEN="t")
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: can't open the ledger .* does not exist; create it\n", result.stderr)


def test_serve_on_a_port_that_is_taken(tmp_path: Path) -> None:
    """So does an address that somebody else has."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        path = written(tmp_path, GOOD + f'[database]\npath = "{tmp_path}/x.db"\n')
        # In a process of its own, because hypercorn leaves the socket that it could not bind to the collector.
        command = [
            sys.executable,
            "-c",
            "from arbstr_asgi.cli.main import main; main()",
            "serve",
            "-c",
            str(path),
            "-l",
            listen,
        ]
        environ = {**os.environ, "ARBSTR_TOKEN": "t", "ALPHA_KEY": ALPHA_KEY}
        result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"Error: can't listen on {listen}: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + '[database]\nurl = "redis://u:PASSWORD@h/db"\n', "database.url: unknown scheme 'redis'"),
        (GOOD.replace("[server]", '[server]\nlisten = "nonsense"'), "server.listen: must be host:port"),
        (GOOD + '[database]\ntable_prefix = "a; --"\n', "table_prefix: "),
    ],
)
def test_check_sees_what_could_not_start(text: str, said: str, tmp_path: Path) -> None:
    """`check` refuses what `serve` would, and quotes no password."""
    result = arbstr("check", "-c", str(written(tmp_path, text)), ARBSTR_TOKEN="t")
    assert result.exit_code == 1
    assert said in result.stderr
    assert "PASSWORD" not in result.output
