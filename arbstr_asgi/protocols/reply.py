"""Decodes responses, and summarises them event by event or from one JSON body."""

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from arbstr_asgi.protocols.usage import Usage, read_usage

_WORD = re.compile(r"[A-Za-z_]{1,48}")
MAX_DIGITS = 40


class Chunk(msgspec.Struct, gc=False):
    """A decoded event or body; each field may have any type."""

    id: Any = None
    model: Any = None
    object: Any = None
    service_tier: Any = None
    error: Any = None
    type: Any = None
    code: Any = None
    choices: Any = None
    usage: Any = msgspec.UNSET
    x_groq: Any = None
    raw_usage: bytes | None = None


class _WithRaw(Chunk, gc=False):
    """The same with `usage` as raw JSON, decoded separately."""

    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _decimal(digits: str) -> Decimal | None:
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent beyond what Decimal can hold
        return None


_decoder = msgspec.json.Decoder(_WithRaw, float_hook=_decimal)
_usage = msgspec.json.Decoder(float_hook=_decimal)
_FIELDS = frozenset(Chunk.__struct_fields__) - {"raw_usage"}


def decode(payload: bytes) -> Chunk | None:
    """The JSON object in `payload`, None for anything else. Accepts what `json.loads` accepts (NaN, invalid UTF-8)."""
    try:
        chunk: Chunk = _decoder.decode(payload)
        raw = chunk.usage
        if raw is not msgspec.UNSET:
            chunk.usage = _usage.decode(raw)
            if isinstance(chunk.usage, dict):
                chunk.raw_usage = bytes(raw)
        return chunk
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_leniently(payload)


def _decode_leniently(payload: bytes) -> Chunk | None:
    try:
        value = json.loads(
            payload.decode("utf-8", "replace"), parse_float=_decimal, parse_int=_int, parse_constant=lambda name: None
        )
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    chunk = Chunk(**{name: value[name] for name in _FIELDS & value.keys()})
    if isinstance(chunk.usage, dict):
        chunk.raw_usage = json.dumps(chunk.usage, default=float, ensure_ascii=False).encode("utf-8", "replace")
    return chunk


def _int(digits: str) -> int | None:
    return int(digits) if len(digits) <= MAX_DIGITS else None


class ReplySummary:
    """The state of a response as far as it has been read.

    `usage` is the last one reported, never a sum; `usage_is_final`: it can not be an interim value of a cumulative
    stream any more. `error` is the type and code of an error, no other text of the provider. `started` is set by the
    first content, `seen_done` by `[DONE]`, `finished` once the response is known to be complete. `events` counts the
    data events up to the first `[DONE]`.
    """

    __slots__ = (
        "error",
        "events",
        "finish_reason",
        "finished",
        "id",
        "model",
        "seen_done",
        "service_tier",
        "started",
        "usage",
        "usage_is_final",
    )

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.usage_is_final = False
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.id: str | None = None
        self.service_tier: str | None = None
        self.error: str | None = None
        self.seen_done = False
        self.started = False
        self.finished = False
        self.events = 0

    def update(self, chunk: Chunk, event: bytes = b"") -> None:
        """Add one event of a stream."""
        choices = chunk.choices if isinstance(chunk.choices, list) else []
        for position, choice in enumerate(choices):
            if isinstance(choice, dict):
                self._choose(choice, position)
        self.model = self.model or _text(chunk.model)
        self.id = self.id or _text(chunk.id)
        self.service_tier = _text(chunk.service_tier) or self.service_tier
        if chunk.error is not None or chunk.object == "error" or event == b"error":
            self.error = error_words(chunk.error if chunk.error is not None else chunk)
        usage = _find_usage(chunk, choices)
        if usage is not None:
            self.usage = usage
            self.usage_is_final = self.finish_reason is not None or not choices

    def update_body(self, chunk: Chunk) -> None:
        """Add a response that is one JSON object."""
        self.update(chunk)
        self.started = self.finished = self.usage_is_final = True

    def end(self) -> None:
        """The stream has ended regularly."""
        self.finished = self.seen_done or self.finish_reason is not None
        self.usage_is_final = self.usage_is_final or self.finished

    def _choose(self, choice: dict[str, Any], position: int) -> None:
        reason = choice.get("finish_reason")
        if reason == "error":
            self.error = self.error or "error"
        index = choice.get("index")
        if (position if index is None else index) == 0:
            self.finish_reason = _text(reason) or self.finish_reason
        if not self.started:
            delta = choice.get("delta") or choice.get("message") or {"text": choice.get("text")}
            self.started = isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")


def _find_usage(chunk: Chunk, choices: list[Any]) -> Usage | None:
    usage = read_usage(chunk.usage, chunk.raw_usage)
    places = [chunk.x_groq, *choices[:1]]
    for place in places:
        if usage is None and isinstance(place, dict):
            inner = place.get("usage")
            raw = json.dumps(inner, default=float, ensure_ascii=False).encode("utf-8", "replace") if inner else None
            usage = read_usage(inner, raw)
    return usage


def error_words(error: object) -> str:
    """Type and code of an error, where they are plain words or a number; never its message, which quotes prompts."""
    if isinstance(error, Chunk):  # vLLM's older errors are the object itself
        error = {"type": error.type, "code": error.code}
    if not isinstance(error, dict):
        return "error"
    words = [word for word in (_word(error.get("type")), _word(error.get("code"))) if word]
    return ": ".join(words) or "error"


def _word(value: object) -> str | None:
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    return str(value) if type(value) is int and 100 <= value <= 9999 else None


def _text(value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    # An escaped lone surrogate is a str that can't be encoded.
    return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
