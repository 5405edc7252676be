"""Offsets of the members of a JSON object, and edits by them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.protocols.json_edit import (
    TooManySteps,
    find_members,
    without_null_usage,
    without_surrogates,
    without_usage,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
PAIRS = st.lists(st.tuples(st.text(max_size=6) | st.just("usage"), JSON), max_size=5)
BLANK = st.sampled_from(["", " ", "\n\t", "\r\n"])


@given(pairs=PAIRS, blank=BLANK, ascii_only=st.booleans(), bom=st.booleans())
def test_ranges(pairs: list[tuple[str, Any]], blank: str, ascii_only: bool, bom: bool) -> None:
    """Members of a name are found at the bytes where they are, in order, duplicates included."""
    spelled = [(json.dumps(k, ensure_ascii=ascii_only), json.dumps(v, ensure_ascii=ascii_only)) for k, v in pairs]
    inner = f"{blank},{blank}".join(f"{key}{blank}:{blank}{value}" for key, value in spelled)
    text = f"{blank}{{{blank}{inner}{blank}}}{blank}"
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8", "surrogatepass")
    for name in {"usage", *(key for key, _ in pairs)}:
        if not name.isascii():
            continue
        found = find_members(data, name)
        expected = [each for (key, _), each in zip(pairs, spelled, strict=True) if key == name]
        for member, (key, value) in zip(found, expected, strict=True):
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
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_refused(data: bytes) -> None:
    """An object that ends unexpectedly raises ValueError."""
    with pytest.raises(ValueError, match=r"."):
        find_members(data, "usage")


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
    found = [data[member.value_start : member.value_end] for member in find_members(data, "usage")]
    assert found == ([] if value is None else [value])


MIB = 1024 * 1024


@pytest.mark.parametrize(
    "inner",
    [
        b'"x":1,' * (MIB // 6),
        b'"x":"\\n",' * (MIB // 9),
        b'"x":[{"a":[1]}],' * (MIB // 16),
        b'"x":"' + b"\\n" * (MIB // 2) + b'",',
        b'"x":[' + b"[]," * (MIB // 3) + b"1],",
        b'"x":{"a":' + b"[" * 900 + b"]" * 900 + b"},",
    ],
    ids=["members", "escapes", "containers", "one string", "elements", "nesting"],
)
def test_a_megabyte_is_passed_over(inner: bytes) -> None:
    """A megabyte of anything usual takes few steps of Python."""
    [member] = find_members(b"{" + inner + b'"usage":null}', "usage")
    assert member.start == len(inner) + 1


@pytest.mark.parametrize(
    "inner",
    [b'"\\u0061":1,' * (MIB // 11), b'"usage":1,' * (MIB // 10), b'"x":[' + b"[[[[]]]]," * (MIB // 9) + b"1],"],
    ids=["escaped keys", "repeated", "nested"],
)
def test_a_search_is_bounded(inner: bytes) -> None:
    """A search of too many steps raises TooManySteps, and a response passes unchanged."""
    data = b"{" + inner + b'"usage":null ,"z":1}'
    with pytest.raises(TooManySteps):
        find_members(data, "usage")
    assert without_null_usage(data) == data


def test_many_null_members() -> None:
    """Thousands of null members are removed in linear time."""
    kept = b'"choices":[{"index":0,"delta":{"content":"q"}}]'
    assert without_null_usage(b"{" + b'"usage":null,' * 12_000 + kept + b"}") == b"{" + kept + b"}"
    assert without_null_usage(b"{" + kept + b',"usage":null' * 12_000 + b"}") == b"{" + kept + b"}"


@given(pairs=PAIRS, blank=BLANK)
def test_without_usage(pairs: list[tuple[str, Any]], blank: str) -> None:
    """The `usage` members are removed with their commas, all others are kept unchanged."""

    def spelled(members: list[tuple[str, Any]]) -> str:
        return "{" + f",{blank}".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in members) + "}"

    body, rest = spelled(pairs).encode(), spelled([(key, value) for key, value in pairs if key != "usage"]).encode()
    assert without_usage(body) == rest
    nulls = [(key, value) for key, value in pairs if key != "usage" or value is not None]
    assert without_null_usage(body) == spelled(nulls).encode()


HALVES = ["\\ud83d", "\\ude00", "\\uD83D\\uDE00", "\\\\", "\\u005c", "ud83d", "\\n", "a", "\\\\ud83d"]


@given(st.lists(st.sampled_from(HALVES), max_size=8))
def test_lone_surrogates(parts: list[str]) -> None:
    """Lone surrogates are replaced in place, pairs and look-alikes are kept."""
    sent = '"' + "".join(parts) + '"'
    repaired = without_surrogates(sent.encode())
    assert len(repaired) == len(sent)
    want = json.loads(sent).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert json.loads(repaired).replace("\\", '"') == want.replace("\\", '"')
