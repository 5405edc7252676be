"""`with_model` replaces the model in a body, and nothing else."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.errors import RequestError
from arbstr_asgi.protocols import json_edit
from arbstr_asgi.protocols.chat import ChatRequest, ensure_stream_options, parse, with_model
from arbstr_asgi.protocols.json_edit import BOM, find_members
from tests.unit.protocols.test_chat import BLANK, OPTIONS, VALUES, dumped, escaped

MODELS = st.sampled_from(["m", "gpt-4o", "é", "\ud83d", 'a"model":"m"', "\\", "😀"])
DECOYS = st.sampled_from(
    ['"model":"m"', '"model": "gpt-4o"', 'ends in "model', "\ud83d", {"model": "m"}, [{"model": 1}]]
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A request body: any order, spacing, duplicates, escapes, decoys."""
    parts = [("model", draw(dumped(draw(MODELS)))) for _ in range(draw(st.integers(1, 3)))]
    parts += [("stream", "true")] * draw(st.integers(0, 1))
    parts += [("stream_options", draw(dumped(value))) for value in draw(st.lists(OPTIONS, max_size=2))]
    keys = st.sampled_from(["messages", '"model', "models", "meta"])
    others = draw(st.lists(st.tuples(keys, st.one_of(DECOYS, VALUES)), max_size=3))
    parts += [(json.dumps(key)[1:-1], draw(dumped(value))) for key, value in others]
    spelled = []
    for key, value in draw(st.permutations(parts)):
        odd = key.isidentifier() and draw(st.integers(0, 5)) == 0
        name = escaped(key, draw(st.integers(0, len(key) - 1))) if odd else key
        spelled.append(f'{draw(BLANK)}"{name}"{draw(BLANK)}:{draw(BLANK)}{value}{draw(BLANK)}')
    bom = BOM if draw(st.integers(0, 9)) == 0 else b""
    return bom + f"{draw(BLANK)}{{{','.join(spelled)}}}{draw(BLANK)}".encode()


def read(body: bytes) -> Any:
    """What a provider reads."""
    return json.loads(body.removeprefix(BOM))


@given(body=bodies(), model=MODELS)
def test_replaced(body: bytes, model: str) -> None:
    """The effective model's value is the new one, and every other byte is the client's."""
    request = parse(body)
    sent = with_model(body, request, model)
    if model == request.model:
        assert sent is body
        return
    effective = find_members(body, "model")[-1]
    assert sent == body[: effective.value_start] + json.dumps(model).encode() + body[effective.value_end :]
    assert parse(sent).model == model


@given(body=bodies(), model=MODELS)
def test_composes(body: bytes, model: str) -> None:
    """Usage may be asked for before or after: the same request arrives, with both changes."""
    request = parse(body)
    after = with_model(ensure_stream_options(request), request, model)
    before = ensure_stream_options(msgspec.structs.replace(request, body=with_model(body, request, model)))
    assert after == before
    assert read(after) == {**read(ensure_stream_options(request)), "model": model}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"model":"m","x":"model"}', '{"model":"new","x":"model"}'),
        ('{"mod\\u0065l" : "m"}', '{"mod\\u0065l" : "new"}'),
        ('{"model":"\\u006d"}', '{"model":"new"}'),
        ('{"model":"m","model":"m"}', '{"model":"m","model":"new"}'),
        ('{"model":"m","x":{"model":"m"}}', '{"model":"new","x":{"model":"m"}}'),
        ('{"model":"m","x":"\\"model\\":\\"m\\""}', '{"model":"new","x":"\\"model\\":\\"m\\""}'),
        ('{"model":"m","\\"model":"m"}', '{"model":"new","\\"model":"m"}'),
        ('{"model":"m","x":"\\ud83d"}', '{"model":"new","x":"\\ud83d"}'),
        ('\ufeff{"model":"é"}', '\ufeff{"model":"new"}'),
    ],
)
def test_spellings(body: str, expected: str) -> None:
    """Whatever the model's key looks like, and whatever looks like it."""
    assert with_model(body.encode(), parse(body.encode()), "new") == expected.encode()


def large(model: str, rest: str) -> ChatRequest:
    """A request of more than a megabyte."""
    return parse(b'{%s:"m",%s,"x":[%s1]}' % (model.encode(), rest.encode(), b"1," * json_edit.MAX_WALK_BYTES))


def repeated(decoy: str, times: int) -> str:
    """A member that holds a decoy many times."""
    return f'"tools":[{",".join([decoy] * times)}]'


def test_many_decoys() -> None:
    """More look-alikes than a search tries still leave the right model replaced."""
    decoys = ",".join('{"model":"m"}' for _ in range(json_edit.MAX_ATTEMPTS + 4))
    body = '{"model":"m","x":[' + decoys + "]}"
    assert with_model(body.encode(), parse(body.encode()), "n") == body.replace('"m"', '"n"', 1).encode()


def test_large() -> None:
    """In a large body, too, other occurrences of `model` do not prevent the edit."""
    request = large('"model"', repeated('{"model":{"type":"string"}}', 100))
    assert with_model(request.body, request, "n") == request.body.replace(b'"m"', b'"n"', 1)


def test_large_and_odd() -> None:
    """A large request whose model can not be located cheaply is a 400."""
    for request in (
        large('"mod\\u0065l"', '"y":1'),
        large('"model"', repeated('{"model":"m"}', 3)),
        large('"model"', repeated('{"model":1}', json_edit.MAX_MATCHES)),
    ):
        with pytest.raises(RequestError, match="'model' is spelled in an unusual way"):
            with_model(request.body, request, "n")


def test_grown_body() -> None:
    """A body at the limit of the search can be searched after `stream_options` was added."""
    start = '{"mod\\u0065l":"m","stream":true,"x":"\\ud83d'
    body = (start + "a" * (json_edit.MAX_WALK_BYTES - len(start) - 2) + '"}').encode()
    request = parse(body)
    assert read(with_model(ensure_stream_options(request), request, "n"))["model"] == "n"


def test_deeply_nested() -> None:
    """A body that exceeds the recursion limit only when it is edited is a 400."""
    body = b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    request = ChatRequest(body=body, model="m", stream=False)
    with pytest.raises(RequestError, match="unusual way"):
        with_model(body, request, "n")
