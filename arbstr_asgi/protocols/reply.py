"""What a reply says: learned event by event, or from a JSON body at once."""

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from arbstr_asgi.protocols.usage import Usage, read_usage

_WORD = re.compile(r"[A-Za-z_]{1,48}")
MAX_DIGITS = 40


class Chunk(msgspec.Struct, gc=False):
    """A decoded event or body; every field may be anything."""

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
    base_resp: Any = None
    raw_usage: bytes | None = None
    is_silent: bool = False
    """Whether there is a usage object, and no choice says anything to the reader."""
    says_more: bool = False
    """Whether a silent one has other members than the usual ones."""


class _WithRaw(Chunk, gc=False):
    """The same with its usage as it came, to be decoded alone."""

    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_NULL = msgspec.Raw(b"null")


def _decimal(digits: str) -> Decimal | None:
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent beyond what Decimal can hold
        return None


_decoder = msgspec.json.Decoder(_WithRaw, float_hook=_decimal)
_usage = msgspec.json.Decoder(float_hook=_decimal)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FIELDS = frozenset(Chunk.__struct_fields__) - {"raw_usage", "is_silent", "says_more"}
# What an event has that is there for its usage alone. LiteLLM's proxy echoes `stream_options`.
_ENVELOPE = {
    *("id", "object", "created", "model", "system_fingerprint", "service_tier", "provider", "obfuscation", "choices"),
    *("usage", "x_groq", "error", "stream_options"),
}


def decode(payload: bytes) -> Chunk | None:
    """The JSON object in `payload`; None for anything else. Reads what `json.loads` would read (NaN, bad UTF-8)."""
    try:
        chunk: Chunk = _decoder.decode(payload)
        raw = chunk.usage
        if raw is not msgspec.UNSET:
            chunk.usage = _usage.decode(raw)
            if isinstance(chunk.usage, dict):
                chunk.raw_usage = bytes(raw)
                chunk.is_silent = _is_silent(chunk.choices)
                chunk.says_more = chunk.is_silent and _says_more(_members.decode(payload))
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
        chunk.is_silent = _is_silent(chunk.choices)
        chunk.says_more = chunk.is_silent and _says_more(value)
    return chunk


def _is_silent(choices: object) -> bool:
    """Whether there is no choice, or none that says anything."""
    return not choices or (isinstance(choices, list) and all(map(_says_nothing, choices)))


def _says_nothing(choice: object) -> bool:
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    empty = not delta or (isinstance(delta, dict) and not any(said for key, said in delta.items() if key != "role"))
    return empty and not any(said for key, said in choice.items() if key not in ("index", "delta"))


def _says_more(members: Mapping[str, object]) -> bool:
    """Whether there is more than the envelope of a usage and figures of cost; null says nothing."""
    return any(
        name not in _ENVELOPE and "cost" not in name and value is not None and value != _NULL
        for name, value in members.items()
    )


def _int(digits: str) -> int | None:
    return int(digits) if len(digits) <= MAX_DIGITS else None


class ReplySummary:
    """What has been learned of a reply so far.

    The last usage wins and is never summed; `usage_is_final` says that it can't be an interim value of a cumulative
    stream any more. A usage of zeros counts only where the whole reply says nothing. `error` is in our words: type and
    code, nothing else the provider wrote. `started` is set by the first content, `done` by `[DONE]`, `complete` once
    the reply is known to have ended as it should. `events` counts the dispatched data events up to the first `[DONE]`.
    `open_choices` are the indices of those that have spoken and not finished.
    """

    __slots__ = (
        "_closed_choices",
        "_placeholder",
        "error",
        "events",
        "finish_reason",
        "finished",
        "id",
        "model",
        "open_choices",
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
        self.open_choices: set[int] = set()
        self._closed_choices: set[int] = set()
        self._placeholder: Usage | None = None

    @property
    def has_stopped(self) -> bool:
        """Whether every choice that has spoken has finished."""
        return bool(self._closed_choices) and not self.open_choices

    def update(self, chunk: Chunk, event: bytes = b"") -> None:
        """Take in one event of a stream."""
        choices = chunk.choices if isinstance(chunk.choices, list) else []
        for position, choice in enumerate(choices):
            if isinstance(choice, dict):
                self._choose(choice, position)
        self.model = self.model or _text(chunk.model)
        self.id = self.id or _text(chunk.id)
        self.service_tier = _text(chunk.service_tier) or self.service_tier
        if chunk.error is not None or chunk.object == "error" or event == b"error":
            self.error = error_words(chunk.error if chunk.error is not None else chunk)
        elif isinstance(chunk.base_resp, dict) and chunk.base_resp.get("status_code"):  # MiniMax
            self.error = error_words({"code": chunk.base_resp["status_code"]})
        self.started = self.started or (chunk.says_more and chunk.choices is None)  # a text of another shape
        usage = _find_usage(chunk, choices)
        if usage is not None and usage.is_zero:
            self._placeholder = usage
        elif usage is not None:
            self.usage = usage
            self.usage_is_final = self.has_stopped or not (choices or (chunk.says_more and chunk.choices is None))
        self._forget_zero_output()

    def update_body(self, chunk: Chunk) -> None:
        """Take in a reply that is one JSON object."""
        self.update(chunk)
        self.usage_is_final = self.usage is not None
        self._accept_placeholder()
        self.started = self.finished = self.usage_is_final = True

    def end(self) -> None:
        """A stream has ended by itself."""
        self.finished = self.seen_done or self.has_stopped
        self.usage_is_final = self.usage_is_final or self.finished
        if self.finished:
            self._accept_placeholder()

    def _forget_zero_output(self) -> None:
        """An output of 0 that was said before the end isn't the count of a reply that has content."""
        usage = self.usage
        if usage is None or usage.output_tokens != 0 or self.usage_is_final or not self.started:
            return
        if not usage.unlisted_output_tokens and not usage.reasoning_is_additive:
            self.usage = msgspec.structs.replace(usage, output_tokens=None, total_tokens=None)

    def _accept_placeholder(self) -> None:
        if self.usage is None and not self.started:
            self.usage = self._placeholder

    def _choose(self, choice: dict[str, Any], position: int) -> None:
        reason = _text(choice.get("finish_reason"))
        if reason == "error":
            self.error = self.error or "error"
        index = choice.get("index")
        if type(index) is not int:
            index = position
        if index == 0:
            self.finish_reason = reason or self.finish_reason
        said = choice.get("delta") or choice.get("message") or {"text": choice.get("text")}
        if reason is not None:
            self.open_choices.discard(index)
            self._closed_choices.add(index)
        elif index not in self._closed_choices and isinstance(said, dict) and any(said.values()):
            self.open_choices.add(index)
        if not self.started:
            self.started = isinstance(said, dict) and any(value for key, value in said.items() if key != "role")


def _find_usage(chunk: Chunk, choices: list[Any]) -> Usage | None:
    """The usage of a chunk, in the first place that has one which isn't all zeros."""
    usage = read_usage(chunk.usage, chunk.raw_usage)
    for place in (chunk.x_groq, *choices[:1]):
        if (usage is None or usage.is_zero) and isinstance(place, dict):
            inner = place.get("usage")
            raw = json.dumps(inner, default=float, ensure_ascii=False).encode("utf-8", "replace") if inner else None
            usage = read_usage(inner, raw) or usage
    return usage


def error_words(error: object) -> str:
    """Type and code of an error, where they are plain words or a number; never its text, which quotes prompts."""
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


def may_have_null_usage(chunk: Chunk, payload: bytes) -> bool:
    """Whether to look for null members: not in each chunk of a cumulative stream, where `usage` stands once."""
    if chunk.usage is None:
        return True
    return chunk.usage is not msgspec.UNSET and (payload.count(b'"usage"') > 1 or b"\\u00" in payload)


def is_for_usage_alone(chunk: Chunk, *, has_stopped: bool) -> bool:
    """Whether an event says nothing to the reader but its usage: no choice, or empty ones when all have finished."""
    return chunk.is_silent and chunk.error is None and (has_stopped or not chunk.choices)
