"""What the sub-app tells of its ledger: true figures, whole files, and nothing to whoever may not ask."""

import asyncio
import csv
import io
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from msgspec.structs import replace

from arbstr_asgi import Arbstr, DatabaseConfig, Server, Token
from arbstr_asgi.cli.server import serving
from arbstr_asgi.database.records import AttemptEntry, LedgerEntry
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.stats.query import RequestsQuery
from tests.support.asgi_client import PLAIN_REQUEST, Call, Provided, call, configured, running
from tests.support.databases import an_entry, run_sql
from tests.support.raw_http_client import Wire, eventually

STATS, REQUESTS = "/v1/stats", "/v1/requests"
HOUR = datetime(2026, 11, 22, 10, tzinfo=UTC)
WHOLE = [("since", "2026-11-01T00:00:00Z"), ("until", "2026-12-01T00:00:00Z")]
Pairs = Sequence[tuple[str, str]]
Main = Callable[[Any], Coroutine[Any, Any, None]]


async def ask(app: Any, path: str, *pairs: tuple[str, str], **options: Any) -> Call:
    """One GET with these parameters."""
    scope = {"query_string": urlencode(pairs).encode(), "path": path, **options.pop("scope", {})}
    return await call(app, path=path, method="GET", scope=scope, **options)


async def get_json(app: Any, path: str, *pairs: tuple[str, str]) -> Any:
    """The JSON of a good answer, its numbers exact."""
    reply = await ask(app, path, *pairs)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json"), reply.body
    return json.loads(reply.body, parse_float=Decimal)


def served(folder: Path, main: Main, **facts: Any) -> None:
    """Run `main` with the sub-app."""

    async def run() -> None:
        async with running("sub-app", configured(folder, {"models": ("m", "idle")}, **facts), Provided()) as app:
            await main(app)

    asyncio.run(run())


def entries() -> list[LedgerEntry]:
    """Calls of two hours and two days: good ones, a failed one, one in flight."""
    good = {"model": "m", "provider": "p", "success": True, "end_reason": "completed", "usage_source": "provider"}
    good |= {"revision": 1, "attempts": 1, "policy": "cheap", "tenant": "acme", "latency_ms": 40, "ttft_ms": 45}
    tokens = {"input_tokens": 7, "output_tokens": 17}
    try_1 = AttemptEntry(number=1, provider="q", timestamp=HOUR, model="m", status=503, maybe_billed=True)
    try_2 = AttemptEntry(number=2, provider="p", timestamp=HOUR, model="m", status=200, cost_sats=Decimal("1.58"))
    return [
        an_entry("c-1", timestamp=HOUR, end_user="alice", cost_sats=Decimal("1.58"), **tokens, **good),
        an_entry(
            "c-2",
            timestamp=HOUR + timedelta(minutes=59, seconds=59, milliseconds=999),
            end_user="bob",
            cost_sats=Decimal("0.000000001"),
            **{**good, **tokens, "attempts": 2, "latency_ms": 20, "tries": (try_1, try_2)},
        ),
        an_entry("c-3", timestamp=HOUR + timedelta(hours=1), end_user="=alice", **{**good, "usage_source": "none"}),
        an_entry(
            "c-4",
            timestamp=HOUR + timedelta(days=1),
            end_user="alice",
            model="gone",
            error_status=502,
            error_message="upstream_error",
            end_reason="upstream_error",
            revision=1,
        ),
        an_entry("c-5", timestamp=HOUR + timedelta(days=1), end_user="alice", model="m", streaming=False),
    ]


async def fill(app: Any) -> None:
    """Write them."""
    for entry in entries():
        app.ledger.record(replace(entry, worker_id=app.ledger.worker_id))
    await app.ledger.flush()


def test_stats(database_url: str, tmp_path: Path) -> None:
    """The figures are the sums of the rows, on each database."""

    async def main(app: Any) -> None:
        await fill(app)
        found = await get_json(app, STATS, *WHOLE)
        assert found["counts"] == {"total": 5, "success": 3, "error": 1, "streaming": 4, "in_flight": 1}
        assert found["costs"] == {
            "total_cost_sats": Decimal("1.580000001"),
            "total_input_tokens": 14,
            "total_output_tokens": 34,
        }
        assert (found["unpriced"], found["savings_sats"]) == (3, 0)
        assert found["tokens"]["provider"] == {"input": 14, "output": 34}
        assert found["latency_ms"] == {"p50": 40, "p95": 40, "p99": 40}
        assert found["performance"]["avg_latency_ms"] == pytest.approx(Decimal(100) / 3)
        by_model = (await get_json(app, STATS, *WHOLE, ("group_by", "model")))["models"]
        assert {name: each["counts"]["total"] for name, each in by_model.items()} == {"m": 4, "gone": 1, "idle": 0}
        only = (await get_json(app, STATS, *WHOLE, ("group_by", "model"), ("model", "gone")))["models"]
        assert [*only] == ["gone"]
        found = await get_json(app, STATS, *WHOLE, ("group_by", "day,end_user"), ("tz", "Pacific/Auckland"))
        assert [(each["day"], each["end_user"], each["counts"]["total"]) for each in found["groups"]] == [
            ("2026-11-22", "alice", 1),
            ("2026-11-22", "bob", 1),
            ("2026-11-23", "alice", 2),
            ("2026-11-23", "=alice", 1),
        ]
        hours = await get_json(app, STATS, *WHOLE, ("group_by", "hour"), ("limit", "2"))
        assert [each["hour"] for each in hours["groups"]] == ["2026-11-22T10:00:00+00:00", "2026-11-22T11:00:00+00:00"]
        assert hours["truncated"] is True
        tenants = await get_json(app, STATS, *WHOLE, ("group_by", "tenant,provider"))
        assert [(each["tenant"], each["provider"]) for each in tenants["groups"]] == [("acme", "p"), (None, None)]
        empty = await get_json(app, STATS, ("until", "2020-01-01T00:00:00Z"))
        assert (empty["empty"], empty["counts"]["total"]) == (True, 0)

    served(tmp_path, main, database=DatabaseConfig(url=database_url))


FILTERS = [
    ("correlation_id", "c-2", ["c-2"]),
    ("end_user", "alice", ["c-5", "c-4", "c-1"]),
    ("end_user", "ALICE", []),
    ("tenant", "acme", ["c-3", "c-2", "c-1"]),
    ("provider", "p", ["c-3", "c-2", "c-1"]),
    ("policy", "cheap", ["c-3", "c-2", "c-1"]),
    ("policy", "cheap ", []),
    ("model", "gone", ["c-4"]),
    ("end_reason", "in_flight", ["c-5"]),
    ("status", "502", ["c-4"]),
    ("status", "200", ["c-3", "c-2", "c-1"]),
    ("success", "true", ["c-3", "c-2", "c-1"]),
    ("streaming", "false", ["c-5"]),
]


def test_requests(database_url: str, tmp_path: Path) -> None:
    """Pages, cursors, sorts and filters find what they say, on each database."""

    async def main(app: Any) -> None:
        await fill(app)
        for name, value, expected in FILTERS:
            page = await get_json(app, REQUESTS, *WHOLE, (name, value))
            assert [row["correlation_id"] for row in page["data"]] == expected, (name, value)
            assert page["total"] in (len(expected), None)
            figures = await get_json(app, STATS, *WHOLE, (name, value))
            assert figures["counts"]["total"] == len(expected), (name, value)
        for sort, order in (("timestamp", "asc"), ("cost_sats", "desc"), ("latency_ms", "ASC")):
            await pages_agree(app, [*WHOLE, ("sort", sort), ("order", order)])
        past = await get_json(app, REQUESTS, *WHOLE, ("page", "9"))
        assert (past["data"], past["page"], past["next_cursor"]) == ([], 9, None)
        one = (await get_json(app, REQUESTS, *WHOLE, ("correlation_id", "c-1")))["data"][0]
        assert one["cost"] == {"sats": Decimal("1.58")}
        assert one["timestamp"] == "2026-11-22T10:00:00.000Z"

    served(tmp_path, main, database=DatabaseConfig(url=database_url))


async def pages_agree(app: Any, asked: Pairs) -> None:
    """By pages, by cursors and in one piece, the same rows come in the same order."""
    whole = [row["id"] for row in (await get_json(app, REQUESTS, *asked))["data"]]
    assert len(whole) == 5
    by_pages, by_cursors, cursor = [], [], None
    for number in ("1", "2", "3"):
        by_pages += (await get_json(app, REQUESTS, *asked, ("per_page", "2"), ("page", number)))["data"]
    while cursor != []:
        page = await get_json(app, REQUESTS, *asked, ("per_page", "2"), *(cursor or []))
        by_cursors += page["data"]
        cursor = [("cursor", page["next_cursor"])] if page["next_cursor"] else []
    assert [row["id"] for row in by_pages] == [row["id"] for row in by_cursors] == whole


def test_detail(database_url: str, tmp_path: Path) -> None:
    """One request is told with all its columns and its attempts, and only to who knows its id."""

    async def main(app: Any) -> None:
        await fill(app)
        found = await get_json(app, f"{REQUESTS}/c-2")
        assert {name: found[name] for name in ("correlation_id", "attempts", "cost_sats", "tags", "revision")} == {
            "correlation_id": "c-2",
            "attempts": 2,
            "cost_sats": Decimal("1E-9"),
            "tags": None,
            "revision": 1,
        }
        assert [(each["number"], each["provider"], each["status"]) for each in found["tries"]] == [
            (1, "q", 503),
            (2, "p", 200),
        ]
        for odd in ("", "c", "C-2", "c-2 ", "c-2\0", "é", "x" * 5000, "c-2/..", "' OR 1=1 --", "c-%", "\x1b[31m"):
            reply = await ask(app, f"{REQUESTS}/{odd}")
            assert (reply.status, reply.error["code"], reply.error["param"]) == (
                404,
                "request_not_found",
                "correlation_id",
            )
        assert (await ask(app, f"{REQUESTS}/c-2", ("x", "1"))).status == 400

    served(tmp_path, main, database=DatabaseConfig(url=database_url))


def test_export(database_url: str, tmp_path: Path) -> None:
    """A file has all rows that fit, whatever their number, in the order that was asked for, exact and defused."""

    async def main(app: Any) -> None:
        await fill(app)
        reply = await ask(app, REQUESTS, *WHOLE, ("format", "csv"), ("order", "asc"))
        assert (reply.status, reply.headers["content-type"]) == (200, "text/csv; charset=utf-8")
        assert reply.headers["content-disposition"] == 'attachment; filename="requests.csv"'
        assert reply.ended
        rows = [*csv.DictReader(io.StringIO(reply.body.decode(), newline=""))]
        assert [row["correlation_id"] for row in rows] == ["c-1", "c-2", "c-3", "c-4", "c-5"]
        assert (rows[1]["cost_sats"], rows[2]["end_user"], rows[4]["cost_sats"]) == ("0.000000001", "'=alice", "")
        reply = await ask(app, REQUESTS, *WHOLE, ("format", "jsonl"), ("end_user", "alice"))
        assert reply.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line, parse_float=Decimal) for line in reply.body.splitlines()]
        assert [line["correlation_id"] for line in lines] == ["c-5", "c-4", "c-1"]
        assert lines[2]["cost_sats"] == Decimal("1.58")
        assert [*lines[0]] == [*rows[0]]
        none = await ask(app, REQUESTS, *WHOLE, ("format", "jsonl"), ("end_user", "nobody"))
        assert (none.status, none.body, none.ended) == (200, b"", True)
        head = await call(app, path=REQUESTS, method="HEAD", scope={"query_string": b"format=csv"})
        assert (head.status, head.body, head.ended) == (200, b"", True)

    served(tmp_path, main, database=DatabaseConfig(url=database_url))


def test_many_rows(tmp_path: Path) -> None:
    """More rows than any page has are exported, each once, and pages end where the answer says so."""

    async def main(app: Any) -> None:
        for number in range(2500):
            app.ledger.record(an_entry(timestamp=HOUR, end_user=f"u-{number}"))
        await app.ledger.flush()
        reply = await ask(app, REQUESTS, *WHOLE, ("format", "jsonl"))
        users = [json.loads(line)["end_user"] for line in reply.body.splitlines()]
        assert sorted(users, key=lambda name: int(name[2:])) == [f"u-{number}" for number in range(2500)]
        assert len(reply.messages) > 20
        deep = await ask(app, REQUESTS, ("page", "101"), ("per_page", "100"))
        assert (deep.status, deep.error["param"]) == (400, "page")

    served(tmp_path, main)


def test_the_current_second(tmp_path: Path) -> None:
    """A call that has just been made is in the figures and on the page."""

    async def main(app: Any) -> None:
        assert (await call(app, PLAIN_REQUEST)).status == 200
        await app.ledger.flush()
        assert (await get_json(app, STATS, ("range", "last_1h")))["counts"]["total"] == 1
        assert len((await get_json(app, REQUESTS))["data"]) == 1

    served(tmp_path, main)


def test_unknown_names(database_url: str, tmp_path: Path) -> None:
    """A model or provider is known if it is configured or has a row; others are a 404."""

    async def main(app: Any) -> None:
        await fill(app)
        for name, known, unknown in (("model", ("m", "idle", "gone"), "other"), ("provider", ("p",), "P")):
            for path in (STATS, REQUESTS):
                for value in known:
                    assert (await ask(app, path, (name, value))).status == 200
                reply = await ask(app, path, (name, unknown))
                assert (reply.status, reply.error["code"], reply.error["param"]) == (404, f"{name}_not_found", name)
            assert (await ask(app, REQUESTS, (name, unknown), ("format", "csv"))).status == 404

    served(tmp_path, main, database=DatabaseConfig(url=database_url))


HOSTILE = [
    "' OR '1'='1",
    "'; DROP TABLE requests; --",
    "\\",
    "%",
    "\0",
    "9" * 400,
    "-1",
    "[]",
    "\x1b[31m",
    "\u202e",
    "",
]
OF_BOTH = ["range", "since", "until", "model", "provider", "end_user", "tenant", "policy", "correlation_id"]
OF_BOTH += ["end_reason", "status", "success", "streaming"]
PARAMETERS = [(STATS, name) for name in (*OF_BOTH, "group_by", "tz", "limit", "x")]
PARAMETERS += [(REQUESTS, name) for name in (*OF_BOTH, "sort", "order", "page", "per_page", "cursor", "format", "x")]


def test_hostile_input(database_url: str, tmp_path: Path) -> None:
    """Whatever a parameter holds, the answer is a 200, 400 or 404 without SQL in it, and the rows are all there."""

    async def main(app: Any) -> None:
        await fill(app)
        for path, name in PARAMETERS:
            for value in HOSTILE:
                reply = await ask(app, path, *(pair for pair in WHOLE if pair[0] != name), (name, value))
                assert reply.status in (200, 400, 404), (path, name, value, reply.body)
                if reply.status == 200:
                    found = json.loads(reply.body)
                    assert not found.get("data")
                    assert found.get("counts", {"total": 0})["total"] == 0
                else:
                    assert not re.search(r"SELECT|WHERE|sqlite|asyncpg|mysql", reply.body.decode())
        for raw in (b"model=%ff%fe", b"%00=1", b"\xff\xfe=1", b"&&&", b"model", b"a" * 10_000, b"since=%F0%9F%92%A9"):
            assert (await ask(app, STATS, scope={"query_string": raw})).status in (200, 400, 404)
        assert (await get_json(app, STATS, *WHOLE))["counts"]["total"] == 5

    served(tmp_path, main, database=DatabaseConfig(url=database_url))


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (b"end_user=zo%C3%AB", ["c-2"]),
        ("end_user=zoë".encode(), ["c-2"]),
        (b"end_user=al%EF%BF%BDice", ["c-1"]),
        (b"end_user=al%FFice", None),
        (b"end_user=al\xffice", None),
        (b"tenant=%ED%A0%80", None),
        (b"end_user=al%00ice", None),
        (b"end_user=" + b"u" * 256, None),
        (b"tenant=" + b"%C3%AB" * 256, None),
    ],
)
@pytest.mark.parametrize("path", [STATS, REQUESTS])
def test_names_in_filters(path: str, query: bytes, found: list[str] | None, tmp_path: Path) -> None:
    """A name is compared in all its characters; one that no row can have, or that is not UTF-8, is a 400."""

    async def main(app: Any) -> None:
        for number, end_user in enumerate(("al\ufffdice", "zoë", "zoÃ«")):
            app.ledger.record(an_entry(f"c-{number + 1}", end_user=end_user, end_reason="completed", revision=1))
        await app.ledger.flush()
        reply = await ask(app, path, scope={"query_string": query})
        if found is None:
            assert (reply.status, reply.error["code"]) == (400, "invalid_parameter")
            return
        answer = json.loads(reply.body)
        assert reply.status == 200
        if path == STATS:
            assert answer["counts"]["total"] == len(found)
        else:
            assert [row["correlation_id"] for row in answer["data"]] == found

    served(tmp_path, main)


def test_guard(tmp_path: Path) -> None:
    """Who has no token is told nothing, not even whether a parameter is right."""
    server = Server(auth_token="secret-1", tokens=(Token(name="alice", token="secret-2"),))

    async def main(app: Any) -> None:
        for path in (STATS, REQUESTS, f"{REQUESTS}/c-1"):
            for pairs in ([], [("x", "1")], [("format", "csv")]):
                for headers in ({}, {"authorization": "Bearer wrong"}):
                    reply = await ask(app, path, *pairs, headers=headers)
                    assert (reply.status, reply.error["type"]) == (401, "authentication_error")
        for token in ("secret-1", "secret-2"):
            assert (await ask(app, STATS, headers={"authorization": f"Bearer {token}"})).status == 200

    served(tmp_path, main, server=server)


def test_without_a_lifespan(tmp_path: Path) -> None:
    """Where nobody runs the lifespan the first question opens the ledger."""

    async def main() -> None:
        app = Arbstr(configured(tmp_path))
        assert (await get_json(app, STATS))["empty"] is True
        await app._gateway.close()

    asyncio.run(main())


def unavailable(reply: Call) -> None:
    """Fails the test for anything but a 503 that tells nothing of the database."""
    assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
    assert reply.error["message"] == "The usage ledger can't answer at this moment. Please retry."


def test_a_broken_table(database_url: str, tmp_path: Path) -> None:
    """So is one whose database answers with an error, on each database."""

    async def main(app: Any) -> None:
        await fill(app)
        await asyncio.to_thread(run_sql, database_url, "DROP VIEW all_attempts", "DROP TABLE requests")
        for path, pairs in ((STATS, []), (REQUESTS, []), (REQUESTS, [("format", "csv")]), (f"{REQUESTS}/c-1", [])):
            unavailable(await ask(app, path, *pairs))

    served(tmp_path, main, database=DatabaseConfig(url=database_url))


def test_no_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A ledger that can't answer is a 503 that says no more than that; the log says why."""
    url = "postgresql+asyncpg://someone:PASSWORD@127.0.0.1:1/nowhere"

    async def main(app: Any) -> None:
        for path, pairs in ((STATS, []), (REQUESTS, []), (REQUESTS, [("format", "csv")]), (f"{REQUESTS}/c-1", [])):
            reply = await ask(app, path, *pairs)
            assert reply.headers["retry-after"] == "5"
            unavailable(reply)

    with caplog.at_level(logging.WARNING):
        served(tmp_path, main, database=DatabaseConfig(url=url))
    assert "a question to the ledger was not answered" in caplog.text
    assert "PASSWORD" not in caplog.text


class Endless:
    """An export that never ends, or fails after some rows; it knows how many were read and whether it was closed."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.read = 0
        self.closed = False
        self._fails_after = fails_after

    async def __call__(self, query: RequestsQuery) -> AsyncIterator[dict[str, Any]]:
        try:
            while self.read != self._fails_after:
                self.read += 1
                await asyncio.sleep(0)
                yield {"id": self.read, "model": "m" * 1000}
            raise LedgerError("the database can't answer: SECRET")
        finally:
            self.closed = True


def test_a_client_that_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export ends when its client has left, also one that reads nothing, and lets go of the database."""

    async def main(app: Any) -> None:
        endless = Endless()
        monkeypatch.setattr(app.ledger, "export", endless)
        one = Call(app, path=REQUESTS, method="GET", scope={"query_string": b"format=jsonl"})
        task = asyncio.create_task(one.run())
        await one.begun.wait()
        one.gone.set()
        await task
        assert endless.closed
        assert not one.ended
        await reads_nothing(app, monkeypatch)

    served(tmp_path, main)


async def reads_nothing(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes one piece and no more keeps few rows in memory."""
    endless = Endless()
    monkeypatch.setattr(app.ledger, "export", endless)
    one = Call(app, path=REQUESTS, method="GET", scope={"query_string": b"format=jsonl"})
    stuck = asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            stuck.set()
            await asyncio.Event().wait()

    one.send = send  # type: ignore[method-assign]
    task = asyncio.create_task(one.run())
    await stuck.wait()
    await asyncio.sleep(0.05)
    assert endless.read < 50
    one.gone.set()
    await task
    assert endless.closed


def test_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails at once is a 503; one that fails later is aborted, so that no part passes for the whole."""

    async def main(app: Any) -> None:
        at_once, later = Endless(0), Endless(100)
        monkeypatch.setattr(app.ledger, "export", at_once)
        reply = await ask(app, REQUESTS, ("format", "csv"))
        assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
        monkeypatch.setattr(app.ledger, "export", later)
        one = Call(app, path=REQUESTS, method="GET", scope={"query_string": b"format=jsonl"})
        with pytest.raises(LedgerError):
            await one.run()
        assert (one.status, one.ended, later.closed) == (200, False, True)

    served(tmp_path, main)


def test_exports_over_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real server a client sees a clean end, a failure as a broken one, and its hang-up ends the reading."""

    async def main() -> None:
        app = Arbstr(configured(tmp_path))
        async with serving(app) as url:
            assert (await (await Wire.open(url, path=STATS, method="GET")).until()).status == 200
            await fill(app)
            at = f"{REQUESTS}?{urlencode([*WHOLE, ('format', 'jsonl')])}"
            whole = await (await Wire.open(url, path=at, method="GET")).until()
            assert (whole.status, whole.clean, len(whole.body.splitlines())) == (200, True, 5)
            monkeypatch.setattr(app.ledger, "export", Endless(100))
            broken = await (await Wire.open(url, path=at, method="GET")).until()
            assert (broken.status, broken.clean) == (200, False)
            endless = Endless()
            monkeypatch.setattr(app.ledger, "export", endless)
            leaving = await (await Wire.open(url, path=at, method="GET")).until(1)
            leaving.hang_up()
            await eventually(lambda: endless.closed)

    asyncio.run(main())


def test_a_caller_that_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cancels an export's task ends it, too."""

    async def main(app: Any) -> None:
        endless = Endless()
        monkeypatch.setattr(app.ledger, "export", endless)
        one = Call(app, path=REQUESTS, method="GET", scope={"query_string": b"format=jsonl"})
        task = asyncio.create_task(one.run())
        await one.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert endless.closed

    served(tmp_path, main)


def test_a_server_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers a hang-up with OSError gets no exception back."""

    async def main(app: Any) -> None:
        endless = Endless()
        monkeypatch.setattr(app.ledger, "export", endless)
        one = Call(app, path=REQUESTS, method="GET", scope={"query_string": b"format=jsonl"})

        async def send(message: Any) -> None:
            if one.messages:
                raise OSError("gone")
            one.messages.append(message)

        one.send = send  # type: ignore[method-assign]
        await one.run()
        assert endless.closed

    served(tmp_path, main)


def test_an_end_user_sees_itself_only(tmp_path: Path) -> None:
    """Figures, pages, files and details of others are not told to an end user, but to an operator."""
    tokens = (
        Token(name="alice", token="t-alice"),
        Token(name="bob", token="t-bob"),
        Token(name="ann", token="t-ann", operator=True),
    )

    async def main(app: Any) -> None:
        for entry in entries():
            app.ledger.record(entry)
        await app.ledger.flush()

        async def as_user(token: str, path: str, *pairs: tuple[str, str]) -> Call:
            headers = [(b"authorization", f"Bearer {token}".encode())]
            return await ask(app, path, *pairs, headers=headers)

        mine = json.loads((await as_user("t-alice", STATS, *WHOLE, ("group_by", "end_user"))).body)
        assert [group["end_user"] for group in mine["groups"]] == ["alice"]
        assert mine["counts"]["total"] == 3
        page = json.loads((await as_user("t-alice", REQUESTS, *WHOLE)).body)
        assert {row["end_user"] for row in page["data"]} == {"alice"}
        assert page["total"] == 3
        lines = (await as_user("t-alice", REQUESTS, *WHOLE, ("format", "jsonl"))).body.splitlines()
        assert {json.loads(line)["end_user"] for line in lines} == {"alice"}
        assert (await as_user("t-alice", f"{REQUESTS}/c-1")).status == 200
        assert (await as_user("t-bob", f"{REQUESTS}/c-1")).status == 404
        for path in (STATS, REQUESTS):
            refused = await as_user("t-bob", path, *WHOLE, ("end_user", "alice"))
            assert (refused.status, refused.error["code"]) == (403, "other_end_user")
        for name, used in (("model", "gone"), ("provider", "p")):
            for path in (STATS, REQUESTS):
                answers = [await as_user("t-bob", path, *WHOLE, (name, value)) for value in (used, "never")]
                assert [answer.status for answer in answers] == [200, 200]
                if name == "model":  # which nobody but others has used
                    assert answers[0].body == answers[1].body
        everybody = json.loads((await as_user("t-ann", STATS, *WHOLE)).body)
        assert everybody["counts"]["total"] == 5

    served(tmp_path, main, server=Server(tokens=tokens))
