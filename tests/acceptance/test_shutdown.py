"""The end of a server with many streams open: who is told what, which rows are there, and that no process is left."""

import asyncio
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arbstr_asgi import Arbstr, Config
from arbstr_asgi.cli import supervisor, worker
from arbstr_asgi.cli.server import _command, overridden
from arbstr_asgi.cli.supervisor import Supervisor, WorkerSlot
from tests.support.fake_provider import provider
from tests.support.raw_http_client import Wire, ask, eventually
from tests.support.servers import (
    Spawned,
    free_port,
    ledger_rows,
    running,
    spawned,
    until_drains,
    until_rows,
    write_toml,
)

STREAMS = 200
LAST = 40  # of them, which end well within the grace
GRACE = 3.0
STOP_SECONDS = 20.0  # generous: it takes a second beyond the grace
FILES = 256  # fewer than 200 streams need; `arbstr serve` takes what the hard limit allows
NOISE = re.compile(r"CRITICAL|Unclosed|never awaited|Task was destroyed|Exception ignored")
COUNT = re.compile(rb'"completion_tokens":(\d+)')


def asked(model: str) -> dict[str, Any]:
    """A streaming request."""
    return {"model": model, "stream": True, "messages": []}


async def opened(server: Spawned, *models: str) -> list[Wire]:
    """Streams of which each client has seen the first event."""
    wires = await asyncio.gather(*(Wire.open(server.url, asked(model)) for model in models))
    await asyncio.gather(*(wire.until(1) for wire in wires))
    return wires


def told(wire: Wire) -> bool:
    """Whether the client was told, in a whole reply without [DONE], that the server shuts down."""
    return wire.clean is True and wire.body.rstrip().endswith(b'"code": "shutdown"}}') and b"[DONE]" not in wire.body


def by_call(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows by the calls' ids; there is one of each."""
    rows = ledger_rows(folder)
    found = {str(row["correlation_id"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def row_of(wire: Wire, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The row of a call."""
    return rows[wire.headers["x-arbstr-request-id"]]


def check_partial(wire: Wire, row: dict[str, Any], end_reason: str = "shutdown") -> None:
    """The row has ended like this, and knows what the client has seen of the usage."""
    assert (row["end_reason"], row["usage_source"], row["revision"]) == (end_reason, "provider_partial", 1)
    assert row["input_tokens"] == 7
    seen = [int(count) for count in COUNT.findall(wire.body)]
    assert seen[-1] <= row["output_tokens"] <= seen[-1] + 2
    assert row["cost_sats"] is not None


KINDS = {
    "arbstr": ("arbstr", 1, 0, ()),
    "arbstr-3": ("arbstr", 3, 0, ()),
    "uvicorn": ("uvicorn", 1, -signal.SIGTERM, ("--timeout-graceful-shutdown", str(round(GRACE)))),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_streams(kind: str, tmp_path: Path) -> None:
    """SIGTERM with 200 streams: those that end in the grace are whole, the others are cut and counted; no row lacks."""
    program, workers, expected, options = KINDS[kind]

    async def main() -> tuple[list[Wire], list[Wire], float, str]:
        async with (
            provider() as upstream,
            spawned(
                tmp_path,
                program,
                upstream.url,
                *options,
                workers=workers,
                grace=GRACE,
                files=FILES if program == "arbstr" else 0,
            ) as server,
        ):
            if workers > 1:
                await server.until_said("Running on", workers)
            wires = await opened(server, *["drips:gate"] * LAST, *["drips"] * (STREAMS - LAST))
            reading = [asyncio.ensure_future(wire.until()) for wire in wires]
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            await server.until_refused()
            upstream.gate.set()
            assert await server.ended(STOP_SECONDS) == expected
            seconds = time.monotonic() - begun
            await asyncio.gather(*reading)
            assert not any(running(pid) for pid in server.workers())
            return wires[:LAST], wires[LAST:], seconds, server.said()

    whole, cut, seconds, said = asyncio.run(main())
    rows = by_call(tmp_path)
    assert Counter(row["end_reason"] for row in rows.values()) == {"completed": LAST, "shutdown": STREAMS - LAST}
    for wire in whole:
        assert wire.clean
        assert wire.body.endswith(b"data: [DONE]\n\n")
        row = row_of(wire, rows)
        assert (row["end_reason"], row["usage_source"], row["output_tokens"]) == ("completed", "provider", 2)
    for wire in cut:
        assert told(wire) if program == "arbstr" else wire.clean is False
        check_partial(wire, row_of(wire, rows))
    assert seconds > GRACE - 0.5
    assert not NOISE.search(said), said
    if program == "arbstr":  # uvicorn prints the calls that it cancels
        assert "Traceback" not in said
        assert "ERROR" not in said
    if workers > 1:  # one socket for all of them spreads the work well enough
        assert max(Counter(row["worker_id"] for row in rows.values()).values()) < STREAMS * 0.9


@pytest.mark.parametrize("workers", [1, 3])
def test_left_and_running_streams(workers: int, tmp_path: Path) -> None:
    """At SIGTERM, what is read on for clients that have left ends at once, with its count; the rest has the grace."""

    async def main() -> tuple[list[Wire], list[Wire]]:
        async with (
            provider() as upstream,
            spawned(tmp_path, "arbstr", upstream.url, workers=workers, grace=8.0) as server,
        ):
            left = await opened(server, *["drips:left"] * 30)
            stay = await opened(server, *["drips"] * 30)
            reading = [asyncio.ensure_future(wire.until()) for wire in stay]
            for wire in left:
                wire.hang_up()
            if workers == 1:
                await until_drains(server.url, 30)
            else:
                await asyncio.sleep(1.0)  # each worker has a number of its own
            server.process.send_signal(signal.SIGTERM)
            lines = [line for line in upstream.lines if line.argument == "left"]
            await eventually(lambda: all(line.closed.is_set() for line in lines))
            assert not any(task.done() for task in reading)
            assert await server.ended(STOP_SECONDS) == 0
            await asyncio.gather(*reading)
            assert not NOISE.search(server.said())
            return left, stay

    left, stay = asyncio.run(main())
    rows = by_call(tmp_path)
    assert len(rows) == 60
    for wire in left:
        row = row_of(wire, rows)
        assert (row["end_reason"], row["usage_source"]) == ("client_disconnected", "provider_partial")
    for wire in stay:
        assert told(wire)
        check_partial(wire, row_of(wire, rows))


async def ended_after(
    folder: Path, workers: int, *signals: tuple[float, signal.Signals], group: bool = False
) -> tuple[list[Wire], int, str]:
    """Streams that are open while these signals come, each after a pause; the exit status and what was said."""
    async with provider() as upstream, spawned(folder, "arbstr", upstream.url, workers=workers, grace=2.5) as server:
        wires = await opened(server, *["drips"] * 12)
        for pause, number in signals:
            await asyncio.sleep(pause)
            if group:
                os.killpg(server.process.pid, number)
            else:
                server.process.send_signal(number)
        status = await server.ended(STOP_SECONDS)
        assert len(server.workers()) == (workers if workers > 1 else 0)
        assert not any(running(pid) for pid in server.workers())
        await asyncio.gather(*(wire.until() for wire in wires))
        assert "Traceback" not in server.said()
        return wires, status, server.said()


TWICE = ((0.0, signal.SIGTERM), (0.0, signal.SIGINT), (0.05, signal.SIGTERM))


@pytest.mark.parametrize(
    ("workers", "signals", "group"),
    [
        (1, TWICE, False),
        (1, ((0.0, signal.SIGTERM), (1.0, signal.SIGTERM)), False),
        (3, TWICE, False),
        (3, ((0.0, signal.SIGINT),), True),
    ],
    ids=["one-echo", "one-later", "three-echo", "three-ctrl-c"],
)
def test_signals_that_change_nothing(workers: int, signals: Any, group: bool, tmp_path: Path) -> None:
    """An echo of the signal, or a Ctrl-C that workers hear for themselves too, leaves the streams their grace."""
    wires, status, _ = asyncio.run(ended_after(tmp_path, workers, *signals, group=group))
    assert status == 0
    assert all(told(wire) for wire in wires)
    assert {row["end_reason"] for row in ledger_rows(tmp_path)} == {"shutdown"}


def test_echo_at_the_very_end(tmp_path: Path) -> None:
    """A signal that comes while the interpreter ends, when Python has no handlers any more, changes nothing either."""
    late = "import os, signal\nclass Late:\n    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, 15)\n"
    code = f"{late}late = Late()\nfrom arbstr_asgi.cli.main import main\nmain()"
    config = write_toml(tmp_path, "http://127.0.0.1:1/v1", free_port())
    command = [sys.executable, "-c", code, "serve", "-c", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            assert any("Running on" in line for line in process.stderr)
            process.terminate()
            assert process.wait(STOP_SECONDS) == 0
        finally:
            process.kill()


def test_second_signal(tmp_path: Path) -> None:
    """A second signal, later, ends all workers at once; the rows of the first byte remain, and the status says so."""
    wires, status, said = asyncio.run(ended_after(tmp_path, 3, (0.3, signal.SIGTERM), (1.0, signal.SIGINT)))
    assert status == 1
    assert not any(wire.clean for wire in wires)
    assert {row["end_reason"] for row in ledger_rows(tmp_path)} == {"in_flight"}
    assert re.search(r"SIGINT again: [123] worker\(s\) ended at once", said)


def process_of(row: Mapping[str, Any]) -> int:
    """The process that wrote a row."""
    return int(row["worker_id"].split(":")[1])


def test_killed_worker(tmp_path: Path) -> None:
    """When one of three workers is killed, the others' streams go on, and who replaces it closes its calls."""

    async def main() -> tuple[int, list[Wire], str]:
        async with provider() as upstream, spawned(tmp_path, "arbstr", upstream.url, workers=3) as server:
            await server.until_said("Running on", 3)
            wires = await opened(server, *["drips"] * 60)
            await until_rows(tmp_path, *["in_flight"] * 60)
            victim = Counter(map(process_of, ledger_rows(tmp_path))).most_common()[0][0]
            assert victim in server.workers()
            os.kill(victim, signal.SIGKILL)
            await server.until_said("started", 4)
            replies = await asyncio.gather(*(ask(server.url, asked("good")) for _ in range(20)))
            assert all(reply.clean and reply.status == 200 for reply in replies)
            await server.until_said("Running on", 4)
            await server.until_said("closed as abandoned", 1)
            sizes = {wire: len(wire.body) for wire in wires}
            rows = by_call(tmp_path)
            for wire in wires:
                if process_of(row_of(wire, rows)) != victim:
                    await wire.until(sizes[wire] + 1)
                    assert wire.clean is None
            reading = [asyncio.ensure_future(wire.until()) for wire in wires]
            assert await server.terminate(STOP_SECONDS) == 0
            await asyncio.gather(*reading)
            assert not any(running(pid) for pid in server.workers())
            return victim, wires, server.said()

    victim, wires, said = asyncio.run(main())
    assert f"WARNING arbstr_asgi: worker {victim} was ended by SIGKILL unasked" in said
    rows = by_call(tmp_path)
    assert len(rows) == 80
    for wire in wires:
        row = row_of(wire, rows)
        if process_of(row) == victim:
            assert (wire.clean, row["end_reason"]) == (False, "abandoned")
        else:
            assert told(wire)
            check_partial(wire, row)


def test_killed_supervisor(tmp_path: Path) -> None:
    """When the supervisor is killed, its workers end by themselves, as they do at SIGTERM: no orphan serves on."""

    async def main() -> list[Wire]:
        async with provider() as upstream, spawned(tmp_path, "arbstr", upstream.url, workers=3) as server:
            wires = await opened(server, *["drips"] * 30)
            workers = server.workers()
            assert all(running(pid) for pid in workers)
            server.process.kill()
            assert await server.ended(STOP_SECONDS) == -signal.SIGKILL
            await asyncio.gather(*(wire.until() for wire in wires))
            await eventually(lambda: not any(running(pid) for pid in workers))
            await server.until_refused()
            assert not NOISE.search(server.said())
            return wires

    wires = asyncio.run(main())
    rows = by_call(tmp_path)
    assert len(rows) == 30
    for wire in wires:
        assert told(wire)
        check_partial(wire, row_of(wire, rows))


def test_signal_while_workers_start(tmp_path: Path) -> None:
    """SIGTERM to workers that cannot serve yet strikes none of them dead: all end with 0, in silence."""

    async def main() -> None:
        async with provider() as upstream, spawned(tmp_path, "arbstr", upstream.url, workers=2) as server:
            os.kill(server.workers()[0], signal.SIGKILL)
            await server.until_said("started", 3)
            assert await server.terminate(STOP_SECONDS) == 0
            assert "Traceback" not in server.said()
            assert not any(running(pid) for pid in server.workers())

    asyncio.run(main())


def test_overrides(tmp_path: Path) -> None:
    """`--listen` and `--workers` count for more than the file."""

    async def main() -> None:
        port = free_port()
        options = ("--listen", f"127.0.0.1:{port}", "--workers", "2")
        async with provider() as upstream, spawned(tmp_path, "arbstr", upstream.url, *options, listen=port) as server:
            await server.until_said(f"Running on http://127.0.0.1:{port}", 2)
            assert (await ask(server.url, asked("good"))).status == 200
            assert await server.terminate(STOP_SECONDS) == 0

    asyncio.run(main())


def test_overrides_reach_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has the configuration that its supervisor has; a file that has become wrong is one line."""
    path = write_toml(tmp_path, "http://127.0.0.1:1/v1", 1, grace=7.5)
    config = overridden(Config.load(path), ["127.0.0.1:4321", "[::1]:4321"], 3)
    arguments = [*_command(config, path)[4:], "8,7", "9"]
    given: list[tuple[Any, ...]] = []

    async def serve_on(arbstr: Arbstr, listeners: list[int], grace: float, keep_alive: float, *, alive: int) -> None:
        given.append((arbstr._gateway.config, listeners, grace, keep_alive, alive))

    monkeypatch.setattr(worker, "serve_on", serve_on)
    monkeypatch.setattr(worker, "prepare", lambda level: None)
    worker.main(*arguments)
    assert given == [(config, [8, 7], 7.5, 75.0, 9)]
    path.write_text("providers = 7")
    with pytest.raises(SystemExit, match=r"^Error: providers: "):
        worker.main(*arguments)


class Supervise:
    """Runs a supervisor in this process, whose workers run some code; they signal it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr(supervisor, "MIN_RESTART_PAUSE", 0.01)
        monkeypatch.setattr(supervisor, "ECHO_SECONDS", 0.2)
        caplog.set_level(logging.INFO, "arbstr_asgi")
        self.caplog = caplog

    def __call__(self, code: str, count: int = 1, patience: float = 60.0) -> int:
        """The exit status."""
        prelude = "import os, signal, sys, time\ndef tell(): os.kill(os.getppid(), signal.SIGTERM)\n"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return Supervisor([sys.executable, "-c", prelude + code], [listener], count, patience).run()

    @property
    def warned(self) -> list[str]:
        """What it has warned of."""
        return [record.getMessage() for record in self.caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Supervise]:
    """Afterwards no worker is left, not even one that nobody has asked for, and the signals are as they were."""
    before = [signal.getsignal(number) for number in (*supervisor.STOP_SIGNALS, signal.SIGCHLD)]
    yield Supervise(monkeypatch, caplog)
    assert before == [signal.getsignal(number) for number in (*supervisor.STOP_SIGNALS, signal.SIGCHLD)]
    said = "\n".join(record.getMessage() for record in caplog.get_records("call"))
    workers = [int(pid) for pid in re.findall(r"worker (\d+) started", said)]
    assert workers
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("code", "patience", "status", "said"),
    [
        ("tell()", 60.0, 0, None),
        ("tell(); sys.exit(3)", 60.0, 1, "ended with status 3"),
        ("tell(); time.sleep(60)", 0.3, 1, "1 worker(s) had not ended in 0 s and were killed"),
        ("tell(); time.sleep(0.5); tell(); time.sleep(60)", 60.0, 1, "SIGTERM again: 1 worker(s) ended at once"),
        ("tell(); time.sleep(0.01); tell()", 60.0, 0, None),
    ],
    ids=["well", "badly", "not", "told-again", "echo"],
)
def test_how_a_worker_ends(
    code: str,
    patience: float,
    status: int,
    said: str | None,
    supervise: Supervise,
) -> None:
    """The supervisor's status is 0 only if its worker ended with 0; one that does not end is ended."""
    assert supervise(code, patience=patience) == status
    assert len(supervise.warned) == (said is not None)
    assert said is None or said in supervise.warned[0]


def test_replaced_worker(tmp_path: Path, supervise: Supervise) -> None:
    """A worker that fails to start a few times is tried again, with longer pauses, and is none the worse for it."""
    code = f"path = {str(tmp_path / 'tries')!r}\nopen(path, 'a').write('x')\n"
    code += "if len(open(path).read()) < 3: sys.exit(7)\ntell()\n"
    assert supervise(code) == 0
    assert [re.sub(r"\d+ ended", "N ended", text) for text in supervise.warned] == [
        f"worker N ended with status 7 unasked; the next start is in {pause} s" for pause in ("0.0", "0.0")
    ]


@pytest.mark.parametrize("code", ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_crash_loop(code: str, supervise: Supervise) -> None:
    """When no worker lasts, the supervisor gives up after a few tries, and says why."""
    assert supervise(code, count=2) == 1
    assert len(supervise.warned) > 2 * supervisor.MAX_START_FAILURES
    assert sum("giving up: no worker lasts" in said for said in supervise.warned) == 1


def test_one_crashing_worker_does_not_end_the_others(
    tmp_path: Path, supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as one worker lasts, the other is tried again and again."""
    monkeypatch.setattr(supervisor, "MAX_RESTART_PAUSE", 0.05)
    code = f"""
os.chdir({str(tmp_path)!r})
try:
    os.mkdir("first")
except FileExistsError:
    with open("tries", "a") as tries:
        tries.write("x")
    sys.exit(3)
for _ in range(1000):
    if os.path.exists("tries") and os.path.getsize("tries") > 2 * {supervisor.MAX_START_FAILURES}:
        tell()
        break
    time.sleep(0.02)
"""
    assert supervise(code, count=2) in (0, 1)  # the other may be about to fail once more
    assert "giving up" not in supervise.caplog.text
    assert len(supervise.warned) > 2 * supervisor.MAX_START_FAILURES


def test_worker_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A system that has no process to give is tried a few times; then the supervisor says so and ends with 1."""
    monkeypatch.setattr(supervisor, "MIN_RESTART_PAUSE", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert Supervisor(["/nonexistent/python"], [listener], 2, 1.0).run() == 1
    assert "a worker can't be started (No such file or directory)" in caplog.text
    assert "giving up" in caplog.text


def test_supervisor_that_fails(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the supervisor costs the workers, and leaves none of them behind."""

    def failing(*arguments: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(supervisor, "select", SimpleNamespace(select=failing))
    with pytest.raises(RuntimeError):
        supervise("time.sleep(60)", count=2)


def test_pause_has_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that has failed for months is still tried twice a minute."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = WorkerSlot()
        place.failures = 100_000
        place.since = time.monotonic()
        Supervisor([], [listener], 1, 1.0)._schedule_restart(place, "it failed")
    assert caplog.messages == ["it failed; the next start is in 30.0 s"]
