"""Hand-made replies, one for each way in which providers differ."""

import json
from typing import Any, NamedTuple

from arbstr_asgi.protocols.meter import Meter

USAGE: dict[str, Any] = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


class Stream(NamedTuple):
    """A stream, what the client gets of it when we asked for usage, and what it says."""

    name: str
    sent: bytes
    got: bytes
    reported: dict[str, Any]


def chunk(content: str | None = None, *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chat.completion.chunk."""
    delta = {} if content is None else {"content": content}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m-1", "choices": choices, **more}


def event(value: Any, end: str = "\n") -> bytes:
    """An event as providers write it."""
    data = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"data: {data}{end}{end}".encode()


def usage_only(usage: Any = None, **more: Any) -> dict[str, Any]:
    """The chunk that `include_usage` adds."""
    return {**chunk(), "choices": [], "usage": USAGE if usage is None else usage, **more}


HELLO, BYE, DONE = event(chunk("hello")), event(chunk(finish="stop")), event("[DONE]")
WHOLE = {
    "input_tokens": 11,
    "output_tokens": 7,
    "total_tokens": 18,
    "finish_reason": "stop",
    "final": True,
    "complete": True,
}


def same(name: str, sent: bytes, **reported: Any) -> Stream:
    """A stream of which nothing goes."""
    return Stream(name, sent, sent, {**WHOLE, **reported})


def loses(name: str, sent: bytes, part: bytes, left: bytes = b"", **reported: Any) -> Stream:
    """A stream that loses one part."""
    assert sent.count(part) == 1, name
    return Stream(name, sent, sent.replace(part, left), {**WHOLE, **reported})


NULL_LAST = event(chunk("hi", usage=None))
NULL_MIDDLE = event(chunk("hi", usage=None, obfuscation="CVQ5"))
ONLY = event(usage_only())
SAID = b',"usage":' + json.dumps(USAGE, separators=(",", ":")).encode()
MULTI_LINE = b"data: " + json.dumps(usage_only(), indent=1).encode().replace(b"\n", b"\ndata: ") + b"\n\n"
COMMENTED = b": before\ndata: " + json.dumps(usage_only()).encode() + b"\n: inside\nid: 3\n\n"

STREAMS = [
    # OpenAI and those who do as it does
    loses("usage-only event", HELLO + BYE + ONLY + DONE, ONLY),
    loses("null on chunks", HELLO + NULL_LAST + BYE + ONLY + DONE, NULL_LAST + BYE + ONLY, event(chunk("hi")) + BYE),
    loses(
        "null before obfuscation",
        NULL_MIDDLE + BYE + DONE,
        b',"usage":null',
        input_tokens=None,
        output_tokens=None,
        total_tokens=None,
        final=False,
    ),
    loses("null first", b'data: {"usage":null, ' + HELLO[7:] + BYE + ONLY + DONE, b'"usage":null, ')._replace(
        got=HELLO + BYE + DONE
    ),
    loses(
        "null with blanks",
        b'data: {"choices":[{"delta":{"content":"x"}}] , "usage" : null }\n\n' + BYE + ONLY + DONE,
        b', "usage" : null',
    )._replace(got=b'data: {"choices":[{"delta":{"content":"x"}}]  }\n\n' + BYE + DONE),
    loses(
        "null in an escaped spelling",
        b'data: {"choices":[1],"\\u0075sage":null}\n\n' + BYE + ONLY + DONE,
        b',"\\u0075sage":null',
    )._replace(got=b'data: {"choices":[1]}\n\n' + BYE + DONE),
    same(
        "null is content",
        event(chunk('he said "usage":null, ok')) + BYE + event(chunk("x", finish="stop", usage=USAGE)) + DONE,
    ),
    loses(
        "moderation frame behind it",
        HELLO + BYE + ONLY + event({"id": "x", "choices": [], "moderation": {}}) + DONE,
        ONLY,
    ),
    # Azure: the first chunk has no choices, no usage, and empty names
    loses(
        "azure",
        event({"choices": [], "id": "", "model": "", "prompt_filter_results": []}) + HELLO + BYE + ONLY + DONE,
        ONLY,
    ),
    # OpenRouter: comments, usage always, sometimes after the finish with choices, finish twice
    same(
        "openrouter", b": OPENROUTER PROCESSING\n\n" + HELLO + BYE + event(chunk("", finish="stop", usage=USAGE)) + DONE
    ),
    same(
        "openrouter error and usage",
        HELLO + event(chunk("", finish="error", usage=USAGE, error={"code": 502, "message": "x"})),
        finish_reason="error",
        error="502",
    ),
    # Groq: in x_groq on the finish chunk; error events; then nothing more
    same("groq", HELLO + event(chunk(finish="stop", x_groq={"id": "r", "usage": USAGE})) + DONE),
    Stream(
        "groq error",
        HELLO + b'event: error\ndata: {"error":{"type":"invalid_request_error","code":"tool_use_failed"}}\n\n',
        HELLO + b'event: error\ndata: {"error":{"type":"invalid_request_error","code":"tool_use_failed"}}\n\n',
        {"error": "invalid_request_error: tool_use_failed", "complete": False},
    ),
    # DeepSeek, Mistral, Z.ai, Cloudflare, Together: on the finish chunk
    same(
        "on the finish chunk",
        HELLO + event(chunk(finish="stop", usage={**USAGE, "prompt_cache_hit_tokens": 4})) + DONE,
        cached_tokens=4,
    ),
    # Perplexity, Databricks, vLLM continuous: cumulative, CRLF, no [DONE]
    same(
        "cumulative",
        b"".join(event(chunk("x", usage={**USAGE, "completion_tokens": n}), "\r\n") for n in (None, 3, 5))
        + b": ping\r\n\r\n"
        + event(chunk(finish="stop", usage=USAGE), "\r\n"),
        done=False,
    ),
    same(
        "cumulative, cut",
        event(chunk("x", usage={**USAGE, "completion_tokens": 3, "total_tokens": 14})),
        output_tokens=3,
        total_tokens=14,
        finish_reason=None,
        final=False,
        complete=False,
        done=False,
    ),
    # xAI: reasoning on top, cost in ticks
    loses(
        "xai",
        HELLO
        + BYE
        + event(
            usage_only(
                {
                    "prompt_tokens": 10,
                    "completion_tokens": 5,
                    "total_tokens": 35,
                    "completion_tokens_details": {"reasoning_tokens": 20},
                    "cost_in_usd_ticks": 739000,
                }
            )
        )
        + DONE,
        event(
            usage_only(
                {
                    "prompt_tokens": 10,
                    "completion_tokens": 5,
                    "total_tokens": 35,
                    "completion_tokens_details": {"reasoning_tokens": 20},
                    "cost_in_usd_ticks": 739000,
                }
            )
        ),
        input_tokens=10,
        output_tokens=5,
        total_tokens=35,
        reasoning_tokens=20,
        additive=True,
        cost_usd="0.0000739",
    ),
    # llama.cpp: timings stay of the event
    loses(
        "llama.cpp",
        HELLO + BYE + event(usage_only(timings={"predicted_ms": 3})) + DONE,
        SAID,
    ),
    # GPUStack: a bare error line, no [DONE]
    Stream(
        "gpustack",
        HELLO + b'error: {"code":500}',
        HELLO + b'error: {"code":500}',
        {"error": "error", "complete": False},
    ),
    # Moonshot
    same(
        "moonshot",
        HELLO
        + event({**chunk(), "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]})
        + DONE,
    ),
    # vLLM's old errors, and text for an error
    Stream(
        "vllm error",
        event({"object": "error", "message": "secret"}),
        event({"object": "error", "message": "secret"}),
        {"error": "error", "complete": False},
    ),
    Stream(
        "error is text", event({"error": "secret"}), event({"error": "secret"}), {"error": "error", "complete": False}
    ),
    # Details
    loses(
        "details",
        HELLO
        + BYE
        + event(
            usage_only(
                {
                    **USAGE,
                    "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 2},
                    "completion_tokens_details": {"reasoning_tokens": 3},
                }
            )
        )
        + DONE,
        event(
            usage_only(
                {
                    **USAGE,
                    "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 2},
                    "completion_tokens_details": {"reasoning_tokens": 3},
                }
            )
        ),
        cached_tokens=5,
        cache_write_tokens=2,
        reasoning_tokens=3,
    ),
    same(
        "details are null",
        HELLO
        + event(
            chunk(
                finish="stop",
                usage={
                    **USAGE,
                    "prompt_tokens_details": None,
                    "cache_read_input_tokens": 6,
                    "cache_creation_input_tokens": 1,
                    "cost": 0.0000232,
                },
            )
        )
        + DONE,
        cached_tokens=6,
        cache_write_tokens=1,
        cost_usd="0.0000232",
    ),
    same(
        "cost is an object",
        HELLO + event(chunk(finish="stop", usage={**USAGE, "cost": {"total_cost": 0.00921}})) + DONE,
        cost_usd="0.00921",
    ),
    # The odd shapes
    loses("error is null", HELLO + BYE + event(usage_only(error=None)) + DONE, event(usage_only(error=None))),
    same("error beside usage", HELLO + BYE + event(usage_only(error={"type": "x"})) + DONE, error="x"),
    loses("no choices at all", HELLO + BYE + event({"usage": USAGE}) + DONE, event({"usage": USAGE})),
    *(
        loses(
            f"choices {odd!r}",
            HELLO + BYE + event({"choices": odd, "usage": USAGE}) + DONE,
            event({"choices": odd, "usage": USAGE}),
        )
        for odd in (None, "", {})
    ),
    loses(
        "empty usage",
        HELLO + BYE + ONLY + event({"choices": [], "usage": {}}) + DONE,
        ONLY + event({"choices": [], "usage": {}}),
    ),
    loses("usage in several lines", HELLO + BYE + MULTI_LINE + DONE, MULTI_LINE),
    loses("comments inside", HELLO + BYE + COMMENTED + DONE, COMMENTED, b": before\n: inside\n\n"),
    loses("no blank line at the end", HELLO + BYE + ONLY.rstrip(), ONLY.rstrip(), done=False),
    same("[DONE] without a line end", HELLO + event(chunk(finish="stop", usage=USAGE)) + b"data: [DONE]"),
    loses(
        "after [DONE]",
        HELLO + BYE + ONLY + DONE + event(usage_only({"prompt_tokens": 900})),
        event(usage_only({"prompt_tokens": 900})),
    )._replace(got=HELLO + BYE + DONE),
    loses("BOM", b"\xef\xbb\xbf" + HELLO + BYE + ONLY + DONE, ONLY),
    loses(
        "NaN",
        HELLO + BYE + b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":NaN}}\n\n' + DONE,
        b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":NaN}}\n\n',
        output_tokens=None,
        total_tokens=None,
    ),
    loses("invalid UTF-8", HELLO + BYE + ONLY[:-3] + b',"x":"\xff"}\n\n' + DONE, SAID),
    loses(
        "too many digits",
        HELLO + BYE + ONLY[:-3] + b',"x":' + b"9" * 5000 + b"}\n\n" + DONE,
        SAID,
    ),
    same(
        "nested too deeply",
        HELLO
        + b'data: {"x":'
        + b"[" * 100_000
        + b"]" * 100_000
        + b"}\n\n"
        + event(chunk(finish="stop", usage=USAGE))
        + DONE,
    ),
    same(
        "not objects",
        event([1])
        + event("null")
        + event('"x"')
        + event("3")
        + HELLO
        + event(chunk(finish="stop", usage=USAGE))
        + DONE,
    ),
    same("bare CR", (HELLO + event(chunk(finish="stop", usage=USAGE)) + DONE).replace(b"\n", b"\r")),
    *(
        same(
            f"usage is {odd!r}",
            HELLO + event(chunk(finish="stop", usage=USAGE)) + event({"choices": [1], "usage": odd}) + DONE,
        )
        for odd in (
            [1],
            "x",
            3,
            True,
            {"prompt_tokens": -1},
            {"prompt_tokens": True},
            {"prompt_tokens": 1.5},
            {"prompt_tokens": 2**63},
            {"prompt_tokens": "7"},
            {"completion_tokens": 1e300},
        )
    ),
    same(
        "whole floats are counts",
        HELLO
        + event(chunk(finish="stop", usage={"prompt_tokens": 11.0, "completion_tokens": 7.0, "total_tokens": 18}))
        + DONE,
    ),
    same(
        "the last duplicate counts",
        HELLO + b'data: {"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1},'
        b'"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18}}\n\n' + DONE,
    ),
    same(
        "choice 0 speaks",
        HELLO
        + event({**chunk(), "choices": [{"index": 1, "finish_reason": "length"}]})
        + event(chunk(finish="stop", usage=USAGE))
        + DONE,
    ),
    Stream("nothing", b"", b"", {"complete": False}),
]


def read(meter: Meter, chunk: bytes) -> bytes:
    """All that the client gets for a chunk, with nothing left pending."""
    out = [meter.feed(chunk)]
    while meter.pending:
        out.append(meter.resume())
    return b"".join(out)
