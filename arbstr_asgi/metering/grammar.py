"""JSON's grammar as regular expressions over bytes, for a text that comes in pieces.

They accept what `json.loads` does: NaN and infinities too, and bytes that are not UTF-8. No part of one can match the
same bytes in two ways, so a failed match costs no more than a good one. What they can repeat is bounded, because a
repeated group takes memory for each round.
"""

import re

MAX_ROUNDS = 256  # elements of a run, in one match
MAX_INNER_ROUNDS = 32  # elements of a container inside it
MAX_ESCAPES = 64  # of a string, in one match
DEPTH = 2  # of containers inside a run; more cost time to compile

_PLAIN = rb'[^"\\\x00-\x1f]*+'
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_INSIDE = b"%b(?:%b%b){0,%d}" % (_PLAIN, _ESCAPE, _PLAIN, MAX_ESCAPES)
_STRING = b'"%b"' % _INSIDE
_BLANKS = rb"[ \t\r\n]*+"
_COLON = b"%b:%b" % (_BLANKS, _BLANKS)
_NUMBER = rb"-?(?:[1-9][0-9]*+|0)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?=[ \t\r\n,\]}])"  # what follows says it is whole
_SCALAR = b"(?:%b|%b|null|true|false|NaN|-?Infinity)" % (_STRING, _NUMBER)


def _items(key: bytes, value: bytes, closing: bytes) -> bytes:
    """One element or member, and its comma or, unseen, the end of the container."""
    return b"(?:%b%b%b(?:,%b(?!%b)|(?=%b)))" % (key, value, _BLANKS, _BLANKS, closing, closing)


def _value() -> bytes:
    value = _SCALAR
    for _ in range(DEPTH):
        elements, members = _items(b"", value, rb"\]"), _items(_STRING + _COLON, value, rb"\}")
        containers = (
            rb"\[%b%b{0,%d}\]" % (_BLANKS, elements, MAX_INNER_ROUNDS),
            rb"\{%b%b{0,%d}\}"
            % (
                _BLANKS,
                members,
                MAX_INNER_ROUNDS,
            ),
        )
        value = b"(?:%b|%b|%b)" % (_SCALAR, *containers)
    return value


def _run(key: bytes, value: bytes, closing: bytes) -> re.Pattern[bytes]:
    return re.compile(b"%b{1,%d}" % (_items(key, value, closing), MAX_ROUNDS))


def plain_members_but(*names: bytes) -> re.Pattern[bytes]:
    """A run of members without containers, up to one of these names or a key with an escape in it."""
    return _run(b'"(?!(?:%b)")%b"%b' % (b"|".join(names), _PLAIN, _COLON), _SCALAR, rb"\}")


BLANKS = re.compile(_BLANKS)
STRING = re.compile(_STRING)
INSIDE = re.compile(_INSIDE)
"""The inside of a string, as far as it is there."""
SCALAR = re.compile(_SCALAR)
"""A value that is no container; a number only with what follows it."""
PART_OF_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
PART_OF_SCALAR = re.compile(rb"-?(?:[0-9][-+.0-9eE]*+|[A-Za-z]{0,7})\Z")
ELEMENTS = _run(b"", _value(), rb"\]")
"""A run of elements, up to the array's end, or behind a comma."""
MEMBERS = _run(_STRING + _COLON, _value(), rb"\}")
"""The same of an object."""
