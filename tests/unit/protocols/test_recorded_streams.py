"""Recorded and adversarial responses, where available: summarised correctly at any chunk boundaries."""

import json
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi.protocols.meters import open_meter
from arbstr_asgi.protocols.reply import ReplySummary
from tests.support.sample_replies import read as drained

SHARED = Path(__file__).resolve().parents[4] / "shared"
CASES = sorted(path.parent for kind in ("corpus", "adversarial") for path in (SHARED / kind).glob("*/expected.json"))
EVERY_BYTE_BELOW = 4000
SEED = 20_261_123

pytestmark = pytest.mark.skipif(not CASES, reason="the recordings are not at ../shared: hand-made fixtures stand in")


def read(body: bytes, meta: dict[str, Any], cuts: Sequence[int], *, strip: bool) -> tuple[bytes, ReplySummary]:
    """What the client gets of a reply that arrives in these pieces, and what was learned of it."""
    headers = {name.lower(): value for name, value in (meta.get("headers") or {}).items()}
    well = 200 <= meta["http_status"] < 300
    meter = open_meter(
        content_type=meta["content_type"],
        content_encoding=headers.get("content-encoding"),
        strip=strip and well,
    )
    edges = [0, *cuts, len(body)]
    pieces = [drained(meter, body[start:end]) for start, end in pairwise(edges)]
    return b"".join([*pieces, meter.finish()]), meter.summary


def facts(summary: ReplySummary, status: int) -> dict[str, Any]:
    """A summary with the keys of the expectations."""
    usage = summary.usage
    return {
        "prompt_tokens": usage and usage.input_tokens,
        "completion_tokens": usage and usage.output_tokens,
        "total_tokens": usage and usage.total_tokens,
        "cached_tokens": usage and usage.cached_tokens,
        "reasoning_tokens": usage and usage.reasoning_tokens,
        "finish_reason": summary.finish_reason,
        "done_received": summary.seen_done,
        "has_error": summary.error is not None or status >= 400,
        "n_data_events": summary.events,
    }


def cuts_of(body: bytes) -> Iterator[list[int]]:
    """Ways to cut a body: at random places, and small ones at every byte."""
    chance = random.Random(SEED)
    for pieces in (1, 2, 5, 20, 50):
        for _ in range(3):
            yield sorted(chance.sample(range(len(body) + 1), min(pieces, len(body))))
    if len(body) < EVERY_BYTE_BELOW:
        yield list(range(1, len(body)))


def load(case: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """A recording: its bytes, its source, and the expected summary."""
    meta, expected = (json.loads((case / f"{name}.json").read_text("utf-8")) for name in ("meta", "expected"))
    if meta["streaming"] is None:
        meta["streaming"] = expected.get("kind") == "sse"
    return (case / "response.bin").read_bytes(), meta, expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reading(case: Path) -> None:
    """Tokens, finish reason, [DONE], error and events are what the recording says."""
    body, meta, expected = load(case)
    found = facts(read(body, meta, [], strip=True)[1], meta["http_status"])
    acceptable = [expected] + [
        {**expected, **other} for other in expected.get("also_acceptable", []) if isinstance(other, dict)
    ]
    assert any(all(found[name] == right.get(name) for name in found) for right in acceptable), (found, expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cuts(case: Path) -> None:
    """Neither the client's bytes nor the summary depend on chunk boundaries."""
    body, meta, _ = load(case)
    stripped, summary = read(body, meta, [], strip=True)
    right = facts(summary, meta["http_status"])
    for cuts in cuts_of(body):
        for strip, want in ((True, stripped), (False, body)):
            out, summary = read(body, meta, cuts, strip=strip)
            assert out == want, f"seed {SEED}, cuts {cuts[:20]}"
            assert facts(summary, meta["http_status"]) == right, f"seed {SEED}, cuts {cuts[:20]}"
