"""Where the members of a JSON object are."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.protocols.json_edit import scan_members

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
PAIRS = st.lists(st.tuples(st.text(max_size=6) | st.just("usage"), JSON), max_size=5)
BLANK = st.sampled_from(["", " ", "\n\t", "\r\n"])


@given(pairs=PAIRS, blank=BLANK, ascii_only=st.booleans(), bom=st.booleans())
def test_ranges(pairs: list[tuple[str, Any]], blank: str, ascii_only: bool, bom: bool) -> None:
    """Keys and values are found at the bytes where they are, in order, duplicates included."""
    spelled = [(json.dumps(k, ensure_ascii=ascii_only), json.dumps(v, ensure_ascii=ascii_only)) for k, v in pairs]
    inner = f"{blank},{blank}".join(f"{key}{blank}:{blank}{value}" for key, value in spelled)
    text = f"{blank}{{{blank}{inner}{blank}}}{blank}"
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8", "surrogatepass")
    found = scan_members(data)
    assert [member.key for member in found] == [key for key, _ in pairs]
    for member, (key, value) in zip(found, spelled, strict=True):
        assert data[member.start :].startswith(key.encode("utf-8", "surrogatepass"))
        assert data[member.value_start : member.value_end] == value.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"[]",
        b"3",
        b"{",
        b'{"a"',
        b'{"a"}',
        b'{"a":',
        b'{"a":}',
        b'{"a":1',
        b'{"a":1,',
        b'{"a":1,}',
        b"{,}",
        b"{a:1}",
        b'{"a":1 "b":2}',
        b'{"a":1}x',
        b'{"a":1}{}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":"\x01"}',
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_refused(data: bytes) -> None:
    """Anything but one JSON object is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        scan_members(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a":"\xff\xfe","usage":null}', b"null"),
        (b'{"a":"\\ud83d","usage":[1]}', b"[1]"),
        (b'{"usage":' + b"9" * 5000 + b"}", b"9" * 5000),
        (b'{"us\\u0061ge":"x"}', b'"x"'),
        (b"{}", None),
    ],
)
def test_accepted(data: bytes, value: bytes | None) -> None:
    """Invalid UTF-8, lone surrogates, long numbers and escaped keys are found."""
    found = {member.key: data[member.value_start : member.value_end] for member in scan_members(data)}
    assert found.get("usage") == value
