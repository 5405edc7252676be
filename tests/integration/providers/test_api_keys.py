"""Keys are what they are at the moment of a request: in a file, from a function, and on the wire."""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import arbstr_asgi.providers.api_keys
from arbstr_asgi import ConfigError, Provider
from arbstr_asgi.config.api_keys import masked
from arbstr_asgi.errors import ProviderKeyError
from arbstr_asgi.providers.api_keys import ApiKeys
from tests.support.asgi_client import JSON_TYPE, STREAM_REQUEST, Chunks, Provided, call, configured, good, running
from tests.support.fake_provider import plain, provider
from tests.support.raw_http_client import ask
from tests.support.servers import Gateway, gateway

ASKED = {"model": "good", "messages": []}


def of_file(path: Path) -> Provider:
    """A provider whose key is in a file."""
    return Provider(name="p", url="http://h", api_key_file=str(path))


def replaced(path: Path, text: str) -> None:
    """Rotate as secret managers do: a new file takes the place of the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def rewritten(path: Path, text: str) -> None:
    """Rotate as people do: the same file has something else in it."""
    path.write_text(text)


def linked(path: Path, text: str) -> None:
    """Rotate as Kubernetes does: a link points elsewhere."""
    elsewhere = path.parent / text.strip()
    elsewhere.write_text(text)
    link = path.with_suffix(".link")
    link.symlink_to(elsewhere)
    link.replace(path)


ROTATIONS = [replaced, rewritten, linked]


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_rotated(rotate: Callable[[Path, str], None], tmp_path: Path) -> None:
    """A key that is rotated in its file is sent with the next request, over real sockets, each time."""

    async def main() -> list[str]:
        path = tmp_path / "key"
        path.write_text("key-0\n")
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"api_key_file": str(path)}) as it:
            for number in range(1, 6):
                assert (await ask(it.url, ASKED)).body == plain()
                rotate(path, f"key-{number}\n")
            await ask(it.url, ASKED)
            return [line.headers["authorization"] for line in upstream.lines]

    assert asyncio.run(main()) == [f"Bearer key-{number}" for number in range(6)]


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_rotated_at_once(rotate: Callable[[Path, str], None], tmp_path: Path) -> None:
    """Neither a clock that is too coarse nor a time that is set back hides a rotation."""

    async def main() -> None:
        path, keys = tmp_path / "key", ApiKeys()
        for number in range(1000, 1500):
            rotate(path, f"key-{number}")
            os.utime(path, (1, 1))
            assert await keys.get(of_file(path)) == f"key-{number}"

    asyncio.run(main())


def test_settled_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has been the same for a while is looked at, and not read."""
    path, keys = tmp_path / "key", ApiKeys()
    path.write_text("key-1")
    now = path.stat().st_mtime_ns
    reads: list[str] = []
    read = arbstr_asgi.providers.api_keys.read_key_file

    def counted(path: str) -> Any:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(arbstr_asgi.providers.api_keys, "read_key_file", counted)
    for later, count in ((0, 1), (1, 2), (3_000_000_000, 3), (4_000_000_000, 3)):
        monkeypatch.setattr(arbstr_asgi.providers.api_keys, "time_ns", lambda later=later: now + later)
        assert asyncio.run(keys.get(of_file(path))) == "key-1"
        assert len(reads) == count


@pytest.mark.parametrize(
    "content", [b"key-1", b"\n key-1 \r\nsecond line\n", b"\xef\xbb\xbfkey-1\n", b"key-1" + b"\n" * 5]
)
def test_content(content: bytes, tmp_path: Path) -> None:
    """The key is the first line with something in it, without what editors put around it."""
    path = tmp_path / "key"
    path.write_bytes(content)
    assert asyncio.run(ApiKeys().get(of_file(path))) == "key-1"


NOT_KEYS = {
    "empty": b"",
    "blank": b" \n",
    "not ASCII": "schlüssel".encode(),
    "not text": b"\xff\xfe\x00",
    "tab": b"a\tb",
}


@pytest.mark.parametrize("broken", [*NOT_KEYS, "missing", "folder", "pipe"])
def test_unreadable(broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is no key is an error, or where there was one before, a WARNING, and the last key is sent on."""
    path, good = tmp_path / "secret-place", tmp_path / "good"

    def spoil() -> None:
        path.unlink(missing_ok=True)
        if broken in NOT_KEYS:
            path.write_bytes(NOT_KEYS[broken])
        elif broken == "folder":
            path.mkdir()
        elif broken == "pipe":
            os.mkfifo(path)

    async def main() -> None:
        spoil()
        with pytest.raises(ProviderKeyError) as caught:
            await ApiKeys().get(of_file(path))
        assert (caught.value.status_code, caught.value.sent) == (502, False)
        assert caught.value.__context__ is None, "it may hold what was read"
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        caplog.clear()
        path.rmdir() if broken == "folder" else path.unlink(missing_ok=True)
        good.write_text("key-1")
        good.rename(path)
        keys = ApiKeys()
        assert await keys.get(of_file(path)) == "key-1"
        spoil()
        for _ in range(3):
            assert await keys.get(of_file(path)) == "key-1"

    asyncio.run(main())
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("provider p: its key file can't be used (")
    assert "secret-place" not in caplog.text
    assert "key-1" not in caplog.text


def test_warns_once_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that stays away is a line a minute, and its return needs nobody."""
    path, keys = tmp_path / "key", ApiKeys()
    path.write_text("key-1")
    asyncio.run(keys.get(of_file(path)))
    path.unlink()
    for now, lines in ((0.0, 1), (59.0, 1), (60.0, 2), (61.0, 2)):
        monkeypatch.setattr(arbstr_asgi.providers.api_keys, "monotonic", lambda now=now: now)
        assert asyncio.run(keys.get(of_file(path))) == "key-1"
        assert len(caplog.records) == lines
    path.write_text("key-2")
    assert asyncio.run(keys.get(of_file(path))) == "key-2"


def test_unavailable(tmp_path: Path) -> None:
    """A call whose key can't be had gets a 502 in OpenAI's shape, has its row, and never reaches the provider."""

    async def main() -> None:
        path = tmp_path / "key"
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"api_key_file": str(path)}) as it:
            reply = await ask(it.url, ASKED)
            assert reply.status == 502
            assert reply.json["error"] == {
                "message": "The server has no key for the provider.",
                "type": "upstream_error",
                "param": None,
                "code": "provider_key_unavailable",
            }
            row = await it.row()
            assert row["error_message"] == "upstream_error: provider_key_unavailable"
            assert upstream.lines == []

    asyncio.run(main())


def in_turn() -> Callable[[], str]:
    """A function that gives another key each time."""
    keys = iter(["key-1", "key-2"])
    return lambda: next(keys)


def in_turn_async() -> Callable[[], Awaitable[str]]:
    """The same, as a coroutine function."""
    following = in_turn()

    async def ask_vault() -> str:
        await asyncio.sleep(0)
        return following()

    return ask_vault


class Vault:
    """An object that is called, and gives something that is awaited."""

    def __init__(self) -> None:
        self._ask = in_turn_async()

    def __call__(self) -> Awaitable[str]:
        return asyncio.ensure_future(self._ask())


@pytest.mark.parametrize("function", [in_turn, in_turn_async, Vault])
def test_function(function: Callable[[], Any], tmp_path: Path) -> None:
    """A function is asked for the key of each request."""

    async def main() -> list[str]:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"api_key": function()}) as it:
            for _ in range(2):
                assert (await ask(it.url, ASKED)).status == 200
            return [line.headers["authorization"] for line in upstream.lines]

    assert asyncio.run(main()) == ["Bearer key-1", "Bearer key-2"]


def raising(error: Exception) -> Callable[[], str]:
    """A function that fails."""

    def fail() -> str:
        raise error

    return fail


async def fails_later() -> str:
    """A coroutine function that fails."""
    await asyncio.sleep(0)
    raise RuntimeError("secret")


FAILING: dict[str, Any] = {
    "raises": raising(RuntimeError("secret")),
    "raises an error of ours": raising(ConfigError("secret")),
    "raises later": fails_later,
    "None": lambda: None,
    "empty": lambda: "",
    "a line break": lambda: "secret\r\nx: y",
    "bytes": lambda: b"secret",
    "not ASCII": lambda: "secrét",
    "wants an argument": lambda secret: secret,
}


@pytest.mark.parametrize("name", FAILING)
def test_failing_function(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A function that fails, or gives what is no key, is a 502; its message, which may hold the key, is nowhere."""

    async def ask_gateway(it: Gateway) -> None:
        reply = await ask(it.url, ASKED)
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_key_unavailable")
        assert b"secret" not in reply.body
        assert (await it.row())["error_message"] == "upstream_error: provider_key_unavailable"

    async def main() -> None:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"api_key": FAILING[name]}) as it:
            await ask_gateway(it)
            assert upstream.lines == []

    asyncio.run(main())
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage().startswith("provider p: its function for the key failed: ")
    assert "secret" not in caplog.text


def test_key_of_the_second_attempt(tmp_path: Path) -> None:
    """A provider that is asked again without `stream_options` is sent the key of that moment."""

    def refusing(request: httpx.Request) -> httpx.Response:
        if b"stream_options" in request.content:
            return httpx.Response(400, headers=JSON_TYPE, stream=Chunks(b'{"error":"stream_options"}'))
        return good(request)

    async def main() -> list[str]:
        provided = Provided(refusing)
        async with running("middleware", configured(tmp_path, {"api_key": in_turn()}), provided) as app:
            assert (await call(app, STREAM_REQUEST)).status == 200
        return [request.headers["authorization"] for request in provided.requests]

    assert asyncio.run(main()) == ["Bearer key-1", "Bearer key-2"]


def test_azure(tmp_path: Path) -> None:
    """Azure's way: the bare key in a header of another name, and a version in the query."""

    async def main() -> tuple[str, dict[str, str]]:
        facts = {"api_key": "azure-key", "auth_header": "api-key", "query": {"api-version": "2024-10-21"}}
        async with provider() as upstream, gateway(tmp_path, upstream.url, facts) as it:
            assert (await ask(it.url, ASKED, headers={"api-key": "theirs", "authorization": "theirs"})).status == 200
            return upstream.lines[0].target, upstream.lines[0].headers

    target, headers = asyncio.run(main())
    assert target == "/v1/chat/completions?api-version=2024-10-21"
    assert headers["api-key"] == "azure-key"
    assert "authorization" not in headers


def test_refused_key_of_any_source(tmp_path: Path) -> None:
    """Whatever way a key comes, a 401 is about it and not about the client's."""
    for facts in ({"api_key": "k"}, {"api_key": lambda: "k"}, {"api_key_file": "k"}):
        one = Provider(name="p", url="http://h", **facts)  # type: ignore[arg-type]
        assert one.has_key
        assert one.sends_own_credentials(client_authorizes=True)
    assert not Provider(name="p", url="http://h").has_key


def test_masked() -> None:
    """Of a long key its beginning is shown, of a short one nothing."""
    assert masked("sk-0123456789abcdef") == "sk-012…***"
    assert masked("0123456789abcdef") == "012345…***"
    assert masked("0123456789abcde") is None
    assert masked(None) is None
    assert masked(lambda: "sk-0123456789abcdef") is None


def test_the_loop_is_not_held(tmp_path: Path) -> None:
    """A pipe that nobody writes to makes no call wait."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    done = threading.Event()

    def look() -> None:
        with pytest.raises(ProviderKeyError):
            asyncio.run(ApiKeys().get(of_file(path)))
        done.set()

    threading.Thread(target=look, daemon=True).start()
    assert done.wait(5)


def test_socket_is_no_key_file(tmp_path: Path) -> None:
    """Neither is a socket, whatever it says."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(ProviderKeyError):
            asyncio.run(ApiKeys().get(of_file(tmp_path / "s")))
