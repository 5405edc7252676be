"""Marked secrets go through every path, and are then looked for everywhere they must not be.

A client's model name and the reply's model, id, finish reason and raw usage object are stored by design, and the
provider's replies reach the client by design, so none of those is marked or searched.
"""

import asyncio
import gc
import json
import logging
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from click.testing import CliRunner

import arbstr_asgi.protocols.body_meter
import arbstr_asgi.protocols.stream_meter
from arbstr_asgi import Arbstr, ArbstrError, Caller, Config, ConfigError, DatabaseConfig, Logging, Server, Token
from arbstr_asgi.cli.main import main as main_command
from arbstr_asgi.config.settings import Limits
from arbstr_asgi.protocols.chat import parse
from tests.support.asgi_client import (
    JSON_TYPE,
    SSE_TYPE,
    START,
    USAGE,
    Call,
    Chunks,
    Provided,
    built,
    configured,
    rows,
    running,
)
from tests.support.certificates import Authority
from tests.support.fake_provider import provider
from tests.support.http_proxy import proxy
from tests.support.raw_http_client import ask
from tests.support.servers import free_port, spawned

CANARY = "canary-7f3"
PROMPT, COMPLETION, TEXT = f"{CANARY}-prompt", f"{CANARY}-completion", f"{CANARY}-provider-text"
KEY, TOKEN, COOKIE, BUG = f"{CANARY}-key", f"{CANARY}-token", f"{CANARY}-cookie", f"{CANARY}-bug"

PLAIN_REQUEST = json.dumps({"model": "m", "messages": [{"role": "user", "content": PROMPT}], "user": PROMPT}).encode()
STREAM_REQUEST = PLAIN_REQUEST[:-1] + b',"stream":true}'
HEADERS = {
    **JSON_TYPE,
    "authorization": f"Bearer {TOKEN}",
    "cookie": f"session={COOKIE}",
    "user-agent": f"agent {COOKIE}",
    "openai-organization": COOKIE,
    "x-stainless-lang": COOKIE,
}
SERVER = Server(auth_token=TOKEN, tokens=(Token(name="alice", token=f"{TOKEN}-of-alice"),))
PROVIDER = {"api_key": KEY, "headers": {"x-project-key": KEY}, "query": {"secret": KEY}}
REPLY_HEADERS = {"set-cookie": TEXT, "x-request-id": "r-1", "openai-organization": KEY, "x-error": TEXT}
ERROR = {
    "message": f"{TEXT} {KEY} {PROMPT}",
    "type": TEXT,
    "code": f"{KEY}",
    "param": PROMPT,
    "innererror": {"x": TEXT},
}
DELTA = START + b'"choices":[{"index":0,"delta":{"content":"' + COMPLETION.encode() + b'"}}],"usage":null}\n\n'
STOP = START + b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
LAST = START + b'"choices":[],"usage":' + USAGE + b"}\n\ndata: [DONE]\n\n"
MESSAGE = (
    b'{"id":"c1","model":"m-1","choices":[{"index":0,"message":{"role":"assistant","content":"'
    + COMPLETION.encode()
    + b'"},"finish_reason":"stop"}],"usage":'
    + USAGE
    + b"}"
)

Answer = Callable[[httpx.Request], httpx.Response]


def streamed(*steps: bytes | asyncio.Event | Exception, **headers: str) -> Answer:
    """A provider that answers 200 with these chunks, as a stream."""
    return lambda request: httpx.Response(200, headers={**SSE_TYPE, **REPLY_HEADERS, **headers}, stream=Chunks(*steps))


def plain(status: int, content: bytes, media_type: str = "application/json") -> Answer:
    """A provider that answers with this body."""
    headers = {**REPLY_HEADERS, "content-type": media_type, "location": f"http://x/{KEY}"}
    return lambda request: httpx.Response(status, headers=headers, stream=Chunks(content))


def raising(error: Exception) -> Answer:
    """A provider that can't be asked."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    return answer


def failures() -> dict[str, Exception]:
    """What transports raise, of ours and of hosts."""
    kinds: list[Any] = [httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadTimeout, httpx.ReadError, httpx.StreamError]
    kinds += [httpx.RemoteProtocolError, httpx.UnsupportedProtocol, aiohttp.ClientPayloadError, OSError, TimeoutError]
    kinds += [ValueError, RuntimeError, KeyError]
    return {kind.__name__: kind(f"{BUG} {KEY} {PROMPT}") for kind in kinds}


def answers() -> dict[str, Answer]:
    """Every way of a provider to answer, or not to."""
    error, text = json.dumps({"error": ERROR}).encode(), json.dumps(TEXT).encode()
    found = {
        "good stream": streamed(DELTA, STOP, LAST),
        "good completion": plain(200, MESSAGE),
        "no usage": streamed(DELTA, STOP, b"data: [DONE]\n\n"),
        "cut off": streamed(DELTA),
        "error event": streamed(DELTA, b"data: " + error + b"\n\n"),
        "named error event": streamed(DELTA, b"event: error\ndata: " + json.dumps(ERROR).encode() + b"\n\n"),
        "bare error line": streamed(DELTA, b"error: " + error + b"\n\n"),
        "error as text": streamed(b'data: {"error":"' + TEXT.encode() + b'"}\n\n'),
        "error in a choice": streamed(
            DELTA.replace(b'"delta"', b'"finish_reason":"error","error":' + text + b',"delta"')
        ),
        "not events": streamed(TEXT.encode() * 10, b"\n\n", b"data: {" + TEXT.encode() + b"\n\n"),
        "bad UTF-8": streamed(DELTA.replace(b"completion", b"completion\xff"), LAST),
        "wrong types": streamed(b'data: {"usage":' + text + b',"choices":{"x":1},"error":[' + text + b"]}\n\n"),
        "said to be gzip": streamed(DELTA, STOP, LAST, **{"content-encoding": "gzip"}),
        "HTML": plain(200, f"<p>{TEXT}</p>".encode(), "text/html"),
        "wrong content type": plain(200, MESSAGE, "application/x-odd"),
        "error with 200": plain(200, error),
        "nested error": plain(200, b'{"choices":' + b"[" * 100_000 + TEXT.encode()),
    }
    for status in (302, 400, 401, 403, 404, 422, 429, 500, 503, 599):
        found[f"status {status}"] = plain(status, error)
        found[f"status {status}, text"] = plain(status, TEXT.encode(), "text/plain")
    for name, failure in failures().items():
        found[f"{name} instead of an answer"] = raising(failure)
        found[f"{name} in a stream"] = streamed(DELTA, failure)
        found[f"{name} in an event"] = streamed(DELTA, DELTA[:40], failure)
    return found


class Finds:
    """Collects what became visible, and where."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self._log = log
        self.seen: list[tuple[str, str]] = []

    def add(self, where: str, what: object) -> None:
        """Something that somebody may get to see."""
        self.seen.append((where, what if isinstance(what, str) else repr(what)))

    def marked(self) -> list[tuple[str, str]]:
        """Where a mark is, in any case and in pieces of a log record too."""
        for record in self._log.records:
            said = logging.Formatter("%(message)s").format(record)
            self.add(f"log {record.name}", f"{said} {record.args!r}")
        return [(where, what) for where, what in self.seen if CANARY in what.lower()]

    async def attempt(self, name: str, one: Call, *, leave: bool = False) -> Call:
        """Run a call; what it raises is a traceback in some server's log."""
        task = asyncio.create_task(one.run())
        if leave:
            await one.begun.wait()
            one.gone.set()
        try:
            await task
        except Exception as error:
            self.add(f"traceback of {name}", "".join(traceback.format_exception(error)))
        self.add_ours(name, one)
        return one

    def add_ours(self, name: str, one: Call) -> None:
        """The reply's headers; and its body where the words are ours."""
        if one.messages:
            self.add(f"headers of {name}", one.headers)
            if "x-request-id" not in one.headers:  # not the provider's reply
                self.add(f"reply to {name}", one.body.decode())

    def add_objects(self, *others: object) -> None:
        """The repr of everything of ours that is alive."""
        ours = (item for item in gc.get_objects() if str(type(item).__module__).startswith("arbstr_asgi"))
        for item in (*ours, *others):
            self.add(f"repr of {type(item).__name__}", repr(item))

    def add_database(self, path: Path) -> None:
        """All columns of all rows, and the bytes of the files, the spill's among them."""
        with sqlite3.connect(path) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                for row in connection.execute(f"SELECT * FROM {table}"):
                    self.add(f"row of {table}", row)
        connection.close()
        for place in path.parent.glob(f"{path.name}*"):
            for file in [place, *place.rglob("*")]:
                if file.is_file():
                    self.add(f"file {file.name}", file.read_bytes().decode("latin-1"))


@pytest.fixture
def finds(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Finds]:
    """Everything that anything logs is seen, from DEBUG on."""
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "level", logging.NOTSET)
            monkeypatch.setattr(logger, "disabled", False)
            monkeypatch.setattr(logger, "propagate", True)
            logger.manager._clear_cache()  # type: ignore[attr-defined]
    with caplog.at_level(logging.DEBUG):
        yield Finds(caplog)


def variants(folder: Path) -> list[dict[str, Any]]:
    """Configurations that take different paths through the code."""
    return [
        {},
        {"response_headers": "full", "cost_comment": True, "metering": "require", "estimates": True},
        {"provider": {**PROVIDER, "inject": False, "disconnect": "cancel"}},
        {"provider": {**PROVIDER, "api_key": None, "api_key_file": in_a_file(folder), "auth_header": "api-key"}},
        {"provider": {**PROVIDER, "api_key": vault}, "logging": Logging(level="trace", log_requests=True)},
    ]


def in_a_file(folder: Path) -> str:
    """A file with the key in it."""
    path = folder / "provider.key"
    path.write_text(KEY)
    return str(path)


async def vault() -> str:
    """A host's way to its key."""
    await asyncio.sleep(0)
    return KEY


VARIANTS = ["default", "everything on", "no injection", "key in a file", "key of a function"]


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=VARIANTS)
@pytest.mark.parametrize("request_body", [PLAIN_REQUEST, STREAM_REQUEST], ids=["plain", "stream"])
def test_providers(variant: int, request_body: bytes, tmp_path: Path, finds: Finds) -> None:
    """Whatever the provider answers, no mark is in a row, a log, a repr, a traceback or a reply of ours."""
    facts = {"provider": PROVIDER, "server": SERVER, **variants(tmp_path)[variant]}
    config = configured(tmp_path, **facts)

    async def main() -> int:
        provided = Provided()
        async with running("middleware", config, provided) as app:
            for name, answer in answers().items():
                provided.answer = answer
                reply = await finds.attempt(name, Call(app, request_body, headers=HEADERS))
                if name.startswith(("status 302", "status 401", "status 403")):  # what these say is ours, too
                    finds.add(f"reply to {name}", reply.body.decode())
                    assert reply.status == 502, name
            never = asyncio.Event()
            provided.answer = streamed(DELTA, never)
            leaving = Call(app, request_body, headers=HEADERS)
            task = asyncio.create_task(finds.attempt("a client that leaves", leaving, leave=True))
            await leaving.begun.wait() if facts.get("response_headers") != "full" else await asyncio.sleep(0.05)
            leaving.begun.set()
            request = parse(STREAM_REQUEST)
            finds.add_objects(config, *config.providers, SERVER, *SERVER.tokens, request, app, app._gateway._deps)
            assert not task.done() or leaving.gone.is_set()
            never.set()
            await task
            found = await rows(app)
            finds.add("rows()", found)
            return len(found)

    count = asyncio.run(main())
    assert count == len(answers()) + 1
    finds.add_database(tmp_path / "ledger.db")
    assert finds.marked() == []
    assert any("m-1" in what for where, what in finds.seen if where == "row of requests"), "the search reads the rows"


def failing_keys(folder: Path) -> dict[str, dict[str, Any]]:
    """Providers whose key can't be had, whatever is there instead."""
    (folder / "bad").write_text(f"{KEY}\tand more")
    (folder / "raw").write_bytes(KEY.encode() + b"\xff")

    def fails() -> str:
        raise RuntimeError(f"{BUG} {KEY}") from ValueError(KEY)

    async def fails_later() -> str:
        await asyncio.sleep(0)
        raise ArbstrError(401, f"{BUG} {KEY}")

    kinds: list[Any] = [fails, fails_later, lambda: f"{KEY}\n", KEY.encode, lambda: [KEY]]
    files = [{"api_key_file": str(folder / name)} for name in ("bad", "raw", "missing", ".")]
    found = [*({"api_key": kind} for kind in kinds), *files]
    return {str(number): facts for number, facts in enumerate(found)}


def test_keys_that_fail(tmp_path: Path, finds: Finds) -> None:
    """A key that can't be had is nowhere to be seen, nor is what stands in its place or in its function's error."""

    async def main() -> None:
        for name, facts in failing_keys(tmp_path).items():
            config = configured(tmp_path, {**PROVIDER, "api_key": None, **facts}, server=SERVER)
            async with running("middleware", config, Provided()) as app:
                reply = await finds.attempt(name, Call(app, PLAIN_REQUEST, headers=HEADERS))
                assert reply.error["code"] == "provider_key_unavailable"
                finds.add_objects(config, app, app._gateway._deps, app._gateway._api_keys)
                finds.add("rows()", await rows(app))
        path = tmp_path / "rotated"
        path.write_text(KEY)
        config = configured(tmp_path, {**PROVIDER, "api_key": None, "api_key_file": str(path)}, server=SERVER)
        async with running("middleware", config, Provided()) as app:
            for content in (KEY, f"{KEY}\x00", f"{KEY}-2"):
                path.write_text(content)
                assert (await finds.attempt(content[-4:], Call(app, PLAIN_REQUEST, headers=HEADERS))).status == 200
            finds.add_objects(app._gateway._api_keys)

    asyncio.run(main())
    finds.add_database(tmp_path / "ledger.db")
    assert finds.marked() == []
    assert any("the key that was last read is still sent" in what for _, what in finds.seen)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_ways_to_providers(tls: bool, tmp_path: Path, finds: Finds) -> None:
    """A proxy's login and what is sent through it are not seen, be proxy and provider there or not."""

    async def main() -> None:
        authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
        async with (
            provider(tls=authority.server() if tls else None) as upstream,
            proxy(f"{CANARY}-user:{KEY}") as between,
        ):
            url = f"http://{CANARY}-user:{KEY}@127.0.0.1"
            good = {"proxy": f"{url}:{between.port}", "ca_file": str(authority.file)}
            ways = {
                "through": good,
                "no proxy there": {**good, "proxy": f"{url}:{free_port()}"},
                "wrong login": {**good, "proxy": f"{url.replace('user', 'other')}:{between.port}"},
                "no provider there": {
                    **good,
                    "url": f"{upstream.url.partition(':')[0]}://127.0.0.1:{free_port()}/{KEY}",
                },
                "another authority": {**good, "ca_file": str(stranger.file)},
            }
            for name, facts in ways.items():
                config = configured(tmp_path, {**PROVIDER, "url": upstream.url, **facts}, server=SERVER)
                app = Arbstr(config)
                async with app.lifespan():
                    body = PLAIN_REQUEST.replace(b'"m"', b'"good"')
                    reply = await finds.attempt(name, Call(app, body, headers=HEADERS))
                    assert (reply.status == 200) is (name == "through" or (name == "another authority" and not tls))
                    finds.add(f"reply to {name}", reply.body.decode())
                    ready = await finds.attempt("readyz", Call(app, path="/readyz", method="GET", headers=HEADERS))
                    finds.add("readyz", ready.body.decode())
                    made = list(app._gateway._client._httpx._own._made.values())  # type: ignore[attr-defined]
                    finds.add_objects(config, *config.providers, app, *made, *(one.proxy for one in made))
                    finds.add("rows()", await rows(app))
            assert len(upstream.lines) == (1 if tls else 2)
            assert upstream.lines[0].headers["authorization"] == f"Bearer {KEY}"

    asyncio.run(main())
    finds.add_database(tmp_path / "ledger.db")
    assert finds.marked() == []
    assert any("no answer from 127.0.0.1" in what for _, what in finds.seen)


LONG = f"{CANARY}-and-much-more"
FILE = f"""
[server]
auth_token = "{LONG}-token"
[[server.tokens]]
name = "alice"
token = "{LONG}-alice"
[[providers]]
name = "literal"
url = "https://a/v1"
api_key = "{LONG}-literal"
proxy = "http://{LONG}:{LONG}@127.0.0.1:1"
[providers.headers]
x-team = "{LONG}-header"
[providers.query]
secret = "{LONG}-query"
[[providers]]
name = "variable"
url = "https://b/v1"
api_key = "${{CANARY_KEY}}"
[[providers]]
name = "convention"
url = "https://c/v1"
[[providers]]
name = "file"
url = "https://d/v1"
api_key_file = "key"
"""
ENVIRON = {"CANARY_KEY": f"{LONG}-env", "ARBSTR_CONVENTION_API_KEY": f"{LONG}-convention", "ARBSTR_CONFIG": None}


@pytest.mark.parametrize("command", ["check", "providers", "providers --json"])
def test_commands(command: str, tmp_path: Path, finds: Finds) -> None:
    """Of keys of all sources, the commands show six characters; of all other secrets nothing."""
    path = tmp_path / "arbstr.toml"
    path.write_text(FILE)
    (tmp_path / "key").write_text(f"{LONG}-file")
    result = CliRunner().invoke(main_command, [*command.split(), "-c", str(path)], env=ENVIRON)
    assert result.exit_code == 0
    assert result.output.count("canary…***") == 4
    finds.add(command, result.output)
    assert finds.marked() == []


WRONG = {
    "key": 'api_key = "MARK\\n"',
    "key and file": 'api_key = "MARK"\napi_key_file = "x"',
    "key of another type": 'api_key = ["MARK"]',
    "login of a proxy": 'proxy = "http://a%3A:MARK@h"',
    "no proxy": 'proxy = "socks5://u:MARK@h"',
    "header": 'headers.x = "MARK\\r\\n"',
    "header of another type": 'headers.x = ["MARK"]',
    "query of another type": 'query.x = ["MARK"]',
    "credentials in the URL": 'url = "http://u:MARK@h"',
    "query in the URL": 'url = "http://h/?key=MARK"',
    "no port in the URL": 'url = "http://u:MARK@h:port"',
    "not TOML": 'api_key = "MARK',
    "not a value": "api_key = MARK",
    "twice": 'api_key = "MARK"\napi_key = "MARK2"',
    "unclosed variable": 'api_key = "MARK${"',
    "unset variable": 'api_key = "MARK${NOT_SET_ANYWHERE}"',
    "unknown": 'api_keys = "MARK"',
}


@pytest.mark.parametrize("name", WRONG)
def test_configuration_errors(name: str, tmp_path: Path, finds: Finds) -> None:
    """What is wrong with a secret is said without it, to the operator and in a traceback."""
    path = tmp_path / "arbstr.toml"
    url = "" if "URL" in name else 'url = "http://h"\n'
    path.write_text(f'[[providers]]\nname = "a"\n{url}{WRONG[name].replace("MARK", KEY)}\n')
    with pytest.raises(ConfigError) as caught:
        Config.load(path, {})
    finds.add("traceback", "".join(traceback.format_exception(caught.value)))
    result = CliRunner().invoke(main_command, ["check", "-c", str(path)], env={"ARBSTR_CONFIG": None})
    assert result.exit_code == 1
    finds.add("check", result.output)
    assert finds.marked() == []


def test_served(tmp_path: Path, finds: Finds) -> None:
    """`arbstr serve` that logs all it can, with a key in a file and a login at a proxy, prints none of them."""

    async def main() -> None:
        (tmp_path / "key").write_text(f"{LONG}-file")
        login = f"{LONG}-user:{LONG}"
        async with provider() as upstream, proxy(login) as between:
            more = f'api_key_file = "key"\nproxy = "http://{login}@127.0.0.1:{between.port}"\n'
            more += '[logging]\nlevel = "trace"\nlog_requests = true\n'
            async with spawned(tmp_path, "arbstr", upstream.url, more=more) as server:
                for model in ("good", "closes_before_headers", "refuses_key"):
                    body = PLAIN_REQUEST.replace(b'"m"', b'"%b"' % model.encode())
                    finds.add("reply", (await ask(server.url, body)).body.decode())
                (tmp_path / "key").unlink()
                await ask(server.url, body)
                assert await server.terminate(10) == 0
                finds.add("what it said", server.said())
            assert upstream.lines[0].headers["authorization"] == f"Bearer {LONG}-file"

    asyncio.run(main())
    finds.add_database(tmp_path / "ledger.db")
    assert finds.marked() == []
    assert any("INFO arbstr_asgi.requests: " in what and "its key file can't be used" in what for _, what in finds.seen)


MALFORMED = {
    "not JSON": PROMPT.encode(),
    "cut off": PLAIN_REQUEST[:-1],
    "array": b"[" + PLAIN_REQUEST + b"]",
    "string": f'"{PROMPT}"'.encode(),
    "no model": f'{{"{PROMPT}":1}}'.encode(),
    "wrong model": f'{{"model":{{"{PROMPT}":1}}}}'.encode(),
    "long model": f'{{"model":"{PROMPT * 20}"}}'.encode(),
    "wrong stream": f'{{"model":"m","stream":"{PROMPT}"}}'.encode(),
    "bad UTF-8": PLAIN_REQUEST.replace(b"prompt", b"prompt\xff"),
    "surrogate and rubbish": f'{{"model":"m","x":"\\ud83d {PROMPT}",}}'.encode(),
    "surrogate and wrong stream": f'{{"model":"m","x":"\\ud83d","stream":"{PROMPT}"}}'.encode(),
    "nested": f'{{"model":"m","{PROMPT}":'.encode() + b"[" * 100_000,
    "NaN": f'{{"model":"m","{PROMPT}":NaN}}'.encode(),
    "too large": f'{{"model":"m","x":"{PROMPT}"}}'.encode() * 20_000,
    "wrong options": f'{{"model":"m","stream":true,"stream_options":"{PROMPT}"}}'.encode(),
}


def test_bad_input(tmp_path: Path, finds: Finds) -> None:
    """What is wrong with a request is said without quoting it."""
    limits = Limits(max_body_bytes=200_000, body_timeout=0.1)
    config = configured(tmp_path, {**PROVIDER, "models": ("m",)}, server=SERVER, limits=limits, metering="require")

    async def main() -> None:
        provided = Provided()
        async with running("sub-app", config, provided) as app:
            for name, body in MALFORMED.items():
                reply = await finds.attempt(name, Call(app, body, headers=HEADERS))
                assert reply.status in (400, 413), name
            odd = [
                {"content-type": f"text/{PROMPT}"},
                {"content-encoding": PROMPT},
                {"authorization": f"Basic {COOKIE}"},
            ]
            for headers in odd:
                reply = await finds.attempt(str(headers), Call(app, PLAIN_REQUEST, headers={**HEADERS, **headers}))
                assert reply.status in (401, 415)
            assert (await finds.attempt("slow", Call(app, PLAIN_REQUEST, headers=HEADERS, stall=True))).status == 408
            other = PLAIN_REQUEST.replace(b'"m"', b'"other"')
            assert (await finds.attempt("no provider", Call(app, other, headers=HEADERS))).status == 404
            path = await finds.attempt("path", Call(app, PLAIN_REQUEST, headers=HEADERS, path=f"/v1/{PROMPT}"))
            assert path.status == 404
            assert not provided.requests
            assert len(await rows(app)) == 2
            metrics = await Call(app, method="GET", path="/metrics", headers=HEADERS).run()
            finds.add("metrics", metrics.body.decode())
            assert b"arbstr_refused_total" in metrics.body

    asyncio.run(main())
    finds.add_database(tmp_path / "ledger.db")
    assert finds.marked() == []


def test_endpoints(tmp_path: Path, finds: Finds) -> None:
    """What is told of models, costs, providers and health, and its refusals, quote no secret and no prompt."""
    provider = {**PROVIDER, "models": ("m",)}
    paths = [("GET", path) for path in ("/v1/models", "/v1/models/m", "/providers", "/health", "/livez", "/readyz")]
    paths += [("GET", f"/{PROMPT}"), ("POST", "/v1/cost"), ("PUT", "/providers")]

    async def main() -> None:
        provided = Provided(raising(httpx.ConnectError(f"{BUG} {KEY}")))
        async with running("sub-app", configured(tmp_path, provider, server=SERVER), provided) as app:
            for _ in range(3):
                await finds.attempt("chat", Call(app, PLAIN_REQUEST, headers=HEADERS))
            for method, path in paths:
                for headers in (HEADERS, {**HEADERS, "authorization": f"Bearer {COOKIE}"}):
                    await finds.attempt(path, Call(app, PLAIN_REQUEST, path=path, method=method, headers=headers))
            for name, body in MALFORMED.items():
                await finds.attempt(name, Call(app, body, path="/v1/cost", headers=HEADERS))
            finds.add_objects()

    asyncio.run(main())
    assert finds.marked() == []
    assert any(what.startswith('{"model":"m","provider":"p"') for where, what in finds.seen if where.endswith("/cost"))


def test_reports(tmp_path: Path, finds: Finds) -> None:
    """What is told of the ledger has no key, token, prompt or completion in it, nor what was asked in a refusal."""
    paths = ["/v1/stats", "/v1/stats?group_by=model,end_user", "/v1/requests", "/v1/requests?format=csv"]
    paths += ["/v1/requests?format=jsonl"]
    # A filter's value is a parameter of a statement, which aiosqlite logs at DEBUG.
    names = ("since", "model", "group_by", "tz", "sort", "cursor", "format", "status", "page")
    paths += [f"/v1/{of}?{name}={PROMPT}" for of in ("stats", "requests") for name in names]

    async def main() -> None:
        provided = Provided()
        async with running("sub-app", configured(tmp_path, PROVIDER, server=SERVER), provided) as app:
            for name, answer in answers().items():
                provided.answer = answer
                asked = STREAM_REQUEST if "stream" in name else PLAIN_REQUEST
                await finds.attempt(name, Call(app, asked, headers=HEADERS))
            calls = [row["correlation_id"] for row in await rows(app)]
            for path in (*paths, *(f"/v1/requests/{call}" for call in calls)):
                path, _, query = path.partition("?")  # noqa: PLW2901 - two parts of it
                for headers in (HEADERS, {**HEADERS, "authorization": f"Bearer {COOKIE}"}):
                    scope = {"query_string": query.encode()}
                    one = Call(app, path=path, method="GET", headers=headers, scope=scope)
                    await finds.attempt(f"{path}?{query.partition('=')[0]}", one)
            finds.add_objects()

    asyncio.run(main())
    assert finds.marked() == []
    assert any('"counts"' in what for where, what in finds.seen if where.startswith("reply to /v1/stats"))
    assert any("correlation_id,timestamp" in what for where, what in finds.seen if where.endswith("?format"))


def test_identify(tmp_path: Path, finds: Finds) -> None:
    """A host's `identify` may fail with anything in its message, and have anything in its tags."""

    def identify(scope: Any) -> Any:
        number = scope["number"]
        if number == 0:
            raise ValueError(f"{BUG} {TOKEN}")
        if number == 1:
            raise RuntimeError(BUG) from KeyError(TOKEN)
        if number == 2:
            return {TOKEN: BUG}
        if number == 3:
            return Caller("alice", tags={"secret": object(), BUG: BUG})
        raise ArbstrError(403, "no")

    async def main() -> None:
        config = configured(tmp_path, PROVIDER)
        async with running("middleware", config, Provided(streamed(DELTA, LAST)), identify=identify) as app:
            statuses = []
            for number in range(5):
                scope = {"number": number, "session": {"secret": COOKIE}}
                reply = await finds.attempt(
                    f"identify {number}", Call(app, PLAIN_REQUEST, headers=HEADERS, scope=scope)
                )
                statuses.append(reply.status)
            assert statuses == [500, 500, 500, 200, 403]
            await rows(app)

    asyncio.run(main())
    finds.add_database(tmp_path / "ledger.db")
    assert finds.marked() == []


def test_metering_bug(tmp_path: Path, finds: Finds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours that quotes what it stumbled over tells nobody."""

    def decode(payload: bytes) -> Any:
        raise RuntimeError(f"{BUG} {payload!r}")

    monkeypatch.setattr(arbstr_asgi.protocols.stream_meter, "decode", decode)
    monkeypatch.setattr(arbstr_asgi.protocols.body_meter, "decode", decode)

    async def main() -> None:
        provided = Provided()
        async with running("middleware", configured(tmp_path, PROVIDER, server=SERVER), provided) as app:
            for body, answer in ((STREAM_REQUEST, streamed(DELTA, LAST)), (PLAIN_REQUEST, plain(200, MESSAGE))):
                provided.answer = answer
                reply = await finds.attempt("metering bug", Call(app, body, headers=HEADERS))
                assert COMPLETION.encode() in reply.body
            await rows(app)

    asyncio.run(main())
    finds.add_database(tmp_path / "ledger.db")
    assert finds.marked() == []
    assert any("metering failed with RuntimeError" in what for _, what in finds.seen)


def test_ledger_failures(tmp_path: Path, finds: Finds) -> None:
    """What a database says of rows that it does not take has nothing to tell of the calls."""

    async def main() -> None:
        config = configured(tmp_path, PROVIDER, server=SERVER)
        app = built("sub-app", config, Provided(streamed(DELTA, STOP, LAST)))
        async with app.lifespan():
            with sqlite3.connect(tmp_path / "ledger.db") as connection:
                connection.execute(
                    "CREATE TRIGGER poison BEFORE INSERT ON requests BEGIN SELECT RAISE(ABORT, 'poison'); END"
                )
            connection.close()
            await finds.attempt("poisoned", Call(app, STREAM_REQUEST, headers=HEADERS))
            await app.ledger.flush()
            with sqlite3.connect(tmp_path / "ledger.db") as connection:
                connection.execute("DROP TABLE requests")
            connection.close()
            await finds.attempt("no table", Call(app, STREAM_REQUEST, headers=HEADERS))
            ready = await finds.attempt("readyz", Call(app, path="/readyz", method="GET", headers=HEADERS))
            assert ready.status in (200, 503)
            await asyncio.sleep(0.2)
            finds.add_objects()
            await app.ledger.close(timeout=0.5)

    asyncio.run(main())
    assert finds.marked() == []
    assert any(where == "log arbstr_asgi.ledger" for where, _ in finds.seen)


def test_unreachable_database(tmp_path: Path, finds: Finds) -> None:
    """A password of the database is in no log, reply, repr or spill when it can't be reached, nor is a prompt."""
    url = f"postgresql+asyncpg://someone:{KEY}@127.0.0.1:1/nowhere"

    async def main() -> None:
        config = configured(tmp_path, PROVIDER, server=SERVER, database=DatabaseConfig(url=url))
        app = built("sub-app", config, Provided())
        reply = await finds.attempt("no database", Call(app, PLAIN_REQUEST, headers=HEADERS))
        assert reply.status == 200
        ready = await finds.attempt("readyz", Call(app, path="/readyz", method="GET", headers=HEADERS))
        assert b'"spilling"' in ready.body
        finds.add_objects(config, app.ledger)
        await app._gateway.close()
        finds.add_database(app.ledger.spill_folder / "1.db")
        assert any("row of requests" in where for where, _ in finds.seen)

    asyncio.run(main())
    assert finds.marked() == []
    assert any("can't open the ledger" in what for _, what in finds.seen)


@pytest.mark.parametrize("where", ["log", "log argument", "traceback", "repr", "row", "reply"])
def test_the_search_finds(where: str, tmp_path: Path, finds: Finds) -> None:
    """Each place that is searched is really searched."""
    logger = logging.getLogger("somebody.else")
    path = tmp_path / "any.db"
    if where == "log":
        logger.debug("it said %s", PROMPT)
    elif where == "log argument":
        logger.debug("%.3s", PROMPT)
    elif where == "traceback":

        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise ValueError(KEY.upper())

        asyncio.run(finds.attempt("raising", Call(app)))
    elif where == "repr":
        finds.add_objects(Caller(end_user=TOKEN))
    elif where == "row":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE t (a)")
            connection.execute("INSERT INTO t VALUES (?)", (PROMPT,))
        connection.close()
        finds.add_database(path)
    else:
        one = Call(None)
        one.messages = [{"status": 400, "headers": []}, {"body": PROMPT.encode()}]
        finds.add_ours("any", one)
    assert finds.marked()
