"""The processes of a benchmark."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from harness.client import cpu

RELAY = Path(__file__).parents[1] / "relay.py"
WAIT_SECONDS = 30.0


def terminated() -> asyncio.Event:
    """Set at SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    return stop


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[int]:
    """Another role of this file in a process of its own; gives its port."""
    command = [sys.executable, str(RELAY), *arguments]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            yield_port = int(await child.stdout.readline() or b"0")
        if not yield_port:
            raise RuntimeError(f"{' '.join(arguments)} did not start")
        yield yield_port
    finally:
        await _end(child)


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.terminate()
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


async def ready(port: int) -> None:
    """Return when a server answers."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            await cpu(port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            return


@asynccontextmanager
async def command(*arguments: str, environ: Mapping[str, str], cwd: Path) -> AsyncIterator[int]:
    """Somebody else's server during the block, in the folder `cwd`; gives its process id."""
    with (cwd / "log.txt").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *arguments, stdout=log, stderr=log, cwd=cwd, env={**os.environ, **environ}
        )
    try:
        yield child.pid
    finally:
        await _end(child)


async def listening(port: int, seconds: float) -> None:
    """Return when somebody accepts connections. Raises OSError if nobody does within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


def cpu_of(pid: int) -> float:
    """The CPU seconds of a process and of those that it has started, as long as they live (Linux)."""
    used = 0.0
    for process in _family(pid):
        with suppress(OSError):
            used += time.clock_gettime(~process << 3 | 2)  # as clock_getcpuclockid(3) makes it
    return used


def _family(pid: int) -> list[int]:
    try:
        children = [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in _family(child))]
