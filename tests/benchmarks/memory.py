"""What a stream holds of the server's memory while it goes on, with a slow provider and with a slow client.

    python tests/benchmarks/memory.py

A provider and a server are processes of their own on loopback. Once the server has answered some calls its resident
memory is noted; then 1,000 streams are opened, and after ten seconds the difference is divided by them. The exit
status is 1 where that is over 150 KB. Takes two to three minutes, and /proc (Linux).
"""

import argparse
import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import uvloop

TARGET_KB = 150.0
STEADY_SECONDS = 10.0
WAIT_SECONDS = 20.0
SMALL_BUFFER = 4096  # of a slow client's socket
WARM_UP = 100  # calls
AT_ONCE = 50  # streams that are opened together
FILES = 5000

SERVERS = {
    "uvicorn": [
        "-m",
        "uvicorn",
        "--log-level",
        "warning",
        "--no-access-log",
        "arbstr_asgi.asgi:app",
        "--port",
        "{port}",
        "--loop",
        "{loop}",
    ],
    "arbstr serve (hypercorn)": ["-c", "from arbstr_asgi.cli.main import main; main()", "serve", "-c", "{config}"],
}
CONFIG = """
[server]
listen = "127.0.0.1:{port}"
public = true
grace = 0.5
[database]
path = {database}
[[providers]]
name = "p"
url = "http://127.0.0.1:{provider}/v1"
input_rate = 10000
output_rate = 30000
"""
EVENT = (
    b'data: {"id":"chatcmpl-BxT0lCq6VPTpUFGzYzxvwXdIEGxTb","object":"chat.completion.chunk","created":1752163200,'
    b'"model":"gpt-4o-2024-08-06","service_tier":"default","system_fingerprint":"fp_07871e2ad8",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
BIG = EVENT.replace(b" word", b" word" * 1000)  # so that the kernel's buffers are full soon
FLOOD = b"%x\r\n%b\r\n" % (len(BIG), BIG)
LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


# The provider ---------------------------------------------------------------------------------------------------


class ProviderConnection(asyncio.Protocol):
    """Streams: `paced` an event a second, `flood` as fast as it is taken, and `short` is over at once."""

    def __init__(self) -> None:
        self._buffer = b""
        self._writable = True
        self._flooding = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: Any = transport  # uvloop's is no subclass of asyncio.Transport

    def data_received(self, data: bytes) -> None:
        """Answer when the request is complete."""
        self._buffer += data
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        if not length or len(body) < int(length):
            return
        self._buffer = b""
        self._transport.write(HEAD)
        match json.loads(body)["model"]:
            case "paced":
                self._paced()
            case "flood":
                self._flooding = True
                self._flood()
            case _:
                self._transport.write(CHUNK * 10 + LAST)

    def pause_writing(self) -> None:
        """The gateway takes no more."""
        self._writable = False

    def resume_writing(self) -> None:
        """It does again."""
        self._writable = True
        if self._flooding:
            self._flood()

    def _paced(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(CHUNK)
            asyncio.get_running_loop().call_later(1.0, self._paced)

    def _flood(self) -> None:
        for _ in range(20):
            if not self._writable or self._transport.is_closing():
                return
            self._transport.write(FLOOD)
        asyncio.get_running_loop().call_later(0.001, self._flood)


async def be_provider() -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(ProviderConnection, "127.0.0.1", 0, queue=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    server.close()


# The client -----------------------------------------------------------------------------------------------------


class Stream:
    """One call, on a socket of its own."""

    def __init__(self, port: int, model: str, *, slow: bool = False) -> None:
        self._socket = socket.socket()
        if slow:  # before it connects, so that the window is small from the start
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        self._socket.settimeout(WAIT_SECONDS)
        self._socket.connect(("127.0.0.1", port))
        messages = [{"role": "user", "content": "What does a word of this cost? " * 20}]
        body = json.dumps({"model": model, "stream": True, "messages": messages}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        self._socket.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self._seen = b""
        self._slow = slow

    def begun(self) -> None:
        """Return once the reply has begun; the first bytes must be a good status."""
        while len(self._seen) < 12:
            self._seen += self._socket.recv(1) or b" " * 12
        if self._seen != b"HTTP/1.1 200":
            raise RuntimeError(f"unexpected reply: {self._seen!r}")
        self._socket.setblocking(False)

    def read(self) -> None:
        """Take one byte, if slow, or all there is."""
        try:
            while (data := self._socket.recv(1 if self._slow else 65_536)) and not self._slow:
                pass
        except BlockingIOError:
            return
        if not data:
            raise RuntimeError("a stream has ended")

    def finish(self) -> None:
        """Read to the end of a short one."""
        while not self._seen.endswith(b"0\r\n\r\n"):
            self._seen += self._socket.recv(65_536) or b"0\r\n\r\n"
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def opened(port: int, count: int, model: str, *, slow: bool) -> list[Stream]:
    """So many streams that have begun."""
    found: list[Stream] = []
    while len(found) < count:
        some = [Stream(port, model, slow=slow) for _ in range(min(AT_ONCE, count - len(found)))]
        for stream in some:
            stream.begun()
        found += some
    return found


def read_for(streams: list[Stream], seconds: float, pause: float) -> None:
    """Read from all of them in turns."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for stream in streams:
            stream.read()
        time.sleep(pause)


# The measure ----------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What one case came to, in KB of 1,000 bytes."""

    server: str
    case: str
    idle_kb: float
    each_kb: float


def resident(pid: int) -> float:
    """The resident memory of a process, in KB of 1,000 bytes."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1.024


@contextmanager
def process(*command: str, **more: Any) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that is gone afterwards."""
    child = subprocess.Popen([sys.executable, *command], **more)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def until_up(port: int) -> None:
    """Return once the server answers."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/livez", timeout=WAIT_SECONDS):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def measure(server: str, loop: str, count: int, *, slow_client: bool) -> Found:
    """Memory of a stream in one case."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = stack.enter_context(process(__file__, "provider", stdout=subprocess.PIPE))
        assert provider.stdout is not None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        config = folder / "arbstr.toml"
        places = {"provider": int(provider.stdout.readline()), "database": json.dumps(str(folder / "ledger.db"))}
        config.write_text(CONFIG.format(port=port, **places), "utf-8")
        command = [part.format(port=port, config=config, loop=loop) for part in SERVERS[server]]
        environ = {**os.environ, "ARBSTR_CONFIG": str(config)}
        child = stack.enter_context(process(*command, cwd=folder, env=environ))
        until_up(port)
        for _ in range(WARM_UP):
            Stream(port, "short").finish()
        time.sleep(1.0)
        idle = resident(child.pid)
        streams = opened(port, count, "flood" if slow_client else "paced", slow=slow_client)
        read_for(streams, STEADY_SECONDS, 1.0 if slow_client else 0.05)
        each = (resident(child.pid) - idle) / count
        for stream in streams:
            stream.close()
    return Found(
        server, "client reads a byte a second" if slow_client else "provider sends an event a second", idle, each
    )


def main() -> int:
    """Measure, print, and say whether a stream keeps within its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000, help="how many are open at once")
    parser.add_argument("--server", choices=("all", *SERVERS), default="all")
    parser.add_argument("--case", choices=("both", "provider", "client"), default="both", help="who is slow")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop", help="uvicorn's")
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY and hard < FILES else FILES, hard)
    )
    print(f"{given.streams} streams at once; KB of resident memory")
    print(f"{'server':26}{'':36}{'idle':>10}{'a stream':>10}", flush=True)
    results: list[Found] = []
    for server in SERVERS if given.server == "all" else (given.server,):
        for slow_client in (False, True) if given.case == "both" else (given.case == "client",):
            found = measure(server, given.loop, given.streams, slow_client=slow_client)
            print(f"{found.server:26}{found.case:36}{found.idle_kb:10,.0f}{found.each_kb:10.1f}", flush=True)
            results.append(found)
    return int(any(found.each_kb > TARGET_KB for found in results))


if __name__ == "__main__":
    if sys.argv[1:] == ["provider"]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(be_provider())
    else:
        sys.exit(main())
