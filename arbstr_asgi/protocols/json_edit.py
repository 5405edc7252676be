"""Edits JSON in place: locates members by byte offset, replaces or removes values, re-serialises nothing."""

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple, NoReturn

import msgspec

from arbstr_asgi.errors import RequestError

BOM = b"\xef\xbb\xbf"
# The walk over all members is up to 30 times slower than decoding, and a client can force it.
MAX_WALK_BYTES = 1024 * 1024
ADDED_BYTES = 4096  # what earlier splices may have added to a body that could be walked when it came
MAX_ATTEMPTS = 8
MAX_ATTEMPTS_IF_LARGE = 2  # each decodes the whole body
MAX_MATCHES = 1_000
_NULL_USAGE = b',"usage":null'
_USAGE_KEY = b'"usage"'
_BLANKS = re.compile(r"[ \t\r\n]*")
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")


class RawFields(msgspec.Struct, gc=False):
    """The members of a request that are read, as raw JSON; the last of duplicates."""

    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_fields_decoder = msgspec.json.Decoder(RawFields)


class JsonMember(NamedTuple):
    """One member: decoded key, offset of the opening quote of the key, and range of the value."""

    key: str
    start: int
    value_start: int
    value_end: int


def read_raw_fields(body: bytes) -> RawFields:
    """Decode a body that may begin with a BOM. Raises what msgspec raises, also for lone surrogates."""
    return _fields_decoder.decode(body.removeprefix(BOM))


def member_value(body: bytes, key: str) -> bytes:
    """The raw JSON of the effective `key`, a field of `RawFields` that is present."""
    try:
        members = getattr(read_raw_fields(body), key)
    except (msgspec.MsgspecError, RecursionError):  # lone surrogates, or a deeper stack than when it was parsed
        member = last_member(body, key)
        return body[member.value_start : member.value_end]
    return bytes(members)


def replace_value(body: bytes, key: str, old: bytes, new: bytes) -> bytes:
    """`body` with the value `old` of its effective `key` replaced by `new`.

    A text search proposes the offset; the edit is verified by decoding the result.
    """
    quoted = b'"%b"' % key.encode()
    attempts = MAX_ATTEMPTS if len(body) <= MAX_WALK_BYTES else MAX_ATTEMPTS_IF_LARGE
    at = len(body)
    for _ in range(MAX_MATCHES):
        at = body.rfind(quoted, 0, at)
        if at < 0 or not attempts:
            break
        colon = _COLON.match(body, at + len(quoted))
        if colon and body.startswith(old, colon.end()):
            attempts -= 1
            edited = b"".join((body[: colon.end()], new, body[colon.end() + len(old) :]))
            if _has_value(edited, key, new):
                return edited
    member = last_member(body, key)
    return b"".join((body[: member.value_start], new, body[member.value_end :]))


def _has_value(body: bytes, key: str, new: bytes) -> bool:
    try:
        members = getattr(read_raw_fields(body), key)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return members is not msgspec.UNSET and bytes(members) == new


def last_member(data: bytes, key: str) -> JsonMember:
    """The effective member `key`, by `scan_members`. Raises RequestError for a body that is too large for that."""
    if len(data) > MAX_WALK_BYTES + ADDED_BYTES:
        raise RequestError(400, f"'{key}' is spelled in an unusual way in a large request.", param=key)
    try:
        return [member for member in scan_members(data) if member.key == key][-1]
    except ValueError:  # it was parsed, so this can only be about nesting
        raise RequestError(400, "The request body is nested too deeply.", code="invalid_json") from None


def without_null_usage(payload: bytes) -> bytes:
    """A JSON object without its null `usage` members.

    The comma in front of a removed member goes with it; for the first member the comma behind it.
    """
    # Every letter of the key is \u006x or \u007x when it is spelled as an escape.
    escaped = b"\\u00" in payload and (b"\\u006" in payload or b"\\u007" in payload)
    if not escaped and payload.count(_USAGE_KEY) == 1:
        if payload.endswith(b',"usage":null}'):
            return payload[:-14] + b"}"
        at = payload.find(_NULL_USAGE)
        if at >= 0 and payload[at + len(_NULL_USAGE) : at + len(_NULL_USAGE) + 1] in (b",", b"}"):
            return payload[:at] + payload[at + len(_NULL_USAGE) :]
    try:
        members = scan_members(payload)
    except ValueError:
        return payload
    return _cut_null_usage(payload, members)


def _cut_null_usage(payload: bytes, members: list[JsonMember]) -> bytes:
    """Cut the null members, from the end so that offsets stay valid."""
    cut = [member.key == "usage" and payload[member.value_start : member.value_end] == b"null" for member in members]
    for index in reversed(range(len(members))):
        if not cut[index]:
            continue
        start, end = members[index].start, members[index].value_end
        if not all(cut[:index]):
            start = payload.index(b",", members[index - 1].value_end)
        elif index + 1 < len(members):
            end = members[index + 1].start
        payload = payload[:start] + payload[end:]
    return payload


def scan_members(data: bytes) -> list[JsonMember]:
    """The members of a JSON object in order, duplicates included, with byte offsets.

    Accepts a leading BOM, invalid UTF-8 and lone surrogates, rejects NaN and Infinity (RFC 8259). Raises ValueError for
    anything else. Up to 30 times slower than msgspec: for small or rare input.
    """
    text = data.decode("utf-8", "surrogateescape")
    try:
        members = _walk(text)
    except (StopIteration, RecursionError, IndexError) as error:
        raise ValueError("not a JSON object") from error
    return members if text.isascii() else _in_bytes(text, members)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# float, because int refuses numbers of more than 4,300 digits.
_decoder = json.JSONDecoder(parse_int=float, parse_constant=_refuse)


def _walk(text: str) -> list[JsonMember]:
    scan: Any = _decoder.scan_once  # type: ignore[attr-defined]
    at = _skip(text, 1 if text.startswith("\ufeff") else 0)
    if text[at] != "{":
        raise ValueError("not a JSON object")
    at = _skip(text, at + 1)
    members: list[JsonMember] = []
    while text[at] != "}" or members:
        start = at
        if text[at] != '"':
            raise ValueError("a key is missing")
        key, at = scanstring(text, at + 1, True)
        at = _skip(text, at)
        if text[at] != ":":
            raise ValueError("a colon is missing")
        value_start = _skip(text, at + 1)
        _, value_end = scan(text, value_start)
        members.append(JsonMember(key, start, value_start, value_end))
        at = _skip(text, value_end)
        if text[at] == "}":
            break
        if text[at] != ",":
            raise ValueError("a comma is missing")
        at = _skip(text, at + 1)
    if _skip(text, at + 1) != len(text):
        raise ValueError("there is something behind the object")
    return members


def _skip(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    assert match is not None
    return match.end()


def _in_bytes(text: str, members: list[JsonMember]) -> list[JsonMember]:
    """The same members, with character offsets converted to byte offsets in one pass."""
    offsets: list[int] = []
    at = size = 0
    for position in (offset for member in members for offset in member[1:]):
        size += len(text[at:position].encode("utf-8", "surrogateescape"))
        offsets.append(size)
        at = position
    return [JsonMember(member.key, *offsets[3 * index : 3 * index + 3]) for index, member in enumerate(members)]
