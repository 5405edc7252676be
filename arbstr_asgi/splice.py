"""A member of a request's body is given another value, in the client's own bytes."""

import re

import msgspec

from arbstr_asgi.errors import RequestError
from arbstr_asgi.spans import BOM, JsonMember, scan_members

# The walk over all members is up to 30 times slower than decoding, and a client can force it.
MAX_WALK_BYTES = 1024 * 1024
ADDED_BYTES = 4096  # what earlier splices may have added to a body that could be walked when it came
MAX_TRIES = 8
MAX_TRIES_IF_LARGE = 2  # each decodes the whole body
MAX_LOOKS = 1_000

_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")


class RawFields(msgspec.Struct, gc=False):
    """The members that we read, as their JSON; the last duplicate of each."""

    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_wire = msgspec.json.Decoder(RawFields)


def read_raw_fields(body: bytes) -> RawFields:
    """The members in a body that may begin with a BOM. Raises what msgspec raises, also for lone surrogates."""
    return _wire.decode(body.removeprefix(BOM))


def member_value(body: bytes, key: str) -> bytes:
    """The JSON of the effective `key`, which must be there and one that we read."""
    try:
        found = getattr(read_raw_fields(body), key)
    except (msgspec.MsgspecError, RecursionError):  # lone surrogates, or a deeper stack than when it was parsed
        member = last_member(body, key)
        return body[member.value_start : member.value_end]
    return bytes(found)


def replace_value(body: bytes, key: str, old: bytes, new: bytes) -> bytes:
    """`body` with `new` for the JSON `old` of its effective `key`, which differs from it.

    A search only proposes the place; it was the right one if and only if the spliced body now means `new`.
    """
    quoted = b'"%b"' % key.encode()
    tries = MAX_TRIES if len(body) <= MAX_WALK_BYTES else MAX_TRIES_IF_LARGE
    at = len(body)
    for _ in range(MAX_LOOKS):
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
    """The effective member `key` of an object that has one, by the walk. Raises RequestError where it is too large."""
    if len(data) > MAX_WALK_BYTES + ADDED_BYTES:
        raise RequestError(400, f"'{key}' is spelled in an unusual way in a large request.", param=key)
    try:
        return [member for member in scan_members(data) if member.key == key][-1]
    except ValueError:  # it was parsed, so this can only be about nesting
        raise RequestError(400, "The request body is nested too deeply.", code="invalid_json") from None


def _means(body: bytes, key: str, new: bytes) -> bool:
    try:
        found = getattr(read_raw_fields(body), key)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return found is not msgspec.UNSET and bytes(found) == new
