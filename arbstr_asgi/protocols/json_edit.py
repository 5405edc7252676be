"""Edits JSON in place: locates members by byte offset, replaces or removes values, re-serialises nothing."""

import json
import re
from functools import cache
from typing import NamedTuple

import msgspec

from arbstr_asgi.errors import RequestError

BOM = b"\xef\xbb\xbf"
MAX_REPAIR_BYTES = 1024 * 1024  # of a body in which lone surrogates are replaced to decode it
MAX_WALK_BYTES = 512 * 1024  # of a body that is searched member by member where decoding does not locate one
ADDED_BYTES = 4096  # what earlier edits may have added to a body within these limits
MAX_ATTEMPTS = 8
MAX_ATTEMPTS_IF_LARGE = 2  # each decodes the whole body
MAX_MATCHES = 1_000
MAX_STEPS = 15_000  # of Python per search, 1 to 2 µs each
MAX_MATCH_DEPTH = 3  # of containers that one match skips
_NULL_USAGE = b',"usage":null'
_USAGE_KEY = b'"usage"'
_BLANKS = re.compile(rb"[ \t\r\n]*+")
_STRING_PATTERN = rb'"(?:[^"\\]++|\\.)*+"'
_MEMBER = re.compile(rb"(%b)[ \t\r\n]*+:[ \t\r\n]*+(%b|[-+.\w]++)?" % (_STRING_PATTERN, _STRING_PATTERN), re.DOTALL)
_COMMA = re.compile(rb"[ \t\r\n]*+,[ \t\r\n]*+")
_COLON = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
# The pattern begins with a literal, which makes the search fast.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)


class JsonMember(NamedTuple):
    """One member: offset of the opening quote of the key, and range of the value."""

    start: int
    value_start: int
    value_end: int


class TooManySteps(ValueError):
    """The search exceeds MAX_STEPS, and would block the event loop."""


class RawFields(msgspec.Struct, gc=False):
    """The members of a request that are read, as raw JSON; the last of duplicates."""

    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    include_usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """A member of the object `stream_options`, which is decoded separately."""


_fields_decoder = msgspec.json.Decoder(RawFields)


def read_raw_fields(body: bytes) -> RawFields:
    """Decode a body that may begin with a BOM. Raises what msgspec raises, also for lone surrogates."""
    return _fields_decoder.decode(body.removeprefix(BOM))


def read_surrogate_fields(body: bytes) -> RawFields | None:
    """Decode a body that has lone surrogates, which the fields keep; None where it can not be decoded even so."""
    if len(body) > MAX_REPAIR_BYTES or b"\\ud" not in body.lower():
        return None
    repaired = without_surrogates(body)
    try:
        fields = read_raw_fields(repaired)
    except (msgspec.MsgspecError, RecursionError):
        return None
    for key in RawFields.__struct_fields__:
        raw = bytes(getattr(fields, key) or b"")
        if b"\\" not in raw:  # without escapes, so nothing was replaced
            continue
        at = repaired.find(raw)
        if repaired.find(raw, at + 1) >= 0:
            at = last_member(body, key).value_start
        setattr(fields, key, msgspec.Raw(body[at : at + len(raw)]))
    return fields


def without_surrogates(data: bytes) -> bytes:
    """`data` with escaped lone surrogates (of clients that cut an emoji in half) replaced by U+FFFD.

    Escaped backslashes become escaped quotes, so that each remaining backslash begins an escape. Offsets are preserved.
    """
    return _LONE_SURROGATE.sub(rb"\\ufffd", data.replace(rb"\\", rb"\""))


def member_value(body: bytes, key: str) -> bytes:
    """The raw JSON of the effective `key`, a field of `RawFields` that is present."""
    try:
        fields: RawFields | None = read_raw_fields(body)
    except (msgspec.MsgspecError, RecursionError):  # lone surrogates, or a deeper stack than when it was parsed
        fields = read_surrogate_fields(body)
    if fields is not None:
        return bytes(getattr(fields, key))
    member = last_member(body, key)
    return body[member.value_start : member.value_end]


def replace_value(body: bytes, key: str, old: bytes, new: bytes) -> bytes:
    """`body` with the value `old` of its effective `key` replaced by `new`, a different one.

    A text search proposes the offset; the edit is verified by decoding the result. Raises RequestError (400) where the
    value can not be located cheaply.
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
        value = getattr(read_raw_fields(body), key)
    except (msgspec.MsgspecError, RecursionError):
        value, new = getattr(_repaired_fields(body), key), without_surrogates(new)
    return value is not msgspec.UNSET and bytes(value) == new


def _repaired_fields(body: bytes) -> RawFields:
    """Decode a body with lone surrogates replaced; no fields where it can not be decoded even so."""
    try:
        return read_raw_fields(without_surrogates(body) if len(body) <= MAX_REPAIR_BYTES + ADDED_BYTES else b"")
    except (msgspec.MsgspecError, RecursionError):
        return RawFields()


def last_member(data: bytes, key: str) -> JsonMember:
    """The effective member `key` of an object that has one. Raises RequestError (400) where the search is too long."""
    try:
        if len(data) <= MAX_WALK_BYTES + ADDED_BYTES:
            return find_members(data, key)[-1]
    except TooManySteps:
        pass
    raise RequestError(400, f"'{key}' is spelled in an unusual way in a large request.", param=key)


def without_null_usage(payload: bytes) -> bytes:
    """A JSON object without its null `usage` members.

    The comma in front of a removed member is removed too; for the first member the comma and blanks behind it.
    """
    # Every letter of the key is \u006x or \u007x when it is spelled as an escape.
    escaped = b"\\u00" in payload and (b"\\u006" in payload or b"\\u007" in payload)
    if not escaped and payload.count(_USAGE_KEY) == 1:
        if payload.endswith(b',"usage":null}'):
            return payload[:-14] + b"}"
        at = payload.find(_NULL_USAGE)
        if at >= 0 and payload[at + len(_NULL_USAGE) : at + len(_NULL_USAGE) + 1] in (b",", b"}"):
            return payload[:at] + payload[at + len(_NULL_USAGE) :]
    return _without_usage(payload, only_null=True)


def without_usage(payload: bytes) -> bytes:
    """A JSON object without its `usage` members, and with commas removed as in `without_null_usage`."""
    return _without_usage(payload, only_null=False)


def _without_usage(payload: bytes, *, only_null: bool) -> bytes:
    try:
        members = find_members(payload, "usage")
    except ValueError:
        return payload
    kept: list[bytes] = []
    done, is_first = 0, True
    for member in members:
        if only_null and payload[member.value_start : member.value_end] != b"null":
            continue
        start, end = member.start, member.value_end
        is_first = is_first and (start == done if done else payload.find(b'"') == start)
        if not is_first:
            start = payload.rindex(b",", done, start)
        else:
            behind = _blanks(payload, end)
            end = _blanks(payload, behind + 1) if payload.startswith(b",", behind) else end
        kept.append(payload[done:start])
        done = end
    return b"".join((*kept, payload[done:])) if kept else payload


def find_members(data: bytes, key: str) -> list[JsonMember]:
    """The members `key` of a JSON object in order, duplicates included, with byte offsets.

    Accepts a leading BOM, lone surrogates, invalid UTF-8, NaN and Infinity; does not validate the JSON. Raises
    ValueError where it finds that `data` is no JSON object, TooManySteps for too many members.
    """
    return _MemberSearch(data).find(key)


class _MemberSearch:
    """Locates members of an object in a bounded number of steps, each a match of a regular expression."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._steps = MAX_STEPS

    def find(self, key: str) -> list[JsonMember]:
        data, name, found = self._data, key.encode(), list[JsonMember]()
        at = _blanks(data, len(BOM) if data.startswith(BOM) else 0)
        if not data.startswith(b"{", at):
            raise ValueError("not a JSON object")
        at = _blanks(data, at + 1)
        other_members = _members_except(name)
        while not data.startswith(b"}", at):
            skipped = other_members.match(data, at)
            at = skipped.end() if skipped else at
            self._count_step()
            member = _MEMBER.match(data, at)
            if member is None:
                raise ValueError("not a member")
            start, end = member.span(2)
            if end < 0:
                start = member.end()
                end = self._container_end(start)
            if _key_equals(data[at + 1 : member.end(1) - 1], name):
                found.append(JsonMember(at, start, end))
            comma = _COMMA.match(data, end)
            if comma is None:
                at = _blanks(data, end)
                break
            at = comma.end()
        if not data.startswith(b"}", at):
            raise ValueError("not a JSON object")
        return found

    def _container_end(self, at: int) -> int:
        """The end of the container that begins at `at`."""
        data, depth = self._data, 0
        while data.startswith((b"{", b"[", b"}", b"]"), at):
            self._count_step()
            depth += 1 if data.startswith((b"{", b"["), at) else -1
            if not depth:
                return at + 1
            contents = _CONTAINER_CONTENTS.match(data, at + 1)
            assert contents is not None
            at = contents.end()
        raise ValueError("a container has no end")

    def _count_step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise TooManySteps("too many members")


def _key_equals(raw: bytes, name: bytes) -> bool:
    if b"\\" not in raw or len(raw) > 6 * len(name):
        return raw == name
    try:
        return bool(json.loads(b'"%b"' % raw) == name.decode())
    except ValueError:
        return False


def _blanks(data: bytes, at: int) -> int:
    match = _BLANKS.match(data, at)
    assert match is not None
    return match.end()


def _balanced(atom: bytes) -> bytes:
    """A pattern for a part of a value: `atom`, a string, or a container nested up to MAX_MATCH_DEPTH."""
    inside = rb'(?:[^"\[\]{}]++|%b)' % _STRING_PATTERN
    for _ in range(MAX_MATCH_DEPTH - 1):
        inside = rb'(?:[^"\[\]{}]++|%b|[\[{]%b*+[\]}])' % (_STRING_PATTERN, inside)
    return rb"(?:%b|%b|[\[{]%b*+[\]}])" % (atom, _STRING_PATTERN, inside)


_CONTAINER_CONTENTS = re.compile(rb"%b*+" % _balanced(rb'[^"\[\]{}]++'), re.DOTALL)


@cache
def _members_except(key: bytes) -> re.Pattern[bytes]:
    """A run of members with their commas, up to one with this key or with an escape in its key."""
    value = rb"%b++" % _balanced(rb'[^"\[\]{},]++')
    name = rb'"(?!%b")[^"\\]*+"' % re.escape(key)
    return re.compile(rb"(?:%b[ \t\r\n]*+:%b,[ \t\r\n]*+)++" % (name, value), re.DOTALL)
