"""What is logged of usage whose counts contradict each other."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from arbstr_asgi.gateway.attempt import MAX_MODEL_SHOWN
from arbstr_asgi.gateway.call import MAX_PAIRS, SECONDS_BETWEEN_WARNINGS, UsageWarnings
from tests.support.asgi_client import JSON_TYPE, SSE_TYPE, Chunks, Provided, call, configured, rows, running

CONTRADICTORY = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 5, "note": "quoted prompt"}
CONSISTENT = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
LONG = "\nmodel" * 40


def answer(request: httpx.Request) -> httpx.Response:
    """A reply from a model that calls itself otherwise; its usage is consistent for the model `good` only."""
    body = json.loads(request.content)
    reply = {"model": "self-named", "usage": CONSISTENT if body["model"] == "good" else CONTRADICTORY}
    if not body.get("stream"):
        return httpx.Response(200, headers=JSON_TYPE, stream=Chunks(json.dumps({**reply, "choices": []}).encode()))
    event = b"data: " + json.dumps({**reply, "choices": []}).encode() + b"\n\n"
    return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(event, b"data: [DONE]\n\n"))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages about contradictory usage."""
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [message for message in messages if "contradictory" in message]


def test_one_warning_per_provider_and_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Calls without cost for contradictory usage are logged once per model, with no text of the provider."""
    requests: list[dict[str, Any]] = [
        {"model": "m"},
        {"model": "m", "stream": True},
        {"model": LONG},
        {"model": "good"},
    ]

    rates = {"input_rate": 1, "output_rate": 1}

    async def main() -> list[dict[str, Any]]:
        async with running("middleware", configured(tmp_path, rates), Provided(answer)) as app:
            for request in requests:
                await call(app, json.dumps({"messages": [], **request}).encode())
            return await rows(app)

    with caplog.at_level(logging.WARNING, "arbstr_asgi"):
        recorded = asyncio.run(main())
    assert sorted((row["input_tokens"], row["cost_sats"] is None) for row in recorded) == [(7, False)] + [(7, True)] * 3
    short, long = warnings(caplog)
    assert short.startswith("provider p reports contradictory usage for model 'm'")
    assert repr(LONG[:MAX_MODEL_SHOWN]) in long
    assert "\n" not in long
    assert "quoted prompt" not in caplog.text
    assert "self-named" not in caplog.text


def test_warned_again_after_an_interval(caplog: pytest.LogCaptureFixture) -> None:
    """A pair is warned of again after an interval, or once it is evicted by as many others as are remembered."""
    clock = [0.0]
    usage_warnings = UsageWarnings(lambda: clock[0])
    for clock[0] in (0.0, SECONDS_BETWEEN_WARNINGS - 1, SECONDS_BETWEEN_WARNINGS, SECONDS_BETWEEN_WARNINGS + 1):
        usage_warnings.contradictory("p", "m")
    assert len(warnings(caplog)) == 2
    for number in range(MAX_PAIRS):
        usage_warnings.contradictory("p", str(number))
    caplog.clear()
    usage_warnings.contradictory("p", str(MAX_PAIRS - 1))
    usage_warnings.contradictory("p", "m")
    assert [message.count("'m'") for message in warnings(caplog)] == [1]
