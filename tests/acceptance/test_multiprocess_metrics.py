"""Metrics of several workers: whichever is asked, a scrape says those of all."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import values

from arbstr_asgi.telemetry.multiprocess import FOLDER, WORKER_NUMBER, MultiprocessMetrics, use_worker_number
from tests.integration.telemetry.test_prometheus import Scraped, scrape
from tests.support.asgi_client import PLAIN_REQUEST, Provided, call, configured, running
from tests.support.fake_provider import provider
from tests.support.raw_http_client import Wire, ask, eventually
from tests.support.servers import spawned

CALLS = 20
SCRAPES = 8


async def scraped(url: str) -> Scraped:
    """One scrape, on a connection of its own, so that any worker may answer."""
    async with httpx.AsyncClient(trust_env=False, headers={"connection": "close"}) as client:
        reply = await client.get(f"{url}/metrics")
    assert reply.status_code == 200
    return Scraped(reply.text)


async def until_all_say(url: str, count: int) -> None:
    """Return once every scrape of several says so many calls; none says more."""
    found: list[float] = []

    async def once() -> bool:
        found[:] = [(await scraped(url)).sum("arbstr_requests_total") for _ in range(SCRAPES)]
        assert max(found) <= count
        return found == [count] * SCRAPES

    for _ in range(100):
        if await once():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(found)


async def call_often(url: str) -> None:
    """Calls, at once, so that all workers have some."""
    asked = {"model": "good", "messages": []}
    replies = await asyncio.gather(*(ask(url, asked) for _ in range(CALLS)))
    assert all(reply.status == 200 for reply in replies)


def test_two_workers(tmp_path: Path) -> None:
    """Counters are sums over the workers, exactly, also over those that were killed and replaced; their streams go."""

    async def main() -> str:
        async with provider() as upstream, spawned(tmp_path, "arbstr", upstream.url, workers=2) as server:
            await server.until_said("Running on", 2)
            await call_often(server.url)
            await until_all_say(server.url, CALLS)
            streams = [await Wire.open(server.url, {"model": "endless", "stream": True}) for _ in range(4)]
            for wire in streams:
                await wire.until(1)
            for _ in range(100):
                if (await scraped(server.url)).sum("arbstr_streams_open") == len(streams):
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError("not all streams are told")
            for pid in server.workers():
                os.kill(pid, signal.SIGKILL)
            for wire in streams:
                assert (await wire.until()).clean is False
            await server.until_said("Running on", 4)
            await call_often(server.url)
            await until_all_say(server.url, 2 * CALLS)
            found = await scraped(server.url)
            assert found.sum("arbstr_streams_open") == 0
            assert found.sum("arbstr_breaker_state", provider="p", state="closed") == 2
            assert found.sum("arbstr_tokens_total", type="input") == 2 * CALLS * 7
            assert found.sum("arbstr_request_duration_seconds_count") == 2 * CALLS
            [folder] = set(re.findall(r"arbstr-metrics-\w+", " ".join(map(str, temporary()))))
            assert await server.terminate(15.0) == 0
            return folder

    folder = asyncio.run(main())
    assert not any(folder in str(path) for path in temporary())


def temporary() -> list[Path]:
    """The folders that are there now."""
    return [*Path(os.environ["TMPDIR"]).glob("arbstr-metrics-*")]


@pytest.fixture(autouse=True)
def _tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process is a worker, in place 0; gives the folder of the metrics."""
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setenv(WORKER_NUMBER, "0")
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    use_worker_number()
    yield folder
    values._multi_process_cleanups.pop()()


def test_files_are_of_places(place: Path, tmp_path: Path) -> None:
    """A worker's files bear the name of its place, and its gauges go when it ends; what a host adds is not ours."""
    for name in ("counter_host.db", "gauge_livesum_1.db"):
        (place / name).write_bytes(b"\0" * 4096)

    async def main() -> Scraped:
        async with running("sub-app", configured(tmp_path), Provided()) as app:
            await call(app, PLAIN_REQUEST)
            return await scrape(app)

    assert asyncio.run(main()).sum("arbstr_requests_total") == 1
    kinds = {"counter", "histogram", "gauge_livesum", "gauge_livemax"}
    assert {path.name for path in place.glob("*_0.db")} == {f"{kind}_0.db" for kind in kinds}
    sharing = MultiprocessMetrics(place)
    assert sharing.environ(3)[WORKER_NUMBER] == "3"
    sharing.ended(0)
    assert {path.name for path in place.iterdir()} == {
        *("counter_0.db", "histogram_0.db", "counter_host.db", "gauge_livesum_1.db")
    }


def test_lost_ones_are_told_at_the_end(place: Path, tmp_path: Path) -> None:
    """What was lost in the last second of a worker is in its file when it has ended."""

    async def main() -> None:
        async with running("sub-app", configured(tmp_path), Provided()) as app:
            await call(app, PLAIN_REQUEST)
            app.ledger._losses.add(3, "test")
        found = Scraped(app._gateway.metrics.exposition()[0].decode())
        assert found.sum("arbstr_ledger_lost_total") == 3
        assert found.sum("arbstr_streams_open") == 0

    asyncio.run(main())


def test_unreadable(place: Path, tmp_path: Path) -> None:
    """A file that can't be read is an error in OpenAI's shape, and harms no call."""
    (place / "counter_9.db").write_bytes(b"")

    async def main() -> None:
        async with running("sub-app", configured(tmp_path), Provided()) as app:
            assert (await call(app, PLAIN_REQUEST)).status == 200
            reply = await call(app, method="GET", path="/metrics", headers={})
            assert (reply.status, reply.error["code"]) == (503, "metrics_unavailable")
            (place / "counter_9.db").unlink()
            assert (await scrape(app)).sum("arbstr_requests_total") == 1

    asyncio.run(main())


def test_gauges_are_kept_up(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that nobody asks keeps its gauges up to date for those who are asked."""
    monkeypatch.setattr("arbstr_asgi.gateway.gateway.SECONDS_BETWEEN_GAUGES", 0.01)

    async def main() -> None:
        async with running("sub-app", configured(tmp_path), Provided()) as app:
            said: list[Any] = []
            monkeypatch.setattr(app._gateway.metrics, "state", lambda *facts: said.append(facts))
            await eventually(lambda: len(said) > 2)

    asyncio.run(main())


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus-client workers share nothing."""
    from arbstr_asgi.telemetry import multiprocess

    monkeypatch.setattr(multiprocess, "is_installed", lambda package: False)
    monkeypatch.setenv(WORKER_NUMBER, "0")
    before = values.ValueClass
    use_worker_number()
    assert values.ValueClass is before
    with multiprocess.multiprocess_metrics() as shared:
        assert shared.environ(7)[WORKER_NUMBER] == "0"
        shared.ended(0)
        assert temporary() == []
