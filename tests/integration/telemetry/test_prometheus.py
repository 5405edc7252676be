"""What Prometheus is told: true, bounded, in a registry of its own, and at nobody's expense."""

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import msgspec
import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from arbstr_asgi import ArbstrError, Config, DatabaseConfig, Policies, Provider, Rule, Server, Token
from arbstr_asgi.database.records import AttemptEntry, LedgerEntry
from arbstr_asgi.telemetry.prometheus import Metrics, outcome_of
from tests.support.asgi_client import (
    EVENTS,
    JSON_TYPE,
    PLAIN_REQUEST,
    SSE_TYPE,
    STREAM_REQUEST,
    Call,
    Chunks,
    Provided,
    built,
    call,
    configured,
    good,
    rows,
    running,
)
from tests.support.raw_http_client import eventually

RATES: dict[str, Any] = {"models": ("m",), "input_rate": 10_000, "output_rate": 30_000, "base_fee": 1}
NOW = datetime.now(UTC)
FAMILIES = {
    "arbstr_attempts",
    "arbstr_breaker_state",
    "arbstr_cost_sats",
    "arbstr_drains",
    "arbstr_ledger_degraded",
    "arbstr_ledger_late",
    "arbstr_ledger_lost",
    "arbstr_ledger_oldest_unwritten_seconds",
    "arbstr_ledger_queue_entries",
    "arbstr_ledger_spill_bytes",
    "arbstr_ledger_spilled_rows",
    "arbstr_refused",
    "arbstr_request_duration_seconds",
    "arbstr_requests",
    "arbstr_streams_open",
    "arbstr_time_to_first_byte_seconds",
    "arbstr_tokens",
}


class Scraped:
    """What a scrape says."""

    def __init__(self, text: str) -> None:
        self.text = text
        families = [*text_string_to_metric_families(text)]
        self.families = {family.name for family in families}
        self.samples = [sample for family in families for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def values(self, label: str) -> set[str]:
        """All values of a label."""
        return {sample.labels[label] for sample in self.samples if label in sample.labels}


async def scrape(app: Any, headers: Mapping[str, str] | None = None) -> Scraped:
    """Ask as Prometheus does."""
    reply = await call(app, method="GET", path="/metrics", headers=headers or {})
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return Scraped(reply.body.decode())


def entry(**facts: Any) -> LedgerEntry:
    """A finished call."""
    defaults: dict[str, Any] = {"provider": "p", "end_reason": "completed", "revision": 1, "latency_ms": 20}
    return LedgerEntry(correlation_id="c", timestamp=NOW, **{"model": "m", "streaming": True, **defaults, **facts})


def attempt(**facts: Any) -> AttemptEntry:
    """An attempt that has ended."""
    return AttemptEntry(number=1, provider="p", timestamp=NOW, model="m", revision=1, **facts)


def test_calls(tmp_path: Path) -> None:
    """Calls, their tokens, sats, times and attempts are those of the rows."""

    async def main() -> tuple[Scraped, list[dict[str, Any]]]:
        async with running("sub-app", configured(tmp_path, RATES), Provided()) as app:
            for body in (PLAIN_REQUEST, STREAM_REQUEST, STREAM_REQUEST):
                await call(app, body)
            return await scrape(app), await rows(app)

    found, written = asyncio.run(main())
    of_all = {"provider": "p", "model": "m", "policy": "none", "end_reason": "completed", "status": "2xx"}
    assert found.sum("arbstr_requests_total", **of_all, usage_source="provider") == 3
    assert found.sum("arbstr_requests_total", streaming="true") == 2
    for kind in ("input", "output"):
        tokens = sum(row[f"{kind}_tokens"] for row in written)
        assert found.sum("arbstr_tokens_total", provider="p", model="m", usage_source="provider", type=kind) == tokens
    assert found.sum("arbstr_cost_sats_total") == pytest.approx(float(sum(row["cost_sats"] for row in written)))
    assert found.sum("arbstr_request_duration_seconds_count", streaming="true") == 2
    assert found.sum("arbstr_time_to_first_byte_seconds_count", streaming="false") == 1
    assert found.sum("arbstr_attempts_total", provider="p", outcome="ok") == 3
    assert not any(sample.name.endswith("_created") for sample in found.samples)


def test_every_metric(tmp_path: Path) -> None:
    """All metrics are there, and no other, after one call; each says what it is."""

    async def main() -> Scraped:
        async with running("sub-app", configured(tmp_path, RATES), Provided()) as app:
            await call(app, PLAIN_REQUEST)
            return await scrape(app)

    found = asyncio.run(main())
    assert found.families == FAMILIES
    assert found.text.count("# HELP ") == len(FAMILIES)


def test_unknown_is_not_zero(tmp_path: Path) -> None:
    """Of a call without usage no tokens and no sats are told."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(*EVENTS[:2], EVENTS[3]))

    async def main() -> Scraped:
        async with running("sub-app", configured(tmp_path, RATES), Provided(answer)) as app:
            await call(app, STREAM_REQUEST)
            return await scrape(app)

    found = asyncio.run(main())
    assert found.sum("arbstr_requests_total", usage_source="none") == 1
    assert not any(s.name in ("arbstr_tokens_total", "arbstr_cost_sats_total") for s in found.samples)


HOSTILE = ["", "x" * 255, 'a"b', "a\nb", "a\\", "\0", "é", "m\ud83d", "other ", "M", "{}", "__name__"]


def test_hostile_models(tmp_path: Path) -> None:
    """Whatever clients call their models, one label value stands for all that is not configured."""
    provider: dict[str, Any] = {"models": (), "aliases": {"small": "x"}, "model_rates": {"rated": {}}}

    async def main() -> Scraped:
        async with running("sub-app", configured(tmp_path, provider), Provided()) as app:
            for name in [*HOSTILE, "small", "rated"]:
                assert (await call(app, json.dumps({"model": name}).encode())).status == 200
            return await scrape(app)

    found = asyncio.run(main())
    assert found.values("model") == {"other", "small", "rated"}
    assert found.sum("arbstr_requests_total", model="other") == len(HOSTILE)


def test_made_up_models() -> None:
    """The registry, and what is kept beside it, do not grow with the names that clients make up."""
    config = Config(providers=[Provider(name="p", url="http://h", models=("m",))])
    metrics = Metrics(config)
    one = entry(input_tokens=1, output_tokens=2, cost_sats=Decimal(1), tries=(attempt(status=200),))
    metrics.on_finish(msgspec.structs.replace(one, model="first"), 0.1)
    size = len(metrics.exposition()[0].splitlines()), len(metrics._calls), len(metrics._children)
    for number in range(50_000):
        for name in (f"gpt-{number}", f"{number}" * 20):
            named = msgspec.structs.replace(one, model=name, end_user=name, response_model=name, error_message=name)
            metrics.on_finish(named, 0.1)
    assert (len(metrics.exposition()[0].splitlines()), len(metrics._calls), len(metrics._children)) == size


def test_status_and_outcomes(tmp_path: Path) -> None:
    """What a client got and what became of each attempt is told by its class."""
    answers = {
        "bad": httpx.Response(418, headers=JSON_TYPE, content=b"{}"),
        "down": httpx.ConnectError("no"),
        "broken": httpx.Response(200, headers=SSE_TYPE, stream=Chunks(EVENTS[0], httpx.ReadError("cut"))),
    }

    def answer(request: httpx.Request) -> httpx.Response:
        found = answers[json.loads(request.content)["model"]]
        if isinstance(found, Exception):
            raise found
        return found

    async def main() -> Scraped:
        async with running("sub-app", configured(tmp_path, {"models": tuple(answers)}), Provided(answer)) as app:
            for name in answers:
                await call(app, json.dumps({"model": name, "stream": True}).encode())
            await call(app, b'{"model":"unknown"}')
            return await scrape(app)

    found = asyncio.run(main())
    told = {(s.labels["model"], s.labels["status"]) for s in found.samples if s.name == "arbstr_requests_total"}
    assert told == {("bad", "4xx"), ("down", "5xx"), ("broken", "2xx"), ("other", "4xx")}
    assert found.sum("arbstr_requests_total", provider="none", end_reason="completed") == 1
    outcomes = {s.labels["outcome"]: s.value for s in found.samples if s.name == "arbstr_attempts_total"}
    assert outcomes == {"4xx": 1, "no_answer": 1, "broken": 1}


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "ok"), (302, "3xx"), (999, "other"), (0, "other"), (None, "no_answer")]
)
def test_outcome(status: int | None, outcome: str) -> None:
    """A status that is none makes no label of its own."""
    assert outcome_of(attempt(status=status)) == outcome


def test_refused(tmp_path: Path) -> None:
    """Requests that never became calls are counted by why they were refused."""

    def identify(scope: Any) -> str:
        number = dict(scope["headers"]).get(b"x-status", b"")
        if number:
            raise ArbstrError(int(number), "no")
        return "alice"

    async def main() -> Scraped:
        async with running("sub-app", configured(tmp_path), Provided(), identify=identify) as app:
            await call(app, b"not json")
            await call(app, PLAIN_REQUEST, headers={"content-type": "text/plain"})
            for status in (401, 403, 418, 499):
                await call(app, PLAIN_REQUEST, headers={**JSON_TYPE, "x-status": str(status)})
            assert await rows(app) == []
            return await scrape(app)

    found = asyncio.run(main())
    reasons = {s.labels["reason"]: s.value for s in found.samples if s.name == "arbstr_refused_total"}
    assert reasons == {"malformed": 1, "unsupported": 1, "unauthorised": 1, "forbidden": 1, "other": 2}
    assert found.sum("arbstr_requests_total") == 0


def test_policy(tmp_path: Path) -> None:
    """The policy that applied is told; one that a client makes up is none."""
    policies = Policies(rules=(Rule(name="mine"),))

    async def main() -> Scraped:
        async with running("sub-app", configured(tmp_path, policies=policies), Provided()) as app:
            for name in ("mine", "made-up"):
                await call(app, PLAIN_REQUEST, headers={**JSON_TYPE, "x-arbstr-policy": name})
            return await scrape(app)

    assert asyncio.run(main()).values("policy") == {"mine", "none"}


def test_how_things_stand(tmp_path: Path) -> None:
    """Streams, drains, breakers and the ledger are told as they are at the scrape."""
    never = asyncio.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        if b'"down"' in request.content:
            raise httpx.ConnectError("no")
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(EVENTS[0], never, EVENTS[3]))

    async def main() -> None:
        async with running("sub-app", configured(tmp_path), Provided(answer)) as app:
            for _ in range(3):
                await call(app, b'{"model":"down"}')
            calls = [Call(app, STREAM_REQUEST) for _ in range(3)]
            tasks = [asyncio.create_task(one.run()) for one in calls]
            for one in calls:
                await one.begun.wait()
            calls[0].gone.set()
            await eventually(lambda: app.snapshot()["drains"] == 1)
            app.ledger._losses.degrade("x", "test")
            app.ledger._losses.add_late()
            found = await scrape(app)
            assert (found.sum("arbstr_streams_open"), found.sum("arbstr_drains", provider="p")) == (3, 1)
            states = {s.labels["state"]: s.value for s in found.samples if s.name == "arbstr_breaker_state"}
            assert sum(states.values()) == 1
            for _ in range(2):  # a counter counts once, however often it is asked
                found = await scrape(app)
                told = [found.sum(f"arbstr_ledger_{name}_total") for name in ("degraded", "late", "lost")]
                assert told == [1, 1, 0]
            never.set()
            await asyncio.gather(*tasks)
            await app.ledger.flush()
            found = await scrape(app)
            assert (found.sum("arbstr_streams_open"), found.sum("arbstr_drains")) == (0, 0)
            assert found.sum("arbstr_ledger_queue_entries") == found.sum("arbstr_ledger_spill_bytes") == 0

    asyncio.run(main())


def test_breaker_states(tmp_path: Path) -> None:
    """A breaker that has opened is told as open, and as nothing else."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500, headers=JSON_TYPE, content=b"{}")

    async def main() -> Scraped:
        async with running("sub-app", configured(tmp_path), Provided(answer)) as app:
            for _ in range(3):
                await call(app, PLAIN_REQUEST)
            return await scrape(app)

    found = asyncio.run(main())
    states = {s.labels["state"]: s.value for s in found.samples if s.name == "arbstr_breaker_state"}
    assert states == {"closed": 0, "open": 1, "half_open": 0}


def test_once_in_strict(tmp_path: Path) -> None:
    """A call whose row is committed before its end is counted once, also where it then ends otherwise."""
    database = DatabaseConfig(path=str(tmp_path / "ledger.db"), durability="strict")

    async def main() -> tuple[Scraped, list[dict[str, Any]]]:
        async with running("sub-app", configured(tmp_path, database=database), Provided()) as app:
            await call(app, STREAM_REQUEST)
            failing = Call(app, STREAM_REQUEST)
            send = failing.send

            async def gone(message: Any) -> None:
                if b"[DONE]" in message.get("body", b""):
                    raise OSError
                await send(message)

            failing.send = gone  # type: ignore[method-assign]
            await failing.run()
            return await scrape(app), await rows(app)

    found, written = asyncio.run(main())
    assert [row["end_reason"] for row in written] == ["completed", "client_disconnected"]
    assert found.sum("arbstr_requests_total") == 2
    assert found.sum("arbstr_requests_total", end_reason="client_disconnected") == 1


def test_guard(tmp_path: Path) -> None:
    """Metrics are for those who may call."""
    server = Server(tokens=(Token(name="prometheus", token="secret-token"),))

    async def main() -> None:
        async with running("sub-app", configured(tmp_path, server=server), Provided()) as app:
            refused = await call(app, method="GET", path="/metrics", headers={})
            assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
            found = await scrape(app, {"authorization": "Bearer secret-token"})
            assert "secret-token" not in found.text

    asyncio.run(main())


def test_own_registry(tmp_path: Path) -> None:
    """Nothing of ours is in the host's own registry, nothing of the host's in ours, and two gateways don't meet."""
    before = prometheus_client.generate_latest()
    assert b"arbstr" not in before
    (tmp_path / "other").mkdir()

    async def main() -> None:
        async with (
            running("sub-app", configured(tmp_path), Provided()) as one,
            running("sub-app", configured(tmp_path / "other"), Provided()) as other,
        ):
            await call(one, PLAIN_REQUEST)
            assert (await scrape(one)).sum("arbstr_requests_total") == 1
            found = await scrape(other)
            assert found.sum("arbstr_requests_total") == 0
            assert all(name.startswith("arbstr_") for name in found.families)

    asyncio.run(main())
    assert b"arbstr" not in prometheus_client.generate_latest()


def test_middleware_has_none(tmp_path: Path) -> None:
    """Where nobody can ask for metrics, none are kept."""

    async def main() -> None:
        async with running("middleware", configured(tmp_path), Provided()) as app:
            await call(app, PLAIN_REQUEST)
            assert app._gateway.metrics is None
            assert not app._gateway._deps.observers

    asyncio.run(main())


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus-client calls are served, and who asks for metrics is told what to install."""
    for name in [name for name in sys.modules if name.split(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "arbstr_asgi.telemetry.prometheus", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    async def main() -> None:
        async with running("sub-app", configured(tmp_path), Provided()) as app:
            assert (await call(app, PLAIN_REQUEST)).status == 200
            refused = await call(app, method="GET", path="/metrics", headers={})
            assert (refused.status, refused.error["code"]) == (501, "metrics_not_installed")
            assert 'pip install "arbstr-asgi[metrics]"' in refused.error["message"]

    asyncio.run(main())


def test_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Metrics that fail harm no call; it is said once, without the error's text."""

    def failing(*arguments: Any) -> None:
        raise RuntimeError("canary")

    async def main() -> None:
        app = built("sub-app", configured(tmp_path), good)
        async with app.lifespan():
            for name in ("_finished", "_child"):
                monkeypatch.setattr(app._gateway.metrics, name, failing)
            assert (await call(app, PLAIN_REQUEST)).status == 200
            assert (await call(app, b"[]")).status == 400
            app._gateway.metrics.estimated(entry(input_tokens=1))
            assert [row["end_reason"] for row in await rows(app)] == ["completed"]
        monkeypatch.undo()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == ["metrics failed with RuntimeError"]
