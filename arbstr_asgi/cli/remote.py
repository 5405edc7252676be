"""Asks a running server, over HTTP."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from arbstr_asgi.cli.output import escape_terminal
from arbstr_asgi.config.settings import token_bytes
from arbstr_asgi.errors import ConfigError, LedgerError

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_decoder = msgspec.json.Decoder(float_hook=Decimal)


class RemoteSource:
    """A running server, as an async context. Raises ConfigError for an invalid URL."""

    def __init__(self, url: str, token: str | None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        try:
            at = urlsplit(url)
            _ = at.port
        except ValueError:
            raise ConfigError("--url: not a URL") from None
        if at.scheme not in ("http", "https") or not at.hostname or at.query or at.fragment or at.username is not None:
            raise ConfigError("--url: must look like http://127.0.0.1:8080, without a user, ? or #")
        headers = {} if token is None else {b"authorization": b"Bearer " + token_bytes(token)}
        self._base = url.rstrip("/")
        self._client = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, transport=transport, trust_env=False)

    async def __aenter__(self) -> "RemoteSource":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.aclose()

    async def get(self, path: str, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """The JSON response to a GET, numbers exact. Raises LedgerError, which says why there is none."""
        try:
            async with self._client.stream("GET", f"{self._base}{quote(path)}", params=list(pairs)) as reply:
                body = await _read_limited(reply)
        except httpx.HTTPError as error:
            raise LedgerError(f"{self._base} can't be reached: {type(error).__name__}") from None
        answer = _decode(body)
        if reply.status_code == 200 and isinstance(answer, dict):
            return answer
        raise LedgerError(self._error_message(reply.status_code, answer))

    def _error_message(self, status: int, answer: Any) -> str:
        error = answer.get("error") if isinstance(answer, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        text = escape_terminal(message)[:500] if isinstance(message, str) else None
        if status == 401:
            return f"{self._base} does not let us in (401): give its bearer token in ARBSTR_TOKEN or with --token-file"
        if status == 404 and (text is None or text == "Not Found."):
            return f"there is no ledger to ask at {self._base} (404): is it arbstr, of this version?"
        if status == 200:
            return f"{self._base} answered something that is not understood"
        return f"{self._base} answered {status}{f': {text}' if text else ''}"


async def _read_limited(reply: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in reply.aiter_bytes():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            raise LedgerError("the server's answer is longer than 64 MiB; ask for less")
    return bytes(body)


def _decode(body: bytes) -> Any:
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError, ArithmeticError):
        return None
