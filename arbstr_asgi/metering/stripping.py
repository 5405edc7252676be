"""Removes `"usage": null` from an event's JSON, byte for byte."""

from arbstr_asgi.spans import JsonMember, scan_members

_MEMBER = b',"usage":null'
_KEY = b'"usage"'


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
    try:
        found = scan_members(payload)
    except ValueError:
        return payload
    return _without(payload, found)


def _without(payload: bytes, found: list[JsonMember]) -> bytes:
    """Cut the null members out, from the back so that the offsets hold."""
    goes = [member.key == "usage" and payload[member.value_start : member.value_end] == b"null" for member in found]
    for index in reversed(range(len(found))):
        if not goes[index]:
            continue
        start, end = found[index].start, found[index].value_end
        if not all(goes[:index]):
            start = payload.index(b",", found[index - 1].value_end)
        elif index + 1 < len(found):
            end = found[index + 1].start
        payload = payload[:start] + payload[end:]
    return payload
