"""What metering costs: the same relay with and without it, in CPU of the server's process and in time a call takes.

    python tests/benchmarks/relay.py --quick

A provider, a server and a client are three processes on loopback. The server is the bare relay (the same server and
transport, no metering, no rows) or ours with a ledger in an SQLite file, in turns; its CPU is its own clock's, all
threads, taken after the rows are written. Medians over the rounds. The absolute numbers are this machine's; compare
the columns. The only thing it insists on is that each call has its row: otherwise the exit status is 1.
"""

import argparse
import asyncio
import json
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
import uvicorn
import uvloop

from arbstr_asgi import ArbstrMiddleware, Config, DatabaseConfig, Provider, Server
from arbstr_asgi.body import BodyChunks
from arbstr_asgi.chat import ensure_stream_options, parse
from arbstr_asgi.metering import open_meter
from arbstr_asgi.serve import serving
from arbstr_asgi.transports import Transports

CHAT = "/v1/chat/completions"
CPU = "/cpu"
CHUNKS = 100
MANY = 32
CALLS_PER_CONNECTION = 500  # hypercorn closes one after 1,000
WAIT_SECONDS = 30.0
TOKENS = 7, 100
PLAIN, STREAM = "plain call", "chunk"

PASSING = frozenset({b"content-type", b"content-length"})

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Plan(NamedTuple):
    """How much to measure."""

    rounds: int
    calls: int
    streams: int
    servers: Sequence[str]
    seconds: float


# The provider ---------------------------------------------------------------------------------------------------

ID = (
    '"id":"chatcmpl-BxT0lCq6VPTpUFGzYzxvwXdIEGxTb","object":"chat.completion.chunk","created":1752163200,'
    '"model":"gpt-4o-2024-08-06","service_tier":"default","system_fingerprint":"fp_07871e2ad8"'
)
DELTA = '"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]'
USAGE = f'"usage":{{"prompt_tokens":{TOKENS[0]},"completion_tokens":{TOKENS[1]},"total_tokens":{sum(TOKENS)}}}'
USUAL = f'data: {{{ID},{DELTA},"usage":null}}\n\n'.encode()
EVENTS = [
    *[USUAL] * (CHUNKS - 2),
    f'data: {{{ID},"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}],"usage":null}}\n\n'.encode(),
    f'data: {{{ID},"choices":[],{USAGE}}}\n\ndata: [DONE]\n\n'.encode(),
]
REPLY = f'{{{ID},"choices":[{{"index":0,"message":{{"content":"word"}},"finish_reason":"stop"}}],{USAGE}}}'.encode()


class ProviderConnection(asyncio.Protocol):
    """Answers chat completions as cheaply as Python can; a stream's chunks come `pace` seconds apart."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: Any = transport  # uvloop's is no subclass of asyncio.Transport

    def data_received(self, data: bytes) -> None:
        """Answer when the request is complete; nobody pipelines here."""
        self._buffer += data
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        if not length or len(body) < int(length):
            return
        self._buffer = b""
        asked = json.loads(body)
        if asked.get("stream"):
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self._next(0, float(asked["pace"]))
        else:
            start = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(REPLY)}\r\n\r\n"
            self._transport.write(start.encode() + REPLY)

    def _next(self, number: int, pace: float) -> None:
        if self._transport.is_closing():
            return
        event = EVENTS[number]
        last = number + 1 == len(EVENTS)
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event) + (b"0\r\n\r\n" if last else b""))
        if not last:
            asyncio.get_running_loop().call_later(pace, self._next, number + 1, pace)


async def be_provider() -> None:
    """Serve until SIGTERM."""
    server = await asyncio.get_running_loop().create_server(ProviderConnection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await terminated().wait()
    server.close()


# The server -----------------------------------------------------------------------------------------------------


class BareRelay:
    """The relay and nothing else: the same transport, called the same way."""

    def __init__(self, upstream: str) -> None:
        self._url = httpx.URL(f"{upstream}/chat/completions")
        self._transport = Transports().to(Provider(name="p", url=upstream))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one call on and its answer back."""
        body = b"".join([chunk async for chunk in BodyChunks(receive)])  # type: ignore[arg-type]
        headers = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        timeout = {"connect": 10.0, "read": None, "write": None, "pool": None}
        request = httpx.Request("POST", self._url, headers=headers, content=body, extensions={"timeout": timeout})
        response = await self._transport.handle_async_request(request)
        try:
            passing = [(k.lower(), v) for k, v in response.headers.raw if k.lower() in PASSING]
            await send({"type": "http.response.start", "status": response.status_code, "headers": passing})
            assert isinstance(response.stream, httpx.AsyncByteStream)
            async for chunk in response.stream:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close its connections."""
        await self._transport.aclose()


class Host:
    """Tells the CPU that its process has used, and passes chat completions to the bare relay where there is one."""

    def __init__(self, relay: BareRelay | None) -> None:
        self._relay = relay
        self.written: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            if self._relay is not None:
                await self._relay.close()
            await send({"type": "lifespan.shutdown.complete"})
        elif self._relay is not None and scope["path"] == CHAT:
            await self._relay(scope, receive, send)
        else:
            if self.written is not None:
                await self.written()
            body = repr(time.process_time()).encode()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})


def application(kind: str, upstream: str, database: Path) -> Any:
    """The bare relay or ours; `strict` is ours with answers that wait for their rows."""
    if kind == "bare":
        return Host(BareRelay(upstream))
    rates = {"input_rate": Decimal(10_000), "output_rate": Decimal(30_000)}
    config = Config(
        providers=(Provider(name="p", url=upstream, **rates),),
        server=Server(public=True),
        database=DatabaseConfig(path=str(database), durability="strict" if kind == "strict" else "relaxed"),
    )
    host = Host(None)
    ours = ArbstrMiddleware(host, config)  # type: ignore[arg-type]
    host.written = ours.ledger.flush
    return ours


async def be_server(kind: str, server: str, upstream: str, database: Path) -> None:
    """Serve until SIGTERM."""
    app = application(kind, upstream, database)
    if server == "hypercorn":
        stop = terminated()
        async with serving(app) as url:
            print(url.rpartition(":")[2], flush=True)
            await stop.wait()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            print(listener.getsockname()[1], flush=True)
            settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
            await uvicorn.Server(settings).serve(sockets=[listener])


def terminated() -> asyncio.Event:
    """Set at SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    return stop


# The client -----------------------------------------------------------------------------------------------------


def request(body: dict[str, Any] | None) -> bytes:
    """The bytes of a chat completion, or of the question for the CPU."""
    if body is None:
        return f"GET {CPU} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


MESSAGES = [{"role": "user", "content": "What does a word of this cost? " * 20}]
PLAIN_REQUEST = request({"model": "gpt-4o", "messages": MESSAGES})


def stream_request(pace: float) -> bytes:
    """A streaming one; `pace` is for the provider."""
    return request({"model": "gpt-4o", "stream": True, "pace": pace, "messages": MESSAGES})


async def fetch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bytes) -> bytes:
    """Send a request and read its whole reply."""
    writer.write(asked)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"unexpected reply: {head.decode('latin-1')}")
    _, found, length = head.partition(b"content-length:")
    if found:
        return await reader.readexactly(int(length.split(b"\r\n", 1)[0]))
    parts: list[bytes] = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(parts)


async def drive(port: int, asked: bytes, calls: int) -> list[float]:
    """Make calls one after the other; gives how long each took, in seconds."""
    took: list[float] = []
    while len(took) < calls:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for _ in range(min(CALLS_PER_CONNECTION, calls - len(took))):
                began = time.perf_counter()
                await fetch(reader, writer, asked)
                took.append(time.perf_counter() - began)
        finally:
            writer.close()
            await writer.wait_closed()
    return took


async def cpu(port: int) -> float:
    """The CPU seconds that a server's process has used so far."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return float(await fetch(reader, writer, request(None)))
    finally:
        writer.close()
        await writer.wait_closed()


class Target:
    """A server under test, and what has been measured of it."""

    def __init__(self, server: str, kind: str, port: int) -> None:
        self.server = server
        self.kind = kind
        self.port = port
        self.calls = 0
        self.cpu: dict[tuple[str, int], list[float]] = {}
        self.took: list[float] = []

    async def round(self, plan: Plan) -> None:
        """Measure everything once."""
        self.took += await self._measure(PLAIN, PLAIN_REQUEST, 1, plan.calls)
        await self._measure(PLAIN, PLAIN_REQUEST, MANY, max(1, plan.calls * 2 // MANY))
        await self._measure(STREAM, stream_request(0.001), 1, plan.streams)
        await self._measure(STREAM, stream_request(0.012), MANY, 1)

    async def _measure(self, what: str, asked: bytes, connections: int, calls: int) -> list[float]:
        before = await cpu(self.port)
        took = await asyncio.gather(*(drive(self.port, asked, calls) for _ in range(connections)))
        used = await cpu(self.port) - before
        done = sum(map(len, took))
        self.calls += done
        each = used / (done * (CHUNKS if what == STREAM else 1))
        self.cpu.setdefault((what, connections), []).append(each * 1e6)
        return took[0]

    async def warm_up(self) -> None:
        """Let caches fill and code be imported; the calls count for the rows only."""
        self.calls += len(await drive(self.port, PLAIN_REQUEST, 20))
        self.calls += len(await drive(self.port, stream_request(0.001), 1))


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[int]:
    """Another role of this file in a process of its own; gives its port."""
    command = [sys.executable, __file__, *arguments]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            yield_port = int(await child.stdout.readline() or b"0")
        if not yield_port:
            raise RuntimeError(f"{' '.join(arguments)} did not start")
        yield yield_port
    finally:
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


# The report -----------------------------------------------------------------------------------------------------


async def compare(plan: Plan) -> dict[str, Any]:
    """Measure all servers in alternating rounds; gives the results as JSON can hold them."""
    ends = time.monotonic() + plan.seconds
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, server in enumerate(plan.servers):
            database = Path(folder) / f"{server}.db"
            share = (ends - time.monotonic()) / (len(plan.servers) - number)
            results[server] = await one_server(plan, server, database, time.monotonic() + share)
            found = sqlite3.connect(database)
            query = "SELECT COUNT(*) FROM requests WHERE end_reason = 'completed' AND (input_tokens, output_tokens)"
            results[server]["rows_found"] = found.execute(f"{query} = (?, ?)", TOKENS).fetchone()[0]
            found.close()
    return results


async def one_server(plan: Plan, server: str, database: Path, ends: float) -> dict[str, Any]:
    """Bare and ours in turns on one server, for the planned rounds or as long as there is time."""
    direct: list[float] = []
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(process("provider"))
        upstream = f"http://127.0.0.1:{provider}/v1"
        targets = []
        for kind in ("bare", "ours"):
            port = await stack.enter_async_context(process("server", kind, server, upstream, str(database)))
            await ready(port)
            targets.append(Target(server, kind, port))
            await targets[-1].warm_up()
        rounds, began = 0, time.monotonic()
        while rounds < plan.rounds:
            direct += await drive(provider, PLAIN_REQUEST, plan.calls)
            for target in targets if rounds % 2 else reversed(targets):
                await target.round(plan)
            rounds += 1
            now = time.monotonic()
            if now + (now - began) / rounds > ends:
                break
    bare, ours = targets
    cost = {
        f"CPU µs per {what}, {connections} connection{'s' * (connections > 1)}": {
            "bare": median(bare.cpu[what, connections]),
            "ours": median(ours.cpu[what, connections]),
        }
        for what, connections in bare.cpu
    }
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        base = quantile(direct, share)
        cost[f"latency added to a plain call, {name} µs, 1 connection"] = {
            target.kind: (quantile(target.took, share) - base) * 1e6 for target in targets
        }
    return {"rounds": rounds, "cost": cost, "rows_expected": ours.calls}


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def parts(repeat: int) -> dict[str, float]:
    """CPU µs of our pieces alone: the best of seven rounds, in turns."""
    obfuscated = USUAL.replace(b'"usage":null', b'"usage":null,"obfuscation":"CVQ55DocFW"')
    without = USUAL.replace(b',"usage":null', b"")
    found: dict[str, Callable[[], object]] = {}
    for name, chunk in (
        ("usage: null last", USUAL),
        ("with obfuscation", obfuscated),
        ("no usage member", without),
        ("3 events in a chunk", USUAL * 3),
    ):
        for strip in (True, False):
            meter = open_meter(content_type="text/event-stream", content_encoding=None, streaming=True, strip=strip)
            meter.feed(USUAL)
            found[f"feed, {name}, {'stripped' if strip else 'only read'}"] = lambda m=meter, c=chunk: m.feed(c)
    for name, size in (("1 KB", 1_000), ("160 KB", 160_000)):
        words = [{"role": "user", "content": "some words of a prompt " * 100}] * (size // 2_300)
        rest = {"role": "user", "content": "x" * (size % 2_300)}
        body = json.dumps({"model": "gpt-4o", "stream": True, "messages": [*words, rest]}).encode()
        found[f"parse and inject, {name}"] = lambda b=body: ensure_stream_options(parse(b))
    best = dict.fromkeys(found, float("inf"))
    for _ in range(7):
        for name, call in found.items():
            began = time.process_time()
            for _ in range(repeat):
                call()
            best[name] = min(best[name], (time.process_time() - began) / repeat * 1e6)
    return best


def table(results: dict[str, Any], pieces: dict[str, float]) -> str:
    """All of it as text."""
    lines: list[str] = []
    for server, result in results.items():
        lines += [f"{server + ', ' + str(result['rounds']) + ' rounds':52}{'bare':>10}{'ours':>10}{'ratio':>8}"]
        for name, cost in result["cost"].items():
            lines.append(f"  {name:50}{cost['bare']:10.1f}{cost['ours']:10.1f}{cost['ours'] / cost['bare']:8.2f}")
        lines += [f"  rows expected {result['rows_expected']}, rows found {result['rows_found']}", ""]
    lines.append("pieces alone, CPU µs")
    lines += [f"  {name:50}{each:10.2f}" for name, each in pieces.items()]
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="at most a minute instead of five")
    parser.add_argument("--server", choices=("uvicorn", "hypercorn", "both"), default="both")
    parser.add_argument("--rounds", type=int, help="of each kind of server")
    parser.add_argument("--calls", type=int, default=200, help="plain calls a round at one connection")
    parser.add_argument("--streams", type=int, default=8, help="streams a round at one connection")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    given = parser.parse_args()
    plan = Plan(
        rounds=given.rounds or (3 if given.quick else 12),
        calls=given.calls,
        streams=given.streams,
        servers=("uvicorn", "hypercorn") if given.server == "both" else (given.server,),
        seconds=50.0 if given.quick else 280.0,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(compare(plan))
    pieces = parts(200 if given.quick or given.rounds else 1000)
    print(table(results, pieces))
    if given.json is not None:
        given.json.write_text(json.dumps({"servers": results, "pieces": pieces}, indent=1, ensure_ascii=False), "utf-8")
    return int(any(result["rows_found"] != result["rows_expected"] for result in results.values()))


def role(name: str, *arguments: str) -> None:
    """Be one of the other processes."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if name == "provider":
            runner.run(be_provider())
        else:
            kind, server, upstream, database = arguments
            runner.run(be_server(kind, server, upstream, Path(database)))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("provider", "server"):
        role(*sys.argv[1:])
    else:
        sys.exit(main())
