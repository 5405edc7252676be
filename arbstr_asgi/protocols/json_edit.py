"""Edits of JSON in its own bytes: where members are, a value replaced or removed, without re-serialising anything."""

import json
import re
from functools import cache
from typing import NamedTuple

import msgspec

from arbstr_asgi.errors import RequestError

BOM = b"\xef\xbb\xbf"
MAX_REPAIR_BYTES = 1024 * 1024  # in which lone surrogates are replaced to be read
MAX_WALK_BYTES = 512 * 1024  # that are searched for a member when decoding them does not find it
ADDED_BYTES = 4096  # what earlier splices may have added to a body that could be walked when it came
MAX_ATTEMPTS = 8
MAX_ATTEMPTS_IF_LARGE = 2  # each decodes the whole body
MAX_MATCHES = 1_000
_MEMBER = b',"usage":null'
_KEY = b'"usage"'


MAX_STEPS = 15_000  # of Python in one search, a microsecond or two each

_BLANKS = re.compile(rb"[ \t\r\n]*+")
_STRING_PATTERN = rb'"(?:[^"\\]++|\\.)*+"'
_ONE_MEMBER = re.compile(rb"(%b)[ \t\r\n]*+:[ \t\r\n]*+(%b|[-+.\w]++)?" % (_STRING_PATTERN, _STRING_PATTERN), re.DOTALL)
_COMMA = re.compile(rb"[ \t\r\n]*+,[ \t\r\n]*+")
_COLON = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
NESTING = 3  # of what is passed over in one match


def _balanced(atom: bytes) -> bytes:
    """Part of a value: what matches `atom`, a string, or a container that is not nested too deeply."""
    inside = rb'(?:[^"\[\]{}]++|%b)' % _STRING_PATTERN
    for _ in range(NESTING - 1):
        inside = rb'(?:[^"\[\]{}]++|%b|[\[{]%b*+[\]}])' % (_STRING_PATTERN, inside)
    return rb"(?:%b|%b|[\[{]%b*+[\]}])" % (atom, _STRING_PATTERN, inside)


_INSIDE = re.compile(rb"%b*+" % _balanced(rb'[^"\[\]{}]++'), re.DOTALL)


@cache
def _members_but(key: bytes) -> re.Pattern[bytes]:
    """A run of members with commas behind them, up to one of this name, or whose name has an escape in it."""
    value = rb"%b++" % _balanced(rb'[^"\[\]{},]++')
    name = rb'"(?!%b")[^"\\]*+"' % re.escape(key)
    return re.compile(rb"(?:%b[ \t\r\n]*+:%b,[ \t\r\n]*+)++" % (name, value), re.DOTALL)


class JsonMember(NamedTuple):
    """One member: the offset of its key's opening quote, and the range of its value."""

    start: int
    value_start: int
    value_end: int


class TooManySteps(ValueError):
    """A search would hold others up."""


class _Search:
    """Looks for members of an object. Its steps are bounded; what one step passes over, C does."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._steps = MAX_STEPS

    def find(self, key: str) -> list[JsonMember]:
        data, name, found = self._data, key.encode(), list[JsonMember]()
        at = _blanks(data, len(BOM) if data.startswith(BOM) else 0)
        if not data.startswith(b"{", at):
            raise ValueError("not a JSON object")
        at = _blanks(data, at + 1)
        others = _members_but(name)
        while not data.startswith(b"}", at):
            run = others.match(data, at)
            at = run.end() if run else at
            self._count()
            member = _ONE_MEMBER.match(data, at)
            if member is None:
                raise ValueError("not a member")
            start, end = member.span(2)
            if end < 0:
                start = member.end()
                end = self._container(start)
            if _spells(data[at + 1 : member.end(1) - 1], name):
                found.append(JsonMember(at, start, end))
            behind = _COMMA.match(data, end)
            if behind is None:
                at = _blanks(data, end)
                break
            at = behind.end()
        if not data.startswith(b"}", at):
            raise ValueError("not a JSON object")
        return found

    def _container(self, at: int) -> int:
        """Where a container ends."""
        data, depth = self._data, 0
        while data.startswith((b"{", b"[", b"}", b"]"), at):
            self._count()
            depth += 1 if data.startswith((b"{", b"["), at) else -1
            if not depth:
                return at + 1
            inside = _INSIDE.match(data, at + 1)
            assert inside is not None
            at = inside.end()
        raise ValueError("a container has no end")

    def _count(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise TooManySteps("too many members")


def _blanks(data: bytes, at: int) -> int:
    match = _BLANKS.match(data, at)
    assert match is not None
    return match.end()


def _spells(said: bytes, name: bytes) -> bool:
    if b"\\" not in said or len(said) > 6 * len(name):
        return said == name
    try:
        return bool(json.loads(b'"%b"' % said) == name.decode())
    except ValueError:
        return False


def find_members(data: bytes, key: str) -> list[JsonMember]:
    """The members called `key` of the one JSON object that `data` is, in order.

    `data` must be JSON but for lone surrogates, invalid UTF-8, NaN and Infinity; a leading BOM is accepted. Raises
    ValueError where it turns out to be none, TooManySteps where the search would take long.
    """
    return _Search(data).find(key)


# It begins with a literal, which is searched for quickly.
_LONE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)


def without_surrogates(data: bytes) -> bytes:
    """`data` with escaped lone surrogates (of clients that cut an emoji in half) replaced by U+FFFD.

    Escaped backslashes become quotation marks, so that what is left begins an escape; all keeps its place.
    """
    return _LONE.sub(rb"\\ufffd", data.replace(rb"\\", rb"\""))


class RawFields(msgspec.Struct, gc=False):
    """The members that we read, as their JSON; the last duplicate of each."""

    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    include_usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """Of `stream_options`, which are an object of their own."""


_wire = msgspec.json.Decoder(RawFields)


def read_raw_fields(body: bytes) -> RawFields:
    """The members in a body that may begin with a BOM. Raises what msgspec raises, also for lone surrogates."""
    return _wire.decode(body.removeprefix(BOM))


def member_value(body: bytes, key: str) -> bytes:
    """The JSON of the effective `key`, which must be there and one that we read."""
    try:
        fields: RawFields | None = read_raw_fields(body)
    except (msgspec.MsgspecError, RecursionError):  # lone surrogates, or a deeper stack than when it was parsed
        fields = read_surrogates(body)
    if fields is not None:
        return bytes(getattr(fields, key))
    member = last_member(body, key)
    return body[member.value_start : member.value_end]


def replace_value(body: bytes, key: str, old: bytes, new: bytes) -> bytes:
    """`body` with `new` for the JSON `old` of its effective `key`, which differs from it.

    A search only proposes the place; it was the right one if and only if the spliced body now means `new`.
    """
    quoted = b'"%b"' % key.encode()
    tries = MAX_ATTEMPTS if len(body) <= MAX_WALK_BYTES else MAX_ATTEMPTS_IF_LARGE
    at = len(body)
    for _ in range(MAX_MATCHES):
        at = body.rfind(quoted, 0, at)
        if at < 0 or not tries:
            break
        colon = _COLON.match(body, at + len(quoted))
        if colon and body.startswith(old, colon.end()):
            tries -= 1
            spliced = b"".join((body[: colon.end()], new, body[colon.end() + len(old) :]))
            if _means(spliced, key, new):
                return spliced
    member = last_member(body, key)
    return b"".join((body[: member.value_start], new, body[member.value_end :]))


def last_member(data: bytes, key: str) -> JsonMember:
    """The effective member `key` of an object that has one. Raises RequestError where it can't be found cheaply."""
    try:
        if len(data) <= MAX_WALK_BYTES + ADDED_BYTES:
            return find_members(data, key)[-1]
    except TooManySteps:
        pass
    raise RequestError(400, f"'{key}' is spelled in an unusual way in a large request.", param=key)


def _means(body: bytes, key: str, new: bytes) -> bool:
    try:
        found = getattr(read_raw_fields(body), key)
    except (msgspec.MsgspecError, RecursionError):
        found, new = getattr(_repaired_fields(body), key), without_surrogates(new)
    return found is not msgspec.UNSET and bytes(found) == new


def _repaired_fields(body: bytes) -> RawFields:
    """The same with lone surrogates replaced; none where it is no JSON for another reason."""
    try:
        return read_raw_fields(without_surrogates(body) if len(body) <= MAX_REPAIR_BYTES + ADDED_BYTES else b"")
    except (msgspec.MsgspecError, RecursionError):
        return RawFields()


def read_surrogates(body: bytes) -> RawFields | None:
    """The members in a body that has lone surrogates, as they are there; None where it is no JSON all the same."""
    if len(body) > MAX_REPAIR_BYTES or b"\\ud" not in body.lower():
        return None
    repaired = without_surrogates(body)
    try:
        fields = read_raw_fields(repaired)
    except (msgspec.MsgspecError, RecursionError):
        return None
    for key in RawFields.__struct_fields__:
        said = bytes(getattr(fields, key) or b"")
        if b"\\" not in said:  # nothing was replaced in it
            continue
        at = repaired.find(said)
        if repaired.find(said, at + 1) >= 0:
            at = last_member(body, key).value_start
        setattr(fields, key, msgspec.Raw(body[at : at + len(said)]))
    return fields


def without_null_usage(payload: bytes) -> bytes:
    """`payload`, a JSON object with a top-level `usage`, without those of them that are null.

    A null member goes with the comma in front of it and the white space between; a first one with the comma and
    white space behind it.
    """
    # Every letter of the key is \u006x or \u007x when it is spelled as an escape.
    escaped = b"\\u00" in payload and (b"\\u006" in payload or b"\\u007" in payload)
    if not escaped and payload.count(_KEY) == 1:
        if payload.endswith(b',"usage":null}'):
            return payload[:-14] + b"}"
        at = payload.find(_MEMBER)
        if at >= 0 and payload[at + len(_MEMBER) : at + len(_MEMBER) + 1] in (b",", b"}"):
            return payload[:at] + payload[at + len(_MEMBER) :]
    return _without_usage(payload, only_null=True)


def without_usage(payload: bytes) -> bytes:
    """`payload`, a JSON object, without its top-level `usage`, and its comma as above."""
    return _without_usage(payload, only_null=False)


def _without_usage(payload: bytes, *, only_null: bool) -> bytes:
    try:
        found = find_members(payload, "usage")
    except ValueError:
        return payload
    kept: list[bytes] = []
    done, is_first = 0, True
    for member in found:
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
