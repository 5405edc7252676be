"""What the sub-app tells of models, costs, providers and their health: its shapes, its guard, and that it is true."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from arbstr_asgi import (
    Arbstr,
    ArbstrError,
    ArbstrMiddleware,
    Config,
    DatabaseConfig,
    Policies,
    Provider,
    Rates,
    Rule,
    Server,
    Token,
)
from arbstr_asgi.api.providers import provider_listing
from arbstr_asgi.cli.server import serving
from arbstr_asgi.config.settings import Limits
from arbstr_asgi.stats.serialize import to_json
from tests.support.asgi_client import JSON_TYPE, PLAIN_REQUEST, Call, Provided, call, good, host, rows, running
from tests.support.raw_http_client import Wire, ask

GUARDED = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/a/b"),
    ("POST", "/v1/cost"),
    ("GET", "/providers"),
    ("GET", "/metrics"),
]
OPEN = [("GET", "/livez"), ("GET", "/readyz"), ("GET", "/health")]
ASKED = b'{"model":"gpt","messages":[{"role":"user","content":"12345678"}],"max_tokens":10}'
RULES = (
    Rule(name="dear", allowed_providers=("dear",)),
    Rule(name="none", allowed_models=("other",)),
    Rule(name="words", allowed_providers=("mid",), keywords=("implement",)),
)


def provider(name: str, **facts: Any) -> Provider:
    """A provider at a host of its name."""
    return Provider(**{"name": name, "url": f"http://{name}.invalid/v1", **facts})


def three() -> list[Provider]:
    """Three with prices; the dearest first."""
    return [
        provider("dear", models=("gpt", "a/b"), input_rate=Decimal("30.5"), output_rate=90, base_fee=Decimal("0.1")),
        provider("mid", models=("gpt",), input_rate=20, output_rate=60),
        provider("cheap", models=("gpt",), aliases={"small": "gpt"}, input_rate=10, output_rate=30, tier="local"),
    ]


def configured(folder: Path, providers: Sequence[Provider] | None = None, **facts: Any) -> Config:
    """A configuration with these providers, or three."""
    facts.setdefault("server", Server(public=True))
    database = DatabaseConfig(path=str(folder / "ledger.db"))
    rules = () if providers else RULES
    return Config(providers=providers or three(), database=database, policies=Policies(rules=rules), **facts)


def call_endpoint(config: Config, path: str, body: bytes = b"", **options: Any) -> Call:
    """One call of the sub-app, GET unless there is a body."""
    options.setdefault("method", "POST" if body else "GET")

    async def main() -> Call:
        async with running("sub-app", config, Provided()) as app:
            return await call(app, body, path=path, **options)

    return asyncio.run(main())


def said(reply: Call) -> Any:
    """The JSON of a good reply, its numbers exact."""
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert int(reply.headers["content-length"]) == len(reply.body)
    return json.loads(reply.body, parse_float=Decimal)


def listed(name: str) -> dict[str, Any]:
    """A model as it is told."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "arbstr"}


def test_models(tmp_path: Path) -> None:
    """Every model and alias is told once, in the providers' order."""
    providers = [*three(), provider("any", aliases={"mine": "x", "gpt": "y"})]
    found = said(call_endpoint(configured(tmp_path, providers), "/v1/models"))
    assert found == {"object": "list", "data": [listed(name) for name in ("gpt", "a/b", "small", "mine")]}


@pytest.mark.parametrize("name", ["gpt", "a/b", "small"])
def test_model(name: str, tmp_path: Path) -> None:
    """One model is told by its id, with slashes in it or not."""
    assert said(call_endpoint(configured(tmp_path), f"/v1/models/{name}")) == listed(name)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\0", "/", " "])
@pytest.mark.parametrize(("method", "path"), [*GUARDED, *OPEN])
def test_paths_are_exact(method: str, path: str, end: str, tmp_path: Path) -> None:
    """What ends in something else, a line end too, is another path: a 404 that says what is served."""
    reply = call_endpoint(configured(tmp_path), path + end, ASKED if method == "POST" else b"", method=method)
    assert reply.status == 404
    if "/models" not in path or end == "\n":
        assert "POST /v1/chat/completions, GET /v1/models" in reply.error["message"]


@pytest.mark.parametrize("root", ["", "/llm"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/chat/completions"), ("GET", "/"), ("PUT", "/v1/models")])
def test_what_is_served(root: str, method: str, path: str, tmp_path: Path) -> None:
    """An error about a path names what is served, below the app's mount, and repeats nothing of the client's."""
    reply = call_endpoint(
        configured(tmp_path),
        root.rstrip("/") + path,
        method=method,
        scope={"root_path": root, "path": root.rstrip("/") + path},
    )
    assert reply.status == (405 if method == "PUT" else 404)
    at = root.rstrip("/")
    for served in (f"POST {at}/v1/chat/completions", f"GET {at}/v1/models/{{model}}", f"GET {at}/livez"):
        assert served in reply.error["message"]


@pytest.mark.parametrize("name", ['quo"ted', "new\nline", "é" * 255, "\ud83d", "x" * 255])
def test_an_unknown_model_is_named(name: str, tmp_path: Path) -> None:
    """The error for a model that nobody serves has its name as JSON."""
    body = json.dumps({"model": name, "messages": []}).encode()
    reply = call_endpoint(configured(tmp_path), "/v1/chat/completions", body, headers=JSON_TYPE)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")
    assert f"the model {json.dumps(name)}." in reply.error["message"]


@pytest.mark.parametrize("name", ["", "gpt/", "GPT", "a", "nul\0", "x" * 256, "é", "../gpt", "\ud83d", "%67pt"])
def test_no_such_model(name: str, tmp_path: Path) -> None:
    """An id that nobody serves is a 404 in OpenAI's shape, whatever it is made of."""
    reply = call_endpoint(configured(tmp_path), "/", scope={"path": f"/v1/models/{name}"})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(("name", "status"), [("x", 200), ("a\0é", 200), ("x" * 255, 200), ("", 404), ("x" * 256, 404)])
def test_a_provider_of_every_model(name: str, status: int, tmp_path: Path) -> None:
    """Where a provider lists no models, each that can be asked for is told."""
    reply = call_endpoint(configured(tmp_path, [provider("any")]), f"/v1/models/{name}")
    assert reply.status == status
    if status == 200:
        assert said(reply) == listed(name)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/gpt", "/v1/cost", "/providers", "/health"])
def test_methods(path: str, tmp_path: Path) -> None:
    """Another method is a 405 in OpenAI's shape that says which there are."""
    for method in ("GET", "PUT") if path == "/v1/cost" else ("POST", "DELETE"):
        reply = call_endpoint(configured(tmp_path), path, method=method)
        assert (reply.status, reply.error["type"]) == (405, "invalid_request_error")
        assert set(reply.headers["allow"].split(", ")) == ({"POST"} if path == "/v1/cost" else {"GET", "HEAD"})


def refusing(scope: Mapping[str, Any]) -> str:
    """Lets in who says that they are alice."""
    if (b"x-user", b"alice") not in scope["headers"]:
        raise ArbstrError(403, "no plan", code="no_plan")
    return "alice"


def buggy(scope: Mapping[str, Any]) -> str:
    """Fails."""
    raise ValueError("SECRET")


GUARDS: dict[str, tuple[Server, Any, dict[str, str], int]] = {
    "identify": (Server(), refusing, {"x-user": "alice"}, 403),
    "auth_token": (Server(auth_token="token-1"), None, {"authorization": "Bearer token-1"}, 401),
    "tokens": (Server(tokens=(Token(name="a", token="token-2"),)), None, {"authorization": "Bearer token-2"}, 401),
    "token and identify": (Server(auth_token="token-1"), refusing, {"authorization": "Bearer token-1"}, 403),
    "failing identify": (Server(), buggy, {}, 500),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_guard(guard: str, tmp_path: Path) -> None:
    """Whatever guards the calls guards all that tells of models, costs and providers; only the probes are for all."""
    server, identify, credentials, status = GUARDS[guard]

    async def main() -> None:
        async with running("sub-app", configured(tmp_path, server=server), Provided(), identify=identify) as app:
            for method, path in GUARDED:
                options = {"path": path, "method": method}
                wrong = {**JSON_TYPE, "authorization": "Bearer guessed", "x-user": "bob"}
                for headers in (JSON_TYPE, wrong):
                    one = await call(app, ASKED, headers=headers, **options)
                    expected = 401 if server.auth_token else status
                    assert (one.status, one.receives) == (expected, 0), path
                    assert one.error["message"]
                    assert ("www-authenticate" in one.headers) == (expected == 401)
                let_in = await call(app, ASKED, headers={**JSON_TYPE, **credentials}, **options)
                assert let_in.status == (200 if guard in ("identify", "auth_token", "tokens") else status), path
            for method, path in OPEN:
                assert (await call(app, path=path, method=method, headers={})).status == 200

    asyncio.run(main())


@pytest.mark.parametrize(("method", "path"), [*GUARDED, *OPEN])
def test_the_middleware_has_none(method: str, path: str, tmp_path: Path) -> None:
    """Around an app there is nothing but the chat completions: all these paths are the host's."""

    async def main() -> None:
        app = ArbstrMiddleware(host, configured(tmp_path))
        for used in (method, "GET", "POST"):
            reply = await call(app, ASKED, path=path, method=used)
            assert (reply.status, reply.body) == (299, b"host")

    asyncio.run(main())


def test_providers(tmp_path: Path) -> None:
    """The listing is that of `arbstr providers --json`, with keys of files, and masks only."""
    file = tmp_path / "key"
    file.write_text("file-key-0123456789abcdef\n")
    providers = [
        *three(),
        provider("keyed", api_key="sk-0123456789abcdefgh", query={"q": "SECRET"}, headers={"x-h": "SECRET"}),
        provider("short", api_key="sk-short"),
        provider("filed", api_key_file=str(file), proxy="http://SECRET:SECRET@proxy:1"),
        provider("unread", api_key_file=str(tmp_path / "none")),
        provider("asked", api_key=lambda: "SECRET"),
    ]
    config = configured(tmp_path, providers)
    reply = asyncio.run(call(Arbstr(config), path="/providers", method="GET"))
    found = {one["name"]: one for one in said(reply)["providers"]}
    assert reply.body == to_json(provider_listing(config, {"filed": "file-key-0123456789abcdef"}))
    keys = [(found[name]["has_api_key"], found[name]["api_key"]) for name in list(found)[2:]]
    shown = [(True, "sk-012…***"), (True, None), (True, "file-k…***"), (True, None), (True, None)]
    assert keys == [(False, None), *shown]
    assert found["dear"]["input_rate_sats_per_1m"] == Decimal("30.5")
    assert b"SECRET" not in reply.body
    assert b"sk-short" not in reply.body


def test_health(tmp_path: Path) -> None:
    """Degraded while a breaker is not closed, 503 while all are open, and time alone heals it."""

    async def main() -> None:
        provided = Provided(lambda request: httpx.Response(503) if request.url.host in failing else good(request))
        async with running("sub-app", configured(tmp_path), provided) as app:

            async def health_status() -> tuple[int, str, list[str]]:
                reply = await call(app, path="/health", method="GET", headers={})
                facts = json.loads(reply.body)
                assert set(facts) == {"status", "providers"}
                states = [facts["providers"][name]["state"] for name in ("cheap", "mid", "dear")]
                return reply.status, facts["status"], states

            def passes(seconds: float) -> None:
                for name in ("cheap", "mid", "dear"):
                    breaker = app._gateway.breakers.get(name)
                    breaker.opened_at = None if breaker.opened_at is None else breaker.opened_at - seconds

            failing = {"cheap.invalid"}
            assert await health_status() == (200, "ok", ["closed"] * 3)
            for _ in range(3):
                assert (await call(app, ASKED)).status == 200
            assert await health_status() == (200, "degraded", ["open", "closed", "closed"])
            failing |= {"mid.invalid", "dear.invalid"}
            breakers = app._gateway.breakers
            for name in ("mid", "dear"):
                now = asyncio.get_running_loop().time()
                for _ in range(3):
                    breakers.get(name).mark_failure(breakers.get(name).acquire(now), now)
            assert await health_status() == (503, "unhealthy", ["open"] * 3)
            asked_so_far = len(provided.requests)
            passes(29)
            assert await health_status() == (503, "unhealthy", ["open"] * 3)
            passes(2)
            assert await health_status() == (200, "degraded", ["half_open"] * 3)
            assert len(provided.requests) == asked_so_far, "it needs no traffic"
            failing.clear()
            assert (await call(app, ASKED)).status == 200
            assert await health_status() == (200, "degraded", ["closed", "half_open", "half_open"])

    asyncio.run(main())


def test_health_shows_no_more(tmp_path: Path) -> None:
    """Per provider: the state, the failures in a row and the tier; no URL and no key."""
    found = said(call_endpoint(configured(tmp_path), "/health"))
    assert found["status"] == "ok"
    closed = {"state": "closed", "failure_count": 0}
    tiers = {"dear": None, "mid": None, "cheap": "local"}
    assert found["providers"] == {name: {**closed, "tier": tier} for name, tier in tiers.items()}


def test_cost(tmp_path: Path) -> None:
    """The estimate is the cheapest provider's: its tokens, its exact cost and its rates."""
    reply = call_endpoint(configured(tmp_path), "/v1/cost", ASKED)
    assert said(reply) == {
        "model": "gpt",
        "provider": "cheap",
        "estimated_input_tokens": 2,
        "estimated_output_tokens": 10,
        "estimated_cost_sats": Decimal("0.00032"),
        "rates": {"input_rate_sats_per_1m": 10, "output_rate_sats_per_1m": 30, "base_fee_sats": 0},
        "rate_unit": "sats_per_1m_tokens",
    }
    dear = said(
        call_endpoint(configured(tmp_path), "/v1/cost", ASKED, headers={**JSON_TYPE, "x-arbstr-policy": "dear"})
    )
    assert (dear["provider"], dear["estimated_cost_sats"]) == ("dear", Decimal("0.100961"))
    assert dear["rates"]["input_rate_sats_per_1m"] == Decimal("30.5")


def test_cost_of_one_provider(tmp_path: Path) -> None:
    """A provider that is alone has an estimate too; one without rates has null for what is unknown."""
    alone = said(call_endpoint(configured(tmp_path, [three()[2]]), "/v1/cost", ASKED))
    assert alone["estimated_cost_sats"] == Decimal("0.00032")
    unknown = said(call_endpoint(configured(tmp_path, [provider("any", input_rate=7)]), "/v1/cost", PLAIN_REQUEST))
    assert (unknown["estimated_cost_sats"], unknown["estimated_output_tokens"]) == (None, 256)
    rates = {"input_rate_sats_per_1m": 7, "output_rate_sats_per_1m": None, "base_fee_sats": 0}
    assert (unknown["rates"], unknown["model"]) == (rates, "m")


def test_cost_has_the_rates_of_the_model(tmp_path: Path) -> None:
    """Rates of the model's own, also by the name that the provider knows it by, are what is told."""
    rated = {"gpt-real": Rates(input_rate=1, output_rate=2, base_fee=3)}
    one = provider("one", aliases={"gpt": "gpt-real"}, input_rate=10, output_rate=20, model_rates=rated)
    found = said(call_endpoint(configured(tmp_path, [one]), "/v1/cost", ASKED))
    assert found["rates"] == {"input_rate_sats_per_1m": 1, "output_rate_sats_per_1m": 2, "base_fee_sats": 3}
    assert (found["model"], found["estimated_cost_sats"]) == ("gpt", Decimal("3.000022"))


WAYS: dict[str, tuple[bytes, dict[str, str], tuple[str, ...]]] = {
    "the cheapest": (ASKED, {}, ()),
    "a policy by name": (ASKED, {"x-arbstr-policy": "dear"}, ()),
    "a policy by its words": (ASKED.replace(b"12345678", b"please implement"), {}, ()),
    "the first is broken": (ASKED, {}, ("cheap",)),
    "two are broken": (ASKED, {}, ("cheap", "mid")),
    "all are broken": (ASKED, {}, ("mid", "dear", "cheap")),
    "an alias": (ASKED.replace(b"gpt", b"small"), {}, ()),
    "a stream": (ASKED.replace(b"{", b'{"stream":true,', 1), {}, ()),
}


@pytest.mark.parametrize("way", WAYS)
def test_cost_agrees_with_routing(way: str, tmp_path: Path) -> None:
    """Whom the estimate names is who then answers; telling it asks nobody and writes no row."""
    body, headers, broken = WAYS[way]

    async def main() -> None:
        provided = Provided()
        async with running("sub-app", configured(tmp_path), provided) as app:
            breakers = app._gateway.breakers
            for earlier, name in enumerate(broken):
                now = asyncio.get_running_loop().time() - 5 + earlier
                for _ in range(3):
                    breakers.get(name).mark_failure(breakers.get(name).acquire(now), now)
            states = breakers.states(asyncio.get_running_loop().time())
            health_status = said(await call(app, body, path="/v1/cost", headers={**JSON_TYPE, **headers}))
            assert breakers.states(asyncio.get_running_loop().time()) == states
            assert (provided.requests, await rows(app)) == ([], [])
            assert (await call(app, body, headers={**JSON_TYPE, **headers})).status == 200
            [row] = await rows(app)
            assert (row["provider"], row["model"]) == (health_status["provider"], health_status["model"])
            assert provided.requests[0].url.host == f"{health_status['provider']}.invalid"

    asyncio.run(main())


HOSTILE: dict[str, tuple[bytes, dict[str, str]]] = {
    "empty": (b"", {}),
    "not JSON": (b"gpt", {}),
    "an array": (b"[]", {}),
    "no model": (b"{}", {}),
    "a number as model": (b'{"model":1}', {}),
    "NUL in the model": (b'{"model":"gpt\\u0000"}', {}),
    "a surrogate as model": (b'{"model":"\\ud83d"}', {}),
    "a long model": (b'{"model":"' + b"x" * 256 + b'"}', {}),
    "another model": (b'{"model":"other"}', {}),
    "a string as stream": (b'{"model":"gpt","stream":"yes"}', {}),
    "bad UTF-8": (b'{"model":"gpt","x":"\xff"}', {}),
    "nested": (b'{"model":"gpt","x":' + b"[" * 100_000, {}),
    "too large": (b'{"model":"gpt","x":"' + b"x" * 200_000 + b'"}', {}),
    "no content type": (ASKED, {"content-type": "text/plain"}),
    "compressed": (ASKED, {"content-encoding": "gzip"}),
    "unknown policy": (ASKED, {"x-arbstr-policy": "\x01" + "p" * 500}),
    "policy without the model": (ASKED, {"x-arbstr-policy": "none"}),
    "policy without a provider": (ASKED.replace(b"gpt", b"a/b"), {"x-arbstr-policy": "words"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_cost_refuses_what_a_call_is_refused(name: str, tmp_path: Path) -> None:
    """A request that can't be served has the call's own error here too, and leaves nothing behind."""
    body, headers = HOSTILE[name]
    config = configured(tmp_path, limits=Limits(max_body_bytes=150_000))

    async def main() -> None:
        provided = Provided()
        async with running("sub-app", config, provided) as app:
            cost = await call(app, body, path="/v1/cost", headers={**JSON_TYPE, **headers})
            assert await rows(app) == []
            chat = await call(app, body, headers={**JSON_TYPE, **headers})
            assert 400 <= chat.status < 500
            assert (cost.status, cost.error) == (chat.status, chat.error)
            assert app._gateway._bodies.in_flight == 0
            assert provided.requests == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("limit", "tokens"),
    [
        (b"9223372036854775807", 2**63 - 1),
        (b"9223372036854775808", 256),
        (b"1" * 5000, 256),
        (b"1e400", 256),
        (b"-1", 256),
        (b"0", 256),
        (b'"10"', 256),
        (b"[10]", 256),
        (b"true", 256),
        (b"null", 256),
    ],
)
def test_cost_of_any_limit(limit: bytes, tokens: int, tmp_path: Path) -> None:
    """A `max_tokens` of any type and size is estimated, exactly, and is valid JSON."""
    dear = provider("dear", input_rate=0, output_rate=Decimal("1e30"), base_fee=Decimal("1e-9"))
    body = b'{"model":"m","messages":[],"max_tokens":' + limit + b"}"
    found = said(call_endpoint(configured(tmp_path, [dear]), "/v1/cost", body))
    assert found["estimated_output_tokens"] == tokens
    assert f"{found['estimated_cost_sats']:f}" == f"{tokens}{'0' * 24}.000000001"


@pytest.mark.parametrize("model", [b"\\ud83d", b"a\\u0000b", b"\xc3\xa9", b"\xf0\x9f\x98\x80", b""])
def test_cost_of_any_model(model: bytes, tmp_path: Path) -> None:
    """Where any model may be asked for, its name comes back as it was said."""
    body = b'{"model":"' + model + b'"}'
    found = said(call_endpoint(configured(tmp_path, [provider("any")]), "/v1/cost", body))
    assert found["model"] == json.loads(body)["model"]


def test_cost_of_half_a_body(tmp_path: Path) -> None:
    """A client that hangs up in the middle is answered nothing, and nothing of it is kept; a slow one gets a 408."""

    async def main() -> None:
        config = configured(tmp_path, limits=Limits(body_timeout=0.2))
        async with running("sub-app", config, Provided()) as app:
            leaving = Call(app, ASKED, path="/v1/cost", stall=True)
            leaving.gone.set()
            assert (await leaving.run()).messages == []
            assert (await call(app, ASKED, path="/v1/cost", stall=True)).status == 408
            assert app._gateway._bodies.in_flight == 0

    asyncio.run(main())


def test_without_a_ledger(tmp_path: Path) -> None:
    """All that is told is told while no ledger is open, as where nobody runs the lifespan."""

    async def main() -> None:
        app = Arbstr(configured(tmp_path))
        for method, path in [*GUARDED, ("GET", "/health")]:
            assert (await call(app, ASKED, path=path, method=method)).status == 200

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


def test_over_sockets_and_mounted(tmp_path: Path) -> None:
    """On a real server and below a mount, an escaped slash in an id and a HEAD are understood."""

    async def main() -> None:
        llm = Arbstr(configured(tmp_path))
        app = Starlette(routes=[Mount("/llm", llm)], lifespan=llm.lifespan)
        async with serving(app) as url:
            one = await (await Wire.open(url, path="/llm/v1/models/a%2Fb", method="GET")).until()
            assert (one.status, one.json) == (200, listed("a/b"))
            odd = await (await Wire.open(url, path="/llm/v1/models/%00%ff%2e", method="GET")).until()
            assert (odd.status, odd.json["error"]["type"]) == (404, "invalid_request_error")
            cost = await ask(url, ASKED, path="/llm/v1/cost")
            assert (cost.status, cost.json["provider"]) == (200, "cheap")
            for path in ("/llm/v1/models", "/llm/providers", "/llm/health"):
                whole = await (await Wire.open(url, path=path, method="GET")).until()
                assert whole.headers["content-length"] == str(len(whole.body))
            async with httpx.AsyncClient(trust_env=False) as client:
                head = await client.head(f"{url}/llm/v1/models")
                assert (head.status_code, head.content) == (200, b"")

    asyncio.run(main())
