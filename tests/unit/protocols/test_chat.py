"""Chat requests: parsing, and the injection of `stream_options`."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.errors import RequestError
from arbstr_asgi.protocols import json_edit
from arbstr_asgi.protocols.chat import INCLUDE_USAGE, ensure_stream_options, parse
from arbstr_asgi.protocols.json_edit import BOM

BLANK = st.sampled_from(["", " ", "\n", "\t ", "\r\n"])
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ['"stream_options":null', '"stream_options": {}', 'ends in "stream_options', "\ud83d", "é", "{", "}"]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=5), st.just("stream_options")), inner, max_size=3),
    ),
    max_leaves=6,
)
OPTIONS = st.one_of(
    st.none(),
    st.dictionaries(
        st.sampled_from(["include_usage", "include_obfuscation", "x", "stream_options"]),
        st.one_of(st.none(), st.booleans(), st.integers(), TEXTS, st.just({"include_usage": None})),
        max_size=3,
    ),
    st.sampled_from([[], "text", 3, True]),
)


def escaped(key: str, at: int) -> str:
    """A spelling of `key` in which one letter is a \\u escape."""
    return key[:at] + f"\\u{ord(key[at]):04x}" + key[at + 1 :]


@st.composite
def dumped(draw: st.DrawFn, value: Any) -> str:
    """One of the many JSON texts of a value."""
    ascii_only = draw(st.booleans()) or "\\ud8" in json.dumps(value)
    text = json.dumps(value, ensure_ascii=ascii_only, separators=draw(st.sampled_from([(",", ":"), (", ", " : ")])))
    return text.replace("[]", "[ ]") if draw(st.booleans()) else text


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A request body: any order, spacing, duplicates, escapes, decoys."""
    members: list[tuple[str, str]] = [("model", draw(dumped(draw(st.sampled_from(["gpt-4o", "é", "m"])))))]
    streams = draw(st.lists(st.sampled_from(["true", "true", "true", "false", "null"]), max_size=2))
    options = draw(st.lists(OPTIONS, max_size=3))
    others = draw(st.lists(st.tuples(st.sampled_from(["messages", "x", "meta", "tools"]), VALUES), max_size=3))
    members.extend(("stream", value) for value in streams)
    members.extend(("stream_options", draw(dumped(value))) for value in options)
    members.extend((key, draw(dumped(value))) for key, value in others)
    parts = []
    for key, value in draw(st.permutations(members)):
        spelled = escaped(key, draw(st.integers(0, len(key) - 1))) if draw(st.integers(0, 7)) == 0 else key
        parts.append(f'{draw(BLANK)}"{spelled}"{draw(BLANK)}:{draw(BLANK)}{value}{draw(BLANK)}')
    text = draw(BLANK) + "{" + ",".join(parts) + "}" + draw(BLANK)
    bom = BOM if draw(st.integers(0, 9)) == 0 else b""
    return bom + text.encode("utf-8")


def meant(body: bytes, *, require: bool) -> Any:
    """What the provider should read, by the rules and the standard library alone."""
    value = json.loads(body.removeprefix(BOM))
    if value.get("stream") is not True:
        return value
    options = value.get("stream_options")
    if options is None:
        value["stream_options"] = {"include_usage": True}
    elif isinstance(options, dict) and (options.get("include_usage") is None or require):
        options["include_usage"] = True
    return value


@given(body=bodies(), require=st.booleans())
def test_splice(body: bytes, require: bool) -> None:
    """The provider reads the client's request plus the injection, in the client's own bytes plus one splice."""
    request = parse(body)
    try:
        sent = ensure_stream_options(request, require=require)
    except RequestError:
        options = json.loads(body.removeprefix(BOM))["stream_options"]
        assert require
        assert options is not None
        assert not isinstance(options, dict)
        return
    before, after = json.loads(body.removeprefix(BOM)), json.loads(sent.removeprefix(BOM))
    assert after == meant(body, require=require)
    if after == before:
        assert sent is body
        return
    start = next(i for i in range(len(sent)) if sent[i : i + 1] != body[i : i + 1])
    tail = 0
    while tail < min(len(body), len(sent)) - start and body[-1 - tail] == sent[-1 - tail]:
        tail += 1
    removed, added = body[start : len(body) - tail], sent[start : len(sent) - tail]
    assert require or removed in b"null"
    assert len(added) <= len(b'"stream_options":') + len(INCLUDE_USAGE) + 4


def sent(text: str, **options: bool) -> bytes:
    """What the provider gets for a body."""
    return ensure_stream_options(parse(text.encode()), **options)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"model":"m","stream":true}', '{"stream_options":{"include_usage":true},"model":"m","stream":true}'),
        (
            '{"model":"m","stream":true,"stream_options":null}',
            '{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            '{"model":"m","stream":true,"stream_options":{}}',
            '{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            '{"model":"m","stream":true,"stream_options":{"include_obfuscation":false}}',
            '{"model":"m","stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}}',
        ),
        (
            '{"model":"m","stream":true,"stream_options":{"include_usage":null}}',
            '{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            '{"model":"m","str\\u0065am":true,"temperature":1.0,"seed":12345678901234567890123}',
            '{"stream_options":{"include_usage":true},"model":"m","str\\u0065am":true,"temperature":1.0,'
            '"seed":12345678901234567890123}',
        ),
        (
            '{"model":"m","stream":true,"stream\\u005foptions":{"a":1}}',
            '{"model":"m","stream":true,"stream\\u005foptions":{"include_usage":true,"a":1}}',
        ),
        (
            '{"model":"m\\ud83d","stream":true,"stream_options":{"x":"\\ud83d"}}',
            '{"model":"m\\ud83d","stream":true,"stream_options":{"include_usage":true,"x":"\\ud83d"}}',
        ),
    ],
)
def test_injected(body: str, expected: str) -> None:
    """A streaming request asks for usage, in the client's own spelling of everything else."""
    assert sent(body) == expected.encode()


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m"}',
        '{"model":"m","stream":false,"stream_options":null}',
        '{"model":"m","stream":null}',
        '{"model":"m","stream":true,"stream":false}',
        '{"model":"m","stream":true,"stream_options":{"include_usage":false}}',
        '{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
        '{"model":"m","stream":true,"stream_options":{"include_usage":"yes"}}',
        '{"model":"m","stream":true,"stream_options":"x"}',
        '{"model":"m","stream":true,"stream_options":[]}',
    ],
)
def test_untouched(body: str) -> None:
    """A request that does not stream, or sets include_usage itself, is returned as the same object."""
    request = parse(body.encode())
    assert ensure_stream_options(request) is request.body


def test_last_duplicate_counts() -> None:
    """An earlier duplicate of a member means nothing, whatever it is."""
    request = parse(b'{"model":3,"stream":"x","stream_options":7,"model":"m","stream":true,"stream_options":null}')
    assert (request.model, request.stream, request.stream_options) == ("m", True, b"null")
    with pytest.raises(RequestError):
        parse(b'{"model":"m","model":3}')


def test_many_decoys() -> None:
    """More look-alikes than a search tries still leave the right member edited."""
    decoys = ",".join('{"stream_options":null}' for _ in range(json_edit.MAX_ATTEMPTS + 4))
    body = '{"model":"m","stream":true,"stream_options":null,"x":[' + decoys + "]}"
    assert sent(body) == body.replace("null", '{"include_usage":true}', 1).encode()


def test_require() -> None:
    """`require` overrides a refusal and anything that is not a plain true."""
    for refusal in ("false", "0", '"no"', "null"):
        body = '{"model":"m","stream":true,"stream_options":{"include_usage":' + refusal + "}}"
        assert json.loads(sent(body, require=True))["stream_options"] == {"include_usage": True}


def test_immutable() -> None:
    """The parsed request can't be changed, and injection leaves it as it was."""
    request = parse(b'{"model":"m","stream":true}')
    ensure_stream_options(request)
    assert request.body == b'{"model":"m","stream":true}'
    with pytest.raises(AttributeError):
        request.stream = False  # type: ignore[misc]


BAD = {
    "empty": b"",
    "blank": b"  ",
    "text": b"hello",
    "array": b"[]",
    "string": b'"m"',
    "no model": b"{}",
    "model null": b'{"model":null}',
    "model number": b'{"model":4}',
    "model long": b'{"model":"' + b"m" * 256 + b'"}',
    "stream text": b'{"model":"m","stream":"yes"}',
    "stream number": b'{"model":"m","stream":1}',
    "trailing": b'{"model":"m"} x',
    "two": b'{"model":"m"}{"model":"m"}',
    "nan": b'{"model":"m","temperature":NaN}',
    "infinity": b'{"model":"m","temperature":-Infinity}',
    "invalid utf-8": b'{"model":"m","x":"\xff"}',
    "raw surrogate": b'{"model":"m","x":"\xed\xa0\xbd"}',
    "utf-16": '{"model":"m"}'.encode("utf-16"),
    "open nesting": b'{"model":"m","x":' + b"[" * 100_000,
    "closed nesting": b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nesting behind a surrogate": b'{"model":"m","y":"\\ud83d","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "surrogate and a bad stream": b'{"model":"m","x":"\\ud83d","stream":"yes"}',
    "surrogate and rubbish": b'{"model":"m","x":"\\ud83d",}',
    "control character": b'{"model":"m","x":"\x01"}',
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_refused(body: bytes) -> None:
    """A body that isn't a chat completion is a 400 which quotes nothing of it."""
    with pytest.raises(RequestError) as caught:
        parse(body)
    assert caught.value.status_code == 400
    assert json.loads(caught.value.to_json())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m","n":' + "9" * 5000 + "}",
        '{"model":"m","messages":[]}',
        '{"model":"","x":1e999}',
        '\ufeff{"model":"m"}',
    ],
)
def test_for_the_provider_to_judge(body: str) -> None:
    """All members but model and stream are left to the provider to validate."""
    assert parse(body.encode()).body == body.encode()


def test_large_and_odd() -> None:
    """A large request that can not be edited cheaply is a 400."""
    body = b'{"model":"m","stream":true,"stream\\u005foptions":{},"x":[' + b"1," * json_edit.MAX_WALK_BYTES + b"1]}"
    with pytest.raises(RequestError):
        ensure_stream_options(parse(body))
