"""Our pieces alone, without a server."""

import json
import time
from collections.abc import Callable

from arbstr_asgi.protocols.chat import ensure_stream_options, parse
from arbstr_asgi.protocols.meters import open_meter
from harness.provider import USUAL


def parts(repeat: int) -> dict[str, float]:
    """CPU µs of our pieces alone: the best of seven rounds, in turns."""
    obfuscated = USUAL.replace(b'"usage":null', b'"usage":null,"obfuscation":"CVQ55DocFW"')
    without = USUAL.replace(b',"usage":null', b"")
    found: dict[str, Callable[[], object]] = {}
    for name, chunk in (
        ("usage: null last", USUAL),
        ("with obfuscation", obfuscated),
        ("no usage member", without),
        ("3 events in a chunk", USUAL * 3),
    ):
        for strip in (True, False):
            meter = open_meter(content_type="text/event-stream", content_encoding=None, strip=strip)
            meter.feed(USUAL)
            found[f"feed, {name}, {'stripped' if strip else 'only read'}"] = lambda m=meter, c=chunk: m.feed(c)
    for name, size in (("1 KB", 1_000), ("160 KB", 160_000)):
        words = [{"role": "user", "content": "some words of a prompt " * 100}] * (size // 2_300)
        rest = {"role": "user", "content": "x" * (size % 2_300)}
        body = json.dumps({"model": "gpt-4o", "stream": True, "messages": [*words, rest]}).encode()
        found[f"parse and inject, {name}"] = lambda b=body: ensure_stream_options(parse(b))
    best = dict.fromkeys(found, float("inf"))
    for _ in range(7):
        for name, call in found.items():
            began = time.process_time()
            for _ in range(repeat):
                call()
            best[name] = min(best[name], (time.process_time() - began) / repeat * 1e6)
    return best
