"""`arbstr stats`, `tail`, `prune`, `forget` and `rollups`, from a configuration and from a running server."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from arbstr_asgi.cli.main import main
from arbstr_asgi.cli.mock.provider import MockProvider
from arbstr_asgi.cli.remote import RemoteSource
from arbstr_asgi.cli.server import serving
from arbstr_asgi.cli.tail import WINDOW, TailPoller
from arbstr_asgi.database.records import AttemptEntry, LedgerEntry
from arbstr_asgi.errors import ConfigError, LedgerError
from arbstr_asgi.ledger.ledger import Ledger
from tests.support.databases import an_entry, run_sql
from tests.support.servers import spawned

SECONDS = 30.0
EVIL = "evil\x1b[2J\x07\x9b31m\u202e"
NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)


def arbstr(*arguments: str, stdin: str = "", **environ: str | None) -> Result:
    """Run the command in this process."""
    environ = {"ARBSTR_CONFIG": None, "ARBSTR_TOKEN": None, **environ}
    return CliRunner().invoke(main, [*arguments], env=environ, input=stdin)


def written(folder: Path, url: str) -> str:
    """A configuration file with this database."""
    path = folder / "arbstr.toml"
    text = f'[server]\npublic = true\n[database]\nurl = {json.dumps(url)}\nspill = "{folder}/spill"\n'
    path.write_text(f'{text}[[providers]]\nname = "p"\nurl = "http://127.0.0.1:1/v1"\nmodels = ["gpt", "idle"]\n')
    return str(path)


def entry(name: str, age: timedelta, **facts: Any) -> LedgerEntry:
    """A call that has finished, so long ago."""
    good = {"model": "gpt", "provider": "p", "success": True, "end_reason": "completed", "revision": 1, "attempts": 1}
    good |= {"input_tokens": 7, "output_tokens": 17, "usage_source": "provider", "cost_sats": Decimal("1.58")}
    tries = (AttemptEntry(number=1, provider="p", timestamp=datetime.now(UTC), model="gpt", status=200, revision=1),)
    good |= {"latency_ms": 40, "end_user": "alice", "tries": tries}
    return an_entry(name, timestamp=datetime.now(UTC) - age, **{**good, **facts})


def fill(url: str, *entries: LedgerEntry) -> None:
    """Make the ledger, and write these to it."""

    async def run() -> None:
        ledger = Ledger(url)
        await ledger.open()
        for each in entries:
            ledger.record(each)
        await ledger.flush()
        await ledger.close()

    asyncio.run(run())


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration whose ledger has a few calls of the last days."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"
    failed = {"success": False, "end_reason": "timeout", "error_status": 504, "error_message": "upstream_error"}
    fill(
        url,
        entry("c-1", timedelta(minutes=1)),
        entry("c-2", timedelta(minutes=2), end_user=EVIL, model=EVIL),
        entry("c-3", timedelta(days=1), **failed),
        entry("c-4", timedelta(days=2), cost_sats=None),
    )
    return written(tmp_path, url)


def test_stats(config: str) -> None:
    """The tables have the figures, with units, and a sparkline for each group; the ledger's text is harmless."""
    result = arbstr("stats", "-c", config, "--group-by", "model")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.replace("\n", "").isprintable()
    lines = result.stdout.splitlines()
    heading = next(line for line in lines if line.startswith("model "))
    assert "cost (sats)" in heading
    assert "p95 (ms)" in heading
    found = {line.split()[0]: line.split() for line in lines[lines.index(heading) + 2 :] if line}
    assert found["gpt"][1:6] == ["3", "1", "21", "51", "3.16"]
    assert found["idle"][1:6] == ["0", "0", "0", "0", "0"]
    assert "█" in " ".join(found["gpt"])
    assert next(name for name in found if name.startswith("evil")) == "evil\\x1b[2J\\x07\\x9b31m\\u202e"


def test_stats_as_json(config: str) -> None:
    """With --json the shape is that of GET /v1/stats, and nothing in it moves the cursor."""
    result = arbstr("stats", "-c", config, "--json", "--group-by", "model", "--range", "last_1h")
    assert result.stdout.replace("\n", "").isprintable()
    found = json.loads(result.stdout)
    assert {name: each["counts"]["total"] for name, each in found["models"].items()} == {"gpt": 1, EVIL: 1, "idle": 0}


@pytest.mark.parametrize(
    ("options", "total"),
    [
        (["--end-user", "alice"], 3),
        (["--success", "false"], 1),
        (["--status", "504"], 1),
        (["--model", "idle"], 0),
        (["--since", "2000-01-01T00:00:00Z", "--until", "2001-01-01T00:00:00Z"], 0),
        (["--since", "0001-01-01T00:00:00Z"], 4),
        (["--group-by", "day,end_user", "--tz", "Asia/Tokyo"], 4),
        (["--group-by", "hour", "--range", "last_24h"], 2),
        (["--group-by", "model,provider"], 4),
    ],
)
def test_stats_options(options: list[str], total: int, config: str) -> None:
    """Filters, times and groups are those of the endpoint, in tables and in JSON."""
    found = json.loads(arbstr("stats", "-c", config, "--json", *options).stdout)
    assert found["counts"]["total"] == total
    result = arbstr("stats", "-c", config, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    assert ("No requests found" in result.stdout) == (total == 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--group-by", "tier"], "group_by must be one or two"),
        (["--range", "x\x1b"], "range must be one of last_1h"),
        (["--since", "now"], "since must be a moment"),
        (["--tz", "Mars"], "tz must be"),
        (["--status", "1e3"], "status must be a whole number"),
        (["--streaming", "maybe"], "streaming must be one of true, false"),
        (["--model", "nobody"], "There is no such model"),
        (["--url", "ftp://x"], "--url: must look like"),
        (["--url", "http://127.0.0.1:1"], "can't be reached"),
        (["-c", "none.toml"], "No such file"),
    ],
)
@pytest.mark.parametrize("command", ["stats", "tail"])
def test_refusals(command: str, options: list[str], said: str, config: str) -> None:
    """What can't be asked is one line, and the exit status 1."""
    if command == "tail" and options[0] in ("--group-by", "--range", "--since", "--tz"):
        assert arbstr(command, *options).exit_code == 2
        return
    result = arbstr(command, "-c", config, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [["stats"], ["tail"], ["prune", "--older-than", "1d"], ["rollups"]])
def test_no_ledger(command: list[str], tmp_path: Path) -> None:
    """Where there is no ledger none is made, and the line says what is missing."""
    file = tmp_path / "none.db"
    config = written(tmp_path, f"sqlite+aiosqlite:///{file}")
    result = arbstr(*command, "-c", config)
    assert (result.exit_code, "there is no such file" in result.stderr) == (1, True)
    assert not file.exists()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    before = file.read_bytes()
    result = arbstr(*command, "-c", config)
    assert (result.exit_code, "run `arbstr migrate`" in result.stderr) == (1, True)
    assert file.read_bytes() == before


def test_a_look_changes_nothing(database_url: str, tmp_path: Path) -> None:
    """Looking closes no call, claims no spill and migrates nothing, on each database."""
    fill(database_url)
    columns = "correlation_id, timestamp, model, streaming, success, usage_source, end_reason, attempts, revision"
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    values = f"'c-9', '{moment}', 'gpt', true, false, 'none', 'in_flight', 1, 0"
    run_sql(database_url, f"INSERT INTO requests ({columns}) VALUES ({values})")
    config = written(tmp_path, database_url)
    for _ in range(2):
        assert json.loads(arbstr("stats", "-c", config, "--json").stdout)["counts"]["in_flight"] == 1
    assert run_sql(database_url, "SELECT end_reason FROM requests") == [("in_flight",)]
    assert not (tmp_path / "spill").exists()


def test_prune(database_url: str, tmp_path: Path) -> None:
    """Old rows and their attempts go, with progress, and their figures stay."""
    fill(database_url, entry("old", timedelta(days=100)), entry("new", timedelta(days=1)))
    config = written(tmp_path, database_url)
    result = arbstr("prune", "-c", config, "--older-than", "90d")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("1 requests from before ")
    assert "deleted: 1 of 1" in result.stderr
    for table in ("requests", "attempts"):
        assert run_sql(database_url, f"SELECT correlation_id FROM {table}") == [("new",)]
    found = json.loads(arbstr("stats", "-c", config, "--json", "--since", "2000-01-01T00:00:00Z").stdout)
    assert found["counts"]["total"] == 2
    assert arbstr("prune", "-c", config, "--older-than", "13w").stdout.startswith("0 requests")


@pytest.mark.parametrize("age", ["90", "d", "0d", "-1d", "1.5d", "90days", "9" * 50 + "d", "٣d", "", "90d\0", "1y"])
def test_prune_of_no_age(age: str, config: str) -> None:
    """What is no age is refused, and nothing is deleted."""
    result = arbstr("prune", "-c", config, "--older-than", age)
    assert (result.exit_code, "as 90d" in result.stderr) == (2, True)


def test_prune_needs_an_age(config: str) -> None:
    """Nothing is deleted by default."""
    assert arbstr("prune", "-c", config).exit_code == 2


def test_forget(database_url: str, tmp_path: Path) -> None:
    """A person's rows go after a yes, and it is said where they were and what could not be reached."""
    fill(database_url, entry("a", timedelta(minutes=1)), entry("b", timedelta(minutes=1), end_user="alice "))
    config = written(tmp_path, database_url)
    for answer in ("", "n\n"):
        result = arbstr("forget", "-c", config, "--end-user", "alice", stdin=answer)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "Delete all of alice?" in result.stderr
    result = arbstr("forget", "-c", config, "--end-user", "alice", stdin="y\n")
    assert result.exit_code == 0, result.stderr
    said = dict(line.replace(" deleted", "").split() for line in result.stdout.splitlines())
    assert (said["requests"], said["attempts"], said["spilled"]) == ("1", "1", "0")
    assert f"spills other than {tmp_path}" in result.stderr
    assert run_sql(database_url, "SELECT end_user FROM requests") == [("alice ",)]
    result = arbstr("forget", "-c", config, "--end-user", EVIL, "--yes")
    assert (result.exit_code, "Delete" in result.stderr) == (0, False)


def test_forget_in_spills(tmp_path: Path) -> None:
    """What a dead process has left in its spill goes, too."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"
    fill(url)
    config = written(tmp_path, url)
    folder = Ledger(url, spill=str(tmp_path / "spill")).spill_folder
    folder.mkdir(parents=True)
    fill(f"sqlite+aiosqlite:///{folder / '7.db'}", entry("a", timedelta(minutes=1)))
    result = arbstr("forget", "-c", config, "--end-user", "alice", "--yes")
    assert result.exit_code == 0, result.stderr
    assert "spilled   1 deleted" in result.stdout


def test_rollups(database_url: str, tmp_path: Path) -> None:
    """Roll-ups that agree with the rows end with 0, ones that don't with 1, and then they do."""
    fill(database_url, entry("a", timedelta(hours=30)), entry("b", timedelta(hours=3)))
    config = written(tmp_path, database_url)
    first = arbstr("rollups", "-c", config)
    assert (first.exit_code, first.stdout) == (0, "2 hours computed again, 0 had been wrong\n")
    assert "hours computed: 2 of 2" in first.stderr
    run_sql(database_url, "UPDATE rollups SET total = total + 1 WHERE period = 'hour' AND dimensions = 'model'")
    second = arbstr("rollups", "-c", config)
    assert (second.exit_code, second.stdout) == (1, "2 hours computed again, 2 had been wrong\n")
    assert arbstr("rollups", "-c", config).exit_code == 0


class Server:
    """A server that answers with what it is told to, and remembers what it was asked."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | httpx.Response) -> None:
        self.requests: list[httpx.Request] = []
        self._answer = answer

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._answer(request) if callable(self._answer) else self._answer


def remote_get(answer: Any, *, url: str = "http://h:1/base/", token: str | None = None) -> tuple[Any, Server]:
    """What is made of such an answer."""
    server = Server(answer)

    async def run() -> Any:
        async with RemoteSource(url, token, transport=httpx.MockTransport(server)) as remote:
            return await remote.get("/v1/stats", [("model", "a&b"), ("since", "+")])

    return asyncio.run(run()), server


def test_remote() -> None:
    """The token and the parameters reach the server as they are, and numbers come back exact."""
    found, server = remote_get(httpx.Response(200, content=b'{"x":0.1000000000000000000001}'), token="t-1")
    assert found == {"x": Decimal("0.1000000000000000000001")}
    (request,) = server.requests
    assert str(request.url) == "http://h:1/base/v1/stats?model=a%26b&since=%2B"
    assert request.headers["authorization"] == "Bearer t-1"
    assert "authorization" not in remote_get(httpx.Response(200, content=b"{}"))[1].requests[0].headers


def raising(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    """A server that can't be asked."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    return answer


def refusal(status: int, message: Any) -> httpx.Response:
    """An error in OpenAI's shape."""
    return httpx.Response(status, json={"error": {"message": message}})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusal(401, "Invalid or missing bearer token."), "does not let us in (401): give its bearer token"),
        (refusal(404, "Not Found."), "is it arbstr"),
        (httpx.Response(404, content=b"<html>"), "is it arbstr"),
        (refusal(404, "There is no such model."), "answered 404: There is no such model."),
        (refusal(400, f"range {EVIL}"), "answered 400: range evil\\x1b[2J"),
        (refusal(503, "x" * 10_000), "answered 503: xxx"),
        (refusal(500, {"a": 1}), "answered 500"),
        (httpx.Response(302, headers={"location": "http://elsewhere"}), "answered 302"),
        (httpx.Response(200, content=b"<html>"), "is not understood"),
        (httpx.Response(200, content=b"[1]"), "is not understood"),
        (httpx.Response(200, content=b'{"x":' + b"[" * 200_000), "is not understood"),
        (httpx.Response(200, content=b'{"x":NaN}'), "is not understood"),
        (httpx.Response(200, content=b" " * (64 * 1024 * 1024 + 1)), "longer than 64 MiB"),
        (raising(httpx.ConnectError("SECRET")), "can't be reached: ConnectError"),
        (raising(httpx.ReadTimeout("SECRET")), "can't be reached: ReadTimeout"),
        (raising(httpx.RemoteProtocolError("SECRET")), "can't be reached: RemoteProtocolError"),
    ],
)
def test_remote_refusals(answer: Any, said: str) -> None:
    """Whatever goes wrong is one harmless line that says what to do."""
    with pytest.raises(LedgerError) as caught:
        remote_get(answer)
    assert said in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000
    assert "SECRET" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    ["", "h:1", "ftp://h", "http://", "http://u:p@h", "http://h/?a=1", "http://h/#a", "http://h:x", "http://[::1"],
)
def test_no_server(url: str) -> None:
    """A URL that can't be a server's is refused before anything is sent, without quoting a password."""
    with pytest.raises(ConfigError) as caught:
        RemoteSource(url, None)
    assert "u:p" not in caught.value.message


def test_tokens(tmp_path: Path) -> None:
    """A token comes from a file or the environment; one that can't be sent is refused, and not shown."""
    file = tmp_path / "token"
    file.write_text("two\nlines\n")
    bad = arbstr("stats", "--url", "http://127.0.0.1:1", "--token-file", str(file))
    assert (bad.exit_code, "a line end" in bad.stderr, "two" in bad.stderr) == (1, True, False)
    missing = arbstr("stats", "--url", "http://127.0.0.1:1", "--token-file", str(tmp_path / "none"))
    assert (missing.exit_code, "No such file" in missing.stderr) == (1, True)
    file.write_bytes(b"\xff\xfe")
    assert "not text" in arbstr("stats", "--url", "http://127.0.0.1:1", "--token-file", str(file)).stderr
    odd = arbstr("stats", "--url", "http://127.0.0.1:1", ARBSTR_TOKEN="sécret\x07")
    assert (odd.exit_code, "sécret" in odd.stderr) == (1, False)


@pytest.mark.parametrize("answer", [{}, {"since": 1, "until": None}, {"since": "x", "until": "y"}])
def test_answers_of_others(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer in any other shape is a line, and no traceback."""

    async def get(self: RemoteSource, path: str, pairs: Any) -> Any:
        return answer

    monkeypatch.setattr(RemoteSource, "get", get)
    for command in ("stats", "tail"):
        result = arbstr(command, "--url", "http://127.0.0.1:1")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "the server's answer is not understood" in result.stderr


class Pages:
    """A source with rows that a test changes; it gives ten on a page, and counts the pages."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.remote_get: list[list[tuple[str, str]]] = []

    async def get(self, path: str, pairs: Any) -> dict[str, Any]:
        """One page, the newest first."""
        self.remote_get.append([*pairs])
        start = int(dict(pairs).get("cursor", 0))
        ordered = sorted(self.rows, key=lambda row: row["timestamp"], reverse=True)
        more = start + 10 < len(ordered)
        return {"data": ordered[start : start + 10], "next_cursor": str(start + 10) if more else None}

    def add(self, name: str, end_reason: str = "completed") -> dict[str, Any]:
        """One more, later than the others."""
        moment = (NOW + timedelta(milliseconds=len(self.rows))).isoformat(timespec="milliseconds")
        self.rows.append({"correlation_id": name, "timestamp": moment, "end_reason": end_reason})
        return self.rows[-1]


def test_tail_poller() -> None:
    """Each request is seen once, when it has finished, whether it is on the first page or deep down."""

    async def run() -> None:
        pages = Pages()
        poller = TailPoller(pages, [("model", "m")], lambda: NOW)
        slow = pages.add("slow", "in_flight")
        for number in range(30):
            pages.add(f"old-{number}")
        assert len(await poller.poll()) == 30
        assert len(pages.remote_get) == 4
        assert ("model", "m") in pages.remote_get[0]
        assert ("since", (NOW - WINDOW).isoformat(timespec="milliseconds")) in pages.remote_get[0]
        pages.add("new-1")
        pages.add("new-2", "in_flight")
        assert [row["correlation_id"] for row in await poller.poll()] == ["new-1"]
        slow["end_reason"] = pages.rows[-1]["end_reason"] = "timeout"
        seen = [row["correlation_id"] for _ in range(5) for row in await poller.poll()]
        assert sorted(seen) == ["new-2", "slow"]
        assert len(pages.remote_get) < 20

    asyncio.run(run())


def test_tail_poller_with_too_many() -> None:
    """More than it can look through are not looked through for ever."""

    async def run() -> None:
        pages = Pages()
        for number in range(500):
            pages.add(f"r-{number}")
        assert len(await TailPoller(pages, [], lambda: NOW).poll()) == 100

    asyncio.run(run())


def test_tail_goes_on(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer for a while is one line on stderr; what is wrong at once ends it."""
    looks: Iterator[Any] = iter([[], LedgerError("down"), LedgerError("down"), [], LedgerError("again"), "stop"])

    async def look(self: TailPoller) -> list[Any]:
        found = next(looks)
        if found == "stop":
            raise KeyboardInterrupt
        if isinstance(found, Exception):
            raise found
        return list(found)

    monkeypatch.setattr(TailPoller, "poll", look)
    monkeypatch.setattr("arbstr_asgi.cli.stats._POLL_INTERVAL", 0.0)
    result = arbstr("tail", "-c", config)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.split("\n")[:2] == ["down; trying again", "again; trying again"]


def process(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The command as a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ARBSTR_")}
    # Whoever runs the tests behind a shell's `&` has SIGINT ignored, and so would the command.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    return subprocess.Popen(
        [sys.executable, "-c", f"{heard}; from arbstr_asgi.cli.main import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**kept, "PYTHONUNBUFFERED": "1"},
    )


async def said_by(running: "subprocess.Popen[str]", seen: list[str]) -> None:
    """Add its next line."""
    assert running.stdout is not None
    async with asyncio.timeout(SECONDS):
        seen.append(await asyncio.to_thread(running.stdout.readline))


def test_against_a_server(tmp_path: Path) -> None:
    """A running server and its database beside it show the same calls, and Ctrl-C ends `tail` quietly."""

    async def run() -> None:
        async with serving(MockProvider().app) as upstream, spawned(tmp_path, "arbstr", f"{upstream}/v1") as server:
            tails = [
                process(tmp_path, "tail", "--url", server.url, "--model", "mock-1"),
                process(tmp_path, "tail", "-c", str(tmp_path / "arbstr.toml")),
            ]
            try:
                await follow(server.url, tails)
            finally:
                for each in tails:
                    each.kill()
                    each.communicate()
            for where in (["--url", server.url], ["-c", str(tmp_path / "arbstr.toml")]):
                shown = process(tmp_path, "stats", *where, "--group-by", "provider", "--json")
                text, errors = await asyncio.to_thread(shown.communicate, timeout=SECONDS)
                assert (shown.returncode, errors) == (0, "")
                assert json.loads(text)["groups"][0]["counts"]["success"] == 2

    asyncio.run(run())


async def follow(url: str, tails: list["subprocess.Popen[str]"]) -> None:
    """Make calls until both show one, then interrupt them."""
    seen: list[list[str]] = [[], []]
    async with httpx.AsyncClient(trust_env=False) as client:
        body = {"model": "mock-1", "messages": []}
        for _ in range(2):
            assert (await client.post(f"{url}/v1/chat/completions", json=body)).status_code in (200, 404)
            for running, lines in zip(tails, seen, strict=True):
                await said_by(running, lines)
    for running, lines in zip(tails, seen, strict=True):
        assert all("mock-1" in line and "sats" in line for line in lines), lines
        running.send_signal(signal.SIGINT)
        begun = time.monotonic()
        rest, errors = await asyncio.to_thread(running.communicate, timeout=SECONDS)
        assert (running.returncode, rest, errors.strip()) == (0, "", "")
        assert time.monotonic() - begun < 5
