"""Variants of responses: an event per line, usage beside other members, zeros, several choices, wrong content types."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.protocols.meter import Meter
from arbstr_asgi.protocols.meters import open_meter
from arbstr_asgi.protocols.reply import ReplySummary
from tests.support.sample_replies import BYE, DONE, HELLO, ONLY, USAGE, chunk, event, read, usage_only

SSE, JSON = "text/event-stream", "application/json"
ZERO = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
BODY = {
    "id": "c",
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": USAGE,
}


def opened(content_type: str = SSE, *, strip: bool = True) -> Meter:
    """A meter."""
    return open_meter(content_type=content_type, content_encoding=None, strip=strip)


def run(
    body: bytes, cuts: list[int] | None = None, content_type: str = SSE, *, strip: bool = True
) -> tuple[bytes, Any]:
    """The bytes for the client of a body split at these offsets, and the summary."""
    meter = opened(content_type, strip=strip)
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts or ()), len(body)]
    out = [read(meter, body[start:end]) for start, end in pairwise(edges)]
    return b"".join([*out, meter.finish()]), meter.summary


def tokens(summary: ReplySummary) -> tuple[int | None, int | None]:
    """The input and output tokens."""
    assert summary.usage is not None
    return summary.usage.input_tokens, summary.usage.output_tokens


def line(value: Any, end: str = "\n") -> bytes:
    """An event without a blank line."""
    return event(value, end)[: -len(end)]


CUTS = st.lists(st.integers(0, 5000), max_size=10)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def lines(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A stream with an event per line, and the bytes for the client."""
    end = draw(ENDS)
    sent = got = line(chunk("a"), end) + line(chunk("b"), end)
    for kind in draw(st.lists(st.sampled_from("tnuecb"), max_size=8)):
        if kind == "t":
            part = left = line(chunk(draw(st.sampled_from(["x", "[DONE]", "data: {}"]))), end)
        elif kind == "n":
            part, left = line(chunk("y", usage=None), end), line(chunk("y"), end)
        elif kind == "u":
            part, left = line(usage_only(), end), b""
        elif kind == "e":
            part = left = b"event: message" + end.encode() + line(chunk("z"), end)
        elif kind == "c":
            part = left = b": ping" + end.encode()
        else:  # a block as it should be, of its own
            part = left = line(chunk("w"), end) + end.encode()
        sent, got = sent + part, got + left
    last = line(chunk(finish="stop", usage=USAGE), end) + draw(
        st.sampled_from([b"", b"data: [DONE]", line("[DONE]", end)])
    )
    return sent + last, got + last


@given(stream=lines(), cuts=CUTS, strip=st.booleans())
def test_lines_as_events(stream: tuple[bytes, bytes], cuts: list[int], strip: bool) -> None:
    """A stream with an event per line is metered and stripped like any other, at any chunk boundaries."""
    sent, got = stream
    for places in ([], cuts, list(range(len(sent)))):
        out, summary = run(sent, places, strip=strip)
        assert out == (got if strip else sent)
        assert tokens(summary) == (11, 7)
        assert summary.finished
        assert summary.events == run(sent, strip=strip)[1].events


def test_lines_are_not_held() -> None:
    """From the second line on, each is sent as soon as it is complete."""
    meter = opened()
    assert meter.feed(line(chunk("a"))) == b""
    assert meter.feed(line(chunk("b"))) == line(chunk("a")) + line(chunk("b"))
    assert meter.feed(line(chunk("c"))) == line(chunk("c"))
    assert meter.feed(line(usage_only())) == b""
    assert meter.feed(line("[DONE]")) == line("[DONE]")


@pytest.mark.parametrize("cuts", [[], list(range(2000))], ids=["whole", "by byte"])
@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (HELLO + line(chunk(finish="stop")) + ONLY + DONE, HELLO + line(chunk(finish="stop")) + b"\n" + DONE),
        (HELLO + BYE + line(usage_only()) + DONE, HELLO + BYE + DONE),
        (
            line(chunk("a")) + line(chunk("b")) + b"\n" + BYE + ONLY + DONE,
            line(chunk("a")) + event(chunk("b")) + BYE + DONE,
        ),
    ],
)
def test_two_events_in_a_block(sent: bytes, got: bytes, cuts: list[int]) -> None:
    """Two events in one block are two, and the usage is removed with its line."""
    out, summary = run(sent, cuts)
    assert out == got
    assert tokens(summary) == (11, 7)


def test_json_over_several_lines() -> None:
    """JSON over several data lines is one event, also where one of the lines is JSON by itself."""
    sent = (
        HELLO
        + b'data: {"id":"c","choices":[],"x":\ndata: {}\ndata: ,"usage":{"prompt_tokens":11,"completion_tokens":7}}\n\n'
    )
    out, summary = run(sent + DONE)
    assert out == sent + DONE
    assert tokens(summary) == (11, 7)


CITED = {"citations": ["https://a.example/1"], "moderation": {"flagged": True}}


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (usage_only(**CITED), {**chunk(), "choices": [], **CITED}),
        (usage_only(timings={"predicted_n": 3}), {**chunk(), "choices": [], "timings": {"predicted_n": 3}}),
        (usage_only(citations=None, cost=0.1, total_cost_usd=1, provider="x", stream_options={}), None),
        ({"id": "x", "response": "Hel", "usage": USAGE}, {"id": "x", "response": "Hel"}),
        ({"id": "x", "model": "m", "usage": USAGE}, None),
        ({**chunk(), "usage": USAGE}, None),
        ({**chunk(""), "usage": USAGE}, None),
        ({**chunk(), "usage": USAGE, **CITED}, {**chunk(), **CITED}),
        ({**chunk("more"), "usage": USAGE}, {**chunk("more"), "usage": USAGE}),
        ({**chunk(finish="stop"), "usage": USAGE}, {**chunk(finish="stop"), "usage": USAGE}),
        ({**usage_only(), "error": {"code": 1}}, {**usage_only(), "error": {"code": 1}}),
    ],
)
def test_what_rides_on_a_usage_event(value: Any, left: Any) -> None:
    """After the last finish_reason, an event with only usage is removed; from another, only its usage is."""
    sent = HELLO + BYE + event(value) + DONE
    out, summary = run(sent)
    assert out == HELLO + BYE + (b"" if left is None else event(left)) + DONE
    assert tokens(summary) == (11, 7)
    assert run(sent, list(range(len(sent))))[0] == out
    assert run(sent, strip=False)[0] == sent


def test_an_empty_choice_before_the_finish() -> None:
    """An event with an empty choice and interim usage is kept before the finish_reason."""
    first = event({**chunk(), "usage": USAGE})
    assert run(first + HELLO + BYE + DONE)[0] == first + HELLO + BYE + DONE


PICTURE = "data:image/png;base64," + "iVBOR" * 20_000


@pytest.mark.parametrize("size", [100_000, 2_000_000])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\n"])
@pytest.mark.parametrize("step", [1000, 16_384, 10_000_000])
def test_usage_of_a_large_event(size: int, end: bytes, step: int) -> None:
    """Usage is read from an event of any size, and removed from one that is buffered."""
    body = event({**chunk("x" * size, finish="stop"), "usage": USAGE}).removesuffix(b"\n\n") + end
    nulls = event(chunk("y" * 100_000, usage=None)).removesuffix(b"\n\n") + end
    sent = nulls + body + b"data: [DONE]" + end
    meter = opened()
    out = b"".join(read(meter, sent[at : at + step]) for at in range(0, len(sent), step)) + meter.finish()
    assert out == sent.replace(b',"usage":null', b"")
    assert tokens(meter.summary) == (11, 7)
    assert (meter.summary.events, meter.summary.finish_reason, meter.summary.finished) == (3, "stop", True)


def test_a_large_event_of_several_lines() -> None:
    """A large event may have its JSON over several data lines, behind other fields."""
    text = json.dumps({**usage_only(), "pictures": [PICTURE] * 3}, indent=1).encode()
    sent = HELLO + BYE + b"id: 3\n" + b"".join(b"data: %b\n" % each for each in text.split(b"\n")) + b"\n" + DONE
    for cuts in ([], [200, 300, 70_000, 70_001]):
        out, summary = run(sent, cuts)
        assert out == sent
        assert tokens(summary) == (11, 7)


def test_citations_with_a_large_usage_event() -> None:
    """From a large event with other members, only the usage is removed."""
    more = {"citations": ["https://a.example/" + "x" * 100] * 1000}
    assert (
        run(HELLO + BYE + event(usage_only(**more)) + DONE)[0]
        == HELLO + BYE + event({**chunk(), "choices": [], **more}) + DONE
    )


@pytest.mark.parametrize("content_type", [SSE, JSON, "text/plain", ""])
@given(cuts=CUTS, start=st.sampled_from([b"", b"\n", b"\n \n", b"\xef\xbb\xbf", b"  "]))
def test_json_whatever_it_is_called(content_type: str, cuts: list[int], start: bytes) -> None:
    """A JSON body is parsed as one with any content type."""
    sent = start + json.dumps(BODY, indent=1).encode()
    out, summary = run(sent, cuts, content_type)
    assert out == sent
    assert tokens(summary) == (11, 7)
    assert (summary.finished, summary.events, summary.finish_reason) == (True, 0, "stop")


@pytest.mark.parametrize("content_type", [SSE, JSON, ""])
@pytest.mark.parametrize("size", [0, 3_000_000])
@pytest.mark.parametrize("start", [b"", b": x\n\n", b"id: 1\n", b"retry: 1\n\n"])
def test_events_whatever_they_are_called(content_type: str, size: int, start: bytes) -> None:
    """Events are parsed as such with any content type, in one chunk of any size."""
    sent = start + HELLO + event(chunk("x" * 1000)) * (size // 1000) + BYE + ONLY + DONE
    out, summary = run(sent, [], content_type)
    assert out == sent.replace(ONLY, b"")
    assert tokens(summary) == (11, 7)


@pytest.mark.parametrize("content_type", [SSE, JSON])
def test_whole_json_that_breaks_off(content_type: str) -> None:
    """A complete document is parsed although the connection then breaks off; a partial one has no usage."""
    meter = opened(content_type)
    read(meter, json.dumps(BODY).encode())
    assert not meter.abandon()
    assert not meter.abandon()
    assert tokens(meter.summary) == (11, 7)
    meter = opened(content_type)
    read(meter, json.dumps(BODY).encode()[:-1])
    assert not meter.abandon()
    assert meter.summary.usage is None


@pytest.mark.parametrize("size", [1, 100_000])
def test_whole_event_that_breaks_off(size: int) -> None:
    """An event that lacks only its blank line is parsed although the connection breaks off."""
    meter = opened()
    read(meter, HELLO + event({**chunk("x" * size, finish="stop"), "usage": USAGE})[:-2])
    assert meter.abandon()
    assert tokens(meter.summary) == (11, 7)


@pytest.mark.parametrize("at", ["first", "every", "last"])
def test_zeros_are_no_count(at: str) -> None:
    """Zeros are a placeholder where there is content, in a stream that breaks off and in a whole one."""
    first, other = event(chunk("", usage=ZERO)), event(chunk("x", **({"usage": ZERO} if at == "every" else {})))
    last = event(usage_only(ZERO)) if at != "first" else b""
    meter = opened()
    read(meter, (first if at != "last" else b"") + HELLO + other)
    meter.abandon()
    assert meter.summary.usage is None
    assert run((first if at != "last" else b"") + HELLO + other + BYE + last + DONE)[1].usage is None
    assert run(json.dumps({**BODY, "usage": ZERO}).encode(), [], JSON)[1].usage is None


def test_zeros_of_nothing() -> None:
    """Zeros count in a response without content, and never replace a real count."""
    summary = run(BYE + event(usage_only(ZERO)) + DONE)[1]
    assert tokens(summary) == (0, 0)
    assert summary.usage_is_final
    assert tokens(run(HELLO + BYE + ONLY + event(usage_only(ZERO)) + DONE)[1]) == (11, 7)
    assert tokens(run(HELLO + event({**chunk(finish="stop"), "usage": ZERO, "x_groq": {"usage": USAGE}}))[1]) == (11, 7)
    empty = {**BODY, "choices": [], "usage": ZERO}
    assert tokens(run(json.dumps(empty).encode(), [], JSON)[1]) == (0, 0)


def test_output_of_zero_before_the_content() -> None:
    """An output of 0 in front of the content is a placeholder; the input beside it is not."""
    sent = event(chunk("", usage={"prompt_tokens": 11, "completion_tokens": 0, "total_tokens": 11})) + HELLO
    meter = opened()
    read(meter, sent)
    assert tokens(meter.summary) == (11, None)
    assert not meter.summary.usage_is_final
    assert tokens(run(sent + BYE + ONLY + DONE)[1]) == (11, 7)


def choice(index: int | None, content: str | None = None, finish: str | None = None) -> bytes:
    """An event of one of several choices."""
    [only] = chunk(content, finish=finish)["choices"]
    return event({**chunk(), "choices": [{**only, "index": index}]})


@pytest.mark.parametrize(
    ("sent", "finished"),
    [
        (choice(0, "a") + choice(1, "b") + choice(0, finish="stop"), False),
        (choice(0, "a") + choice(0, "a") + choice(1, "b") + choice(0, finish="stop"), False),
        (choice(0, "a") + choice(1, "b") + choice(0, finish="stop") + choice(1, finish="stop"), True),
        (choice(0, "a") + choice(1, "b") + choice(0, finish="stop") + DONE, True),
        (choice(0, "a") + choice(0, finish="stop") + choice(0), True),
        (choice(1, "a") + choice(1, finish="stop"), True),
        (choice(None, "a") + choice(None, finish="stop"), True),
        (choice(0, "a"), False),
    ],
)
def test_several_choices(sent: bytes, finished: bool) -> None:
    """A stream is finished when every choice with content has finished, or with [DONE]."""
    for cuts in ([], list(range(len(sent)))):
        assert run(sent, cuts)[1].finished is finished


def test_usage_of_several_choices() -> None:
    """Interim usage is not final when one of two choices has finished."""
    last = event({**chunk(finish="stop"), "usage": USAGE})
    summary = run(choice(0, "a") + choice(1, "b") + last)[1]
    assert not summary.usage_is_final


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"error": {"type": "server_error", "code": "overloaded"}}, "server_error: overloaded"),
        ({"error": "busy"}, "error"),
        ({"object": "error", "type": "BadRequestError", "code": 400}, "BadRequestError: 400"),
        ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, "1008"),
        ({**BODY, "base_resp": {"status_code": 0, "status_msg": ""}}, None),
        ({**BODY, "error": None}, None),
    ],
)
def test_error_under_200(body: Any, error: str | None) -> None:
    """An error that a provider wraps in a 200 is one, in a body and in an event, large or not."""
    for padding in ({}, {"padding": "x" * 100_000}):
        assert run(json.dumps({**body, **padding}).encode(), [], JSON)[1].error == error
        assert run(HELLO + event({**body, **padding}))[1].error == error


@pytest.mark.parametrize("name", ["has_no_content", "has_other_members", "raw_usage"])
@pytest.mark.parametrize("value", [True, False, "YQ=="])
def test_members_of_our_own_names(name: str, value: Any) -> None:
    """A provider's members do not decide what is removed: an event with text and no usage passes as it is."""
    sent = HELLO + event({"text": "more", name: value}) + BYE + DONE
    assert run(sent)[0] == sent
