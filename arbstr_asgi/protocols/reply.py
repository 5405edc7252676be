"""Decodes responses, and summarises them event by event or from one JSON body."""

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from arbstr_asgi.protocols.usage import Usage, read_usage

MAX_DIGITS = 40  # of an integer
_WORD = re.compile(r"[A-Za-z_]{1,48}")
_NULL = msgspec.Raw(b"null")
# The members of an event that carries only usage. LiteLLM's proxy echoes `stream_options`.
_USUAL_MEMBERS = {
    *("id", "object", "created", "model", "system_fingerprint", "service_tier", "provider", "obfuscation", "choices"),
    *("usage", "x_groq", "error", "stream_options"),
}


class Chunk(msgspec.Struct, gc=False):
    """A decoded event or body; each field of the provider may have any type."""

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
    has_no_content: bool = False
    """Whether it has a usage object, and no choice with content."""
    has_other_members: bool = False
    """Whether one without content has members that are neither `_USUAL_MEMBERS` nor costs."""


class _WithRaw(Chunk, gc=False):
    """The same with `usage` as raw JSON, decoded separately."""

    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _decimal(digits: str) -> Decimal | None:
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent beyond what Decimal can hold
        return None


_decoder = msgspec.json.Decoder(_WithRaw, float_hook=_decimal)
_usage_decoder = msgspec.json.Decoder(float_hook=_decimal)
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FIELDS = frozenset(Chunk.__struct_fields__) - {"raw_usage", "has_no_content", "has_other_members"}


def decode(payload: bytes) -> Chunk | None:
    """The JSON object in `payload`, None for anything else. Accepts what `json.loads` accepts (NaN, invalid UTF-8)."""
    try:
        chunk: Chunk = _decoder.decode(payload)
        # A provider may have members of these names.
        chunk.raw_usage, chunk.has_no_content, chunk.has_other_members = None, False, False
        raw = chunk.usage
        if raw is not msgspec.UNSET:
            chunk.usage = _usage_decoder.decode(raw)
            if isinstance(chunk.usage, dict):
                chunk.raw_usage = bytes(raw)
                chunk.has_no_content = _has_no_content(chunk.choices)
                chunk.has_other_members = chunk.has_no_content and _has_other_members(_members_decoder.decode(payload))
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
        chunk.has_no_content = _has_no_content(chunk.choices)
        chunk.has_other_members = chunk.has_no_content and _has_other_members(value)
    return chunk


def _has_no_content(choices: object) -> bool:
    """Whether there are no choices, or only empty ones."""
    return not choices or (isinstance(choices, list) and all(map(_is_empty_choice, choices)))


def _is_empty_choice(choice: object) -> bool:
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    empty = not delta or (isinstance(delta, dict) and not any(value for key, value in delta.items() if key != "role"))
    return empty and not any(value for key, value in choice.items() if key not in ("index", "delta"))


def _has_other_members(members: Mapping[str, object]) -> bool:
    """Whether a member is neither one of `_USUAL_MEMBERS`, nor a cost, nor null."""
    return any(
        name not in _USUAL_MEMBERS and "cost" not in name and value is not None and value != _NULL
        for name, value in members.items()
    )


def _int(digits: str) -> int | None:
    return int(digits) if len(digits) <= MAX_DIGITS else None


def may_have_null_usage(chunk: Chunk, payload: bytes) -> bool:
    """Whether to search for null members: not in a cumulative stream, whose chunks have one `usage` each."""
    if chunk.usage is None:
        return True
    return chunk.usage is not msgspec.UNSET and (payload.count(b'"usage"') > 1 or b"\\u00" in payload)


def is_usage_only(chunk: Chunk, *, choices_finished: bool) -> bool:
    """Whether an event carries only usage: it has no error and no choices, or empty ones after all have finished."""
    return chunk.has_no_content and chunk.error is None and (choices_finished or not chunk.choices)


class ReplySummary:
    """The state of a response as far as it has been read.

    `usage` is the last one reported, never a sum; `usage_is_final`: it can not be an interim value of a cumulative
    stream any more. A usage of zeros is accepted only for a response without content. `error` is the type and code of
    an error, no other text of the provider. `started` is set by the first content, `seen_done` by `[DONE]`, `finished`
    once the response is known to be complete. `events` counts the data events up to the first `[DONE]`. `open_choices`
    are the indices of the choices with content and without `finish_reason`.
    """

    __slots__ = (
        "_closed_choices",
        "_zero_usage",
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
        self._zero_usage: Usage | None = None

    @property
    def choices_finished(self) -> bool:
        """Whether there was a `finish_reason`, and no choice with content lacks one."""
        return bool(self._closed_choices) and not self.open_choices

    def update(self, chunk: Chunk, event: bytes = b"") -> None:
        """Add one event of a stream; `event` is its SSE event name."""
        choices = chunk.choices if isinstance(chunk.choices, list) else []
        for position, choice in enumerate(choices):
            if isinstance(choice, dict):
                self._update_choice(choice, position)
        self.model = self.model or _text(chunk.model)
        self.id = self.id or _text(chunk.id)
        self.service_tier = _text(chunk.service_tier) or self.service_tier
        if chunk.error is not None or chunk.object == "error" or event == b"error":
            self.error = error_words(chunk.error if chunk.error is not None else chunk)
        elif isinstance(chunk.base_resp, dict) and chunk.base_resp.get("status_code"):  # MiniMax
            self.error = error_words({"code": chunk.base_resp["status_code"]})
        self.started = self.started or (
            chunk.has_other_members and chunk.choices is None
        )  # content of an unknown format
        usage = _find_usage(chunk, choices)
        if usage is not None and usage.is_zero:
            self._zero_usage = usage
        elif usage is not None:
            self.usage = usage
            self.usage_is_final = self.choices_finished or not (
                choices or (chunk.has_other_members and chunk.choices is None)
            )
        self._discard_zero_output()

    def update_body(self, chunk: Chunk) -> None:
        """Add a response that is one JSON object."""
        self.update(chunk)
        self.usage_is_final = self.usage is not None
        self._accept_zero_usage()
        self.started = self.finished = self.usage_is_final = True

    def end(self) -> None:
        """The stream has ended regularly."""
        self.finished = self.seen_done or self.choices_finished
        self.usage_is_final = self.usage_is_final or self.finished
        if self.finished:
            self._accept_zero_usage()

    def _discard_zero_output(self) -> None:
        """Discard an interim output count of 0: the response has content."""
        usage = self.usage
        if usage is None or usage.output_tokens != 0 or self.usage_is_final or not self.started:
            return
        if not usage.unlisted_output_tokens and not usage.reasoning_is_additive:
            self.usage = msgspec.structs.replace(usage, output_tokens=None, total_tokens=None)

    def _accept_zero_usage(self) -> None:
        if self.usage is None and not self.started:
            self.usage = self._zero_usage

    def _update_choice(self, choice: dict[str, Any], position: int) -> None:
        reason = _text(choice.get("finish_reason"))
        if reason == "error":
            self.error = self.error or "error"
        index = choice.get("index")
        if type(index) is not int:
            index = position
        if index == 0:
            self.finish_reason = reason or self.finish_reason
        delta = choice.get("delta") or choice.get("message") or {"text": choice.get("text")}
        if reason is not None:
            self.open_choices.discard(index)
            self._closed_choices.add(index)
        elif index not in self._closed_choices and isinstance(delta, dict) and any(delta.values()):
            self.open_choices.add(index)
        if not self.started:
            self.started = isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")


def _find_usage(chunk: Chunk, choices: list[Any]) -> Usage | None:
    """The usage of a chunk: the first that is not all zeros, of `usage`, `x_groq` and the first choice."""
    usage = read_usage(chunk.usage, chunk.raw_usage)
    for place in (chunk.x_groq, *choices[:1]):
        if (usage is None or usage.is_zero) and isinstance(place, dict):
            inner = place.get("usage")
            raw = json.dumps(inner, default=float, ensure_ascii=False).encode("utf-8", "replace") if inner else None
            usage = read_usage(inner, raw) or usage
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
