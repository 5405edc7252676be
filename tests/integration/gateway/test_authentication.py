"""Who may call and in whose name: `identify`, bearer tokens, and what a row says of them."""

import asyncio
import enum
import hmac
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from arbstr_asgi import Arbstr, ArbstrError, Caller, Server, Token
from arbstr_asgi.errors import ConfigError
from arbstr_asgi.gateway.auth import MAX_TAGS_BYTES
from tests.support.asgi_client import (
    JSON_TYPE,
    PLAIN,
    PLAIN_REQUEST,
    WAYS,
    Call,
    Provided,
    Way,
    call,
    configured,
    rows,
    running,
)

KEYED = {"api_key": "our-provider-key"}
TOKENS = Server(
    auth_token="master-token",
    tokens=(Token(name="alice", token="alice-token"), Token(name="bob", token="bob-tökén")),
)


def tried(
    way: Way,
    folder: Path,
    identify: Any = None,
    *,
    server: Server | None = None,
    headers: Any = JSON_TYPE,
    scope: Mapping[str, Any] | None = None,
) -> tuple[Call, list[dict[str, Any]], list[httpx.Request]]:
    """One call: the reply, the rows, and what the provider received."""

    async def main() -> tuple[Call, list[dict[str, Any]], list[httpx.Request]]:
        provided = Provided()
        config = configured(folder, KEYED, server=server or Server())
        async with running(way, config, provided, identify=identify) as app:
            reply = await call(app, PLAIN_REQUEST, headers=headers, scope=scope)
            return reply, await rows(app), provided.requests

    return asyncio.run(main())


def bearing(authorization: bytes) -> list[tuple[bytes, bytes]]:
    """Request headers with this authorization."""
    return [(b"content-type", b"application/json"), (b"Authorization", authorization)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("identity", "columns"),
    [
        ("alice", ("alice", None, None)),
        ("", ("", None, None)),
        (Caller("alice", "acme", {"plan": "é", "n": [1]}), ("alice", "acme", '{"plan": "é", "n": [1]}')),
        (Caller(tenant="acme"), (None, "acme", None)),
        (Caller("alice", tags={}), ("alice", None, None)),
        (None, (None, None, None)),
    ],
)
def test_identified(way: Way, asynchronous: bool, identity: Any, columns: tuple[Any, ...], tmp_path: Path) -> None:
    """What `identify` says of a scope, waited for or not, is in the row's columns."""
    seen: list[Any] = []

    def plainly(scope: Any) -> Any:
        seen.append(scope["user"])
        return identity

    async def later(scope: Any) -> Any:
        await asyncio.sleep(0)
        return plainly(scope)

    reply, [row], _ = tried(way, tmp_path, later if asynchronous else plainly, scope={"user": "u1"})
    assert reply.status == 200
    assert seen == ["u1"]
    assert (row["end_user"], row["tenant"], row["tags"]) == columns


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [401, 402, 403, 429])
def test_refused(way: Way, status: int, tmp_path: Path) -> None:
    """An ArbstrError of `identify` is the answer, in its words; the body is never asked for, the provider neither."""

    async def refuse(scope: Any) -> str:
        raise ArbstrError(status, "no plan, no chat", code="no_plan", headers={"X-Plan": "“none”"})

    reply, found, requests = tried(way, tmp_path, refuse)
    assert reply.status == status
    assert reply.error == {"message": "no plan, no chat", "type": "arbstr_error", "param": None, "code": "no_plan"}
    assert reply.headers["x-plan"]
    assert reply.headers["x-arbstr-request-id"]
    assert (reply.receives, found, requests) == (0, [], [])


def raising(error: Exception) -> Any:
    """An `identify` that fails."""

    def identify(scope: Any) -> str:
        raise error

    return identify


async def unfinished(scope: Any) -> Any:
    """An async `identify` whose result is of no use."""
    return {"name": "SECRET"}


FAILING: dict[str, Any] = {
    "RuntimeError": raising(RuntimeError("SECRET")),
    "KeyError": raising(KeyError("SECRET")),
    "PermissionError": raising(PermissionError("SECRET")),
    "TimeoutError": raising(TimeoutError("SECRET")),
    "StopAsyncIteration": raising(StopAsyncIteration("SECRET")),
    "no arguments": lambda: "SECRET",
    "number": lambda scope: 42,
    "bytes": lambda scope: b"SECRET",
    "tuple": lambda scope: ("alice", "SECRET"),
    "bool": lambda scope: True,
    "awaited dict": unfinished,
}


@pytest.mark.parametrize("identify", FAILING.values(), ids=FAILING.keys())
def test_failing_identify(identify: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in `identify` is a 500 that lets nobody in, and one log line that names its type and place only."""
    with caplog.at_level(logging.DEBUG):
        reply, found, requests = tried("middleware", tmp_path, identify)
    assert (reply.status, reply.error["code"]) == (500, "identify_failed")
    assert (reply.receives, found, requests) == (0, [], [])
    [line] = [record for record in caplog.records if record.name == "arbstr_asgi" and record.levelno > logging.DEBUG]
    assert line.levelno == logging.ERROR
    assert line.getMessage().startswith("identify failed: ")
    assert "SECRET" not in caplog.text + reply.body.decode()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("authorization", "end_user"),
    [
        (b"Bearer master-token", None),
        (b"Bearer alice-token", "alice"),
        (b"bearer alice-token", "alice"),
        (b"BEARER  alice-token ", "alice"),
        ("Bearer bob-tökén".encode(), "bob"),
    ],
)
def test_token(way: Way, authorization: bytes, end_user: str | None, tmp_path: Path) -> None:
    """A token lets in, a named one in its holder's name, and never goes on to the provider."""
    reply, [row], [request] = tried(way, tmp_path, server=TOKENS, headers=bearing(authorization))
    assert reply.status == 200
    assert row["end_user"] == end_user
    assert request.headers["authorization"] == "Bearer our-provider-key"
    sent = b"".join(name + value for name, value in request.headers.raw) + request.content + str(request.url).encode()
    assert authorization.split()[1] not in sent


@pytest.mark.parametrize(
    ("token", "sent"),
    [
        ("end\u00a0", "end\u00a0".encode()),
        ("\u3000start", "\u3000start".encode()),
        ("end\u0085", "end\u0085".encode()),
        ("end\u2028", "end\u2028".encode()),
        ("in side\tof", b"in side\tof"),
        ("raw\udcff", b"raw\xff"),
        ("raw\udca0", b"raw\xa0"),
    ],
)
def test_tokens_are_bytes(token: str, sent: bytes, tmp_path: Path) -> None:
    """Of what comes behind `Bearer` only spaces and tabs are taken off, and the rest is compared byte for byte."""
    server = Server(tokens=(Token(name="odd", token=token),))
    for padded in (sent, b" " + sent + b"\t "):
        reply, [row], _ = tried("middleware", tmp_path, server=server, headers=bearing(b"Bearer " + padded))
        assert (reply.status, row["end_user"]) == (200, "odd")
        (tmp_path / "ledger.db").unlink()
    for other in (sent.replace(b"\xc2", b""), sent + b"\xa0", sent + b"\xc2\xa0", sent.strip(b"\xa0\x85")):
        if other != sent:
            reply, _, requests = tried("middleware", tmp_path, server=server, headers=bearing(b"Bearer " + other))
            assert (reply.status, requests) == (401, [])


@pytest.mark.parametrize("token", [" t", "t ", "t\t", "t\n", "t\r\n", "\t", "a\nb", "a\0b", "a\x7f", "t\x0b", "\ud800"])
def test_tokens_that_never_match(token: str) -> None:
    """A token that no header can bring is refused when the configuration is made, and not shown."""
    for make in (lambda: Token(name="a", token=token), lambda: Server(auth_token=token)):
        with pytest.raises(ConfigError, match="token: ") as caught:
            make()
        assert repr(token) not in caught.value.message


def test_tokens_that_are_the_same_bytes() -> None:
    """Two spellings of one token would not say who calls."""
    with pytest.raises(ConfigError, match="same token"):
        Server(auth_token="\udcc3\udca9", tokens=(Token(name="a", token="é"),))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"Bearer master-toke",
        b"Bearer master-token-",
        b"Bearer MASTER-TOKEN",
        b"Bearer master-token, Bearer alice-token",
        b"Basic master-token",
        b"Token alice-token",
        b"master-token",
        b"Bearermaster-token",
        "Bearer bob-tökén".encode("latin-1"),
        b"Bearer \xff\xfe",
        b"Bearer \x00",
    ],
)
def test_wrong_token(way: Way, authorization: bytes | None, tmp_path: Path) -> None:
    """Anything but a token after `Bearer` is a 401 that says how to do it; nothing is read and nothing is sent."""
    headers = JSON_TYPE if authorization is None else bearing(authorization)
    reply, found, requests = tried(way, tmp_path, server=TOKENS, headers=headers)
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert (reply.receives, found, requests) == (0, [], [])


@pytest.mark.parametrize(
    "authorization", [b"Bearer alice-token", b"Bearer master-token", b"Bearer wrong", b"Basic alice-token", b""]
)
def test_constant_time(authorization: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is compared, by `hmac.compare_digest`, whichever is right: time tells nothing."""
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    tried("middleware", tmp_path, server=TOKENS, headers=bearing(authorization))
    assert sorted(compared) == sorted([b"alice-token", b"master-token", "bob-tökén".encode()])


@pytest.mark.parametrize(
    ("identity", "end_user", "tenant"),
    [(None, "alice", None), ("carol", "carol", None), (Caller(tenant="acme"), None, "acme")],
)
def test_token_and_identify(identity: Any, end_user: str | None, tenant: str | None, tmp_path: Path) -> None:
    """With both, both must let in; the name is what `identify` says, and the token's where it says nothing."""
    headers = bearing(b"Bearer alice-token")
    reply, [row], _ = tried("middleware", tmp_path, lambda scope: identity, server=TOKENS, headers=headers)
    assert (reply.status, row["end_user"], row["tenant"]) == (200, end_user, tenant)


def test_token_before_identify(tmp_path: Path) -> None:
    """Without a token `identify` is not even asked, and with one it may still refuse."""
    asked: list[Any] = []

    def identify(scope: Any) -> str:
        asked.append(scope)
        raise ArbstrError(403, "no")

    assert tried("middleware", tmp_path, identify, server=TOKENS)[0].status == 401
    assert not asked
    reply, found, requests = tried(
        "middleware", tmp_path, identify, server=TOKENS, headers=bearing(b"Bearer alice-token")
    )
    assert (reply.status, found, requests) == (403, [], [])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("server", "identify", "warned"),
    [
        (Server(), None, True),
        (Server(public=True), None, False),
        (Server(auth_token="t"), None, False),
        (Server(tokens=(Token(name="a", token="t"),)), None, False),
        (Server(), lambda scope: None, False),
    ],
    ids=["nobody", "public", "token", "named token", "identify"],
)
def test_warning(
    way: Way, server: Server, identify: Any, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A path that nobody guards is said so at start, with what to do; a guarded or public one is not."""

    async def main() -> None:
        async with running(way, configured(tmp_path, server=server), Provided(), identify=identify):
            pass

    asyncio.run(main())
    warnings = [r.getMessage() for r in caplog.records if r.name == "arbstr_asgi" and r.levelno == logging.WARNING]
    assert len(warnings) == warned
    assert all("identify" in line and "auth_token" in line and "public" in line for line in warnings)


@pytest.mark.parametrize(
    "name",
    ["'; DROP TABLE requests; --", "line\r\nbreak", "x" * 255, "👩" * 255, "al\ufffdice", "alice ", "I'm", "\u0130"],
    ids=["SQL", "line break", "255", "255 emoji", "U+FFFD", "space", "quote", "dotted I"],
)
def test_hostile_names(name: str, tmp_path: Path) -> None:
    """A name that every database can keep is kept in all its characters."""
    reply, [row], _ = tried("middleware", tmp_path, lambda scope: Caller(name, name))
    assert (reply.status, reply.body) == (200, PLAIN)
    assert (row["end_user"], row["tenant"]) == (name, name)


UNFIT = ["a\0b", "\0", "a\ud83db", "x" * 256, "👩" * 256, 42]


@pytest.mark.parametrize("way", [*WAYS, "respond"])
@pytest.mark.parametrize("field", ["end_user", "tenant"])
@pytest.mark.parametrize("name", UNFIT, ids=["NUL", "only NUL", "surrogate", "256", "256 emoji", "no string"])
def test_unfit_names(way: Any, field: str, name: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A name that would have to be altered is a 500 in OpenAI's shape and a line in the log; nothing is sent."""
    caller = Caller(**{field: name})

    async def main() -> None:
        provided = Provided()
        if way == "respond":
            app: Any = Arbstr(configured(tmp_path, KEYED), transport=httpx.MockTransport(provided))

            async def chat(request: Request) -> Response:
                return await app.respond(request, caller=caller)

            reply = await call(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])]), PLAIN_REQUEST)
        else:
            async with running(way, configured(tmp_path, KEYED), provided, identify=lambda scope: caller) as app:
                reply = await call(app, PLAIN_REQUEST)
                assert await rows(app) == []
        assert (reply.status, reply.error["code"]) == (500, "invalid_caller_name")
        assert not provided.requests

    asyncio.run(main())
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert field in line
    assert "255" in line


class Plan(str, enum.Enum):  # noqa: UP042 - unlike a StrEnum its str() is not its value
    """A host's own strings."""

    ALICE = "alice"


def test_names_of_a_kind_of_str(tmp_path: Path) -> None:
    """A subclass of str is its characters, whatever its own `__str__` says."""
    _, [row], _ = tried("middleware", tmp_path, lambda scope: Caller(Plan.ALICE, Plan.ALICE))
    assert (row["end_user"], row["tenant"]) == ("alice", "alice")


@pytest.mark.parametrize("name", UNFIT[:-1])
def test_unfit_names_of_tokens(name: str) -> None:
    """The name of a token is an end user too, and one that does not fit is refused at start."""
    with pytest.raises(ConfigError, match="name: at most 255 characters"):
        Token(name=name, token="t")


class Exploding(Mapping[str, Any]):
    """Tags of a host that fail when they are looked at."""

    def __getitem__(self, key: str) -> Any:
        raise LookupError("SECRET")

    def __iter__(self) -> Any:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


def endless() -> dict[str, Any]:
    """Tags that hold themselves."""
    tags: dict[str, Any] = {}
    tags["self"] = tags
    return tags


def deep() -> dict[str, Any]:
    """Tags in tags in tags."""
    tags: dict[str, Any] = {}
    for _ in range(100_000):
        tags = {"a": tags}
    return tags


UNFIT: dict[str, Any] = {
    "object": {"a": object()},
    "NaN": {"a": float("nan")},
    "endless": endless(),
    "deep": deep(),
    "bytes": {"a": b"SECRET"},
    "tuple key": {("a", 1): 1},
    "too big": {"a": "x" * MAX_TAGS_BYTES},
    "too many bytes": {"a": "é" * (MAX_TAGS_BYTES // 2)},
    "exploding": Exploding(),
    "text": "SECRET",
}


@pytest.mark.parametrize("tags", UNFIT.values(), ids=UNFIT.keys())
def test_unfit_tags(tags: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tags that are no small JSON object are left out with a WARNING that doesn't quote them; the call goes on."""
    reply, [row], _ = tried("middleware", tmp_path, lambda scope: Caller("alice", tags=tags))
    assert (reply.status, row["end_user"], row["tags"]) == (200, "alice", None)
    assert "tags were not recorded" in caplog.text
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    ("tags", "stored"),
    [
        (MappingProxyType({"a": 1}), '{"a": 1}'),
        ({"a": "\ud83d\0"}, None),
        ({"a": "x" * (MAX_TAGS_BYTES - 9)}, '{"a": "' + "x" * (MAX_TAGS_BYTES - 9) + '"}'),
    ],
    ids=["mapping", "hostile text", "just fits"],
)
def test_fit_tags(tags: Any, stored: str | None, tmp_path: Path) -> None:
    """Any mapping of JSON values is stored, and what is stored is JSON."""
    reply, [row], _ = tried("middleware", tmp_path, lambda scope: Caller(tags=tags))
    assert reply.status == 200
    assert isinstance(json.loads(row["tags"])["a"], int | str)
    assert stored is None or row["tags"] == stored


@pytest.mark.parametrize(
    ("caller", "columns"),
    [("alice", ("alice", None)), (Caller("alice", "acme"), ("alice", "acme")), (None, (None, None))],
)
def test_respond(caller: Any, columns: tuple[Any, Any], tmp_path: Path) -> None:
    """Inside a host's route the host has decided: neither tokens nor `identify` are asked, its caller is in the row."""

    def never(scope: Any) -> str:
        raise AssertionError("asked")

    async def main() -> None:
        provided = Provided()
        config = configured(tmp_path, KEYED, server=TOKENS)
        llm = Arbstr(config, identify=never, transport=httpx.MockTransport(provided))

        async def chat(request: Request) -> Response:
            return await llm.respond(request, caller=caller)

        app = Starlette(routes=[Route("/my/chat", chat, methods=["POST"])])
        async with llm.lifespan():
            reply = await call(
                app, [PLAIN_REQUEST[:9], PLAIN_REQUEST[9:]], path="/my/chat", headers=bearing(b"Basic x")
            )
            assert (reply.status, reply.body) == (200, PLAIN)
            [row] = await rows(llm)
            assert (row["end_user"], row["tenant"]) == columns
            assert provided.requests[0].headers["authorization"] == "Bearer our-provider-key"

    asyncio.run(main())


def test_respond_wrong_caller(tmp_path: Path) -> None:
    """A caller of the wrong type is a TypeError in the host's own route, before anything is sent."""

    async def main() -> None:
        provided = Provided()
        llm = Arbstr(configured(tmp_path), transport=httpx.MockTransport(provided))
        scope = Call(llm).scope
        with pytest.raises(TypeError, match="expected a name, a Caller or None, not int"):
            await llm.respond(Request(scope), caller=42)  # type: ignore[arg-type]
        assert not provided.requests

    asyncio.run(main())
