"""Who may answer a request, and in what order they are asked."""

import json
from decimal import Decimal
from typing import Any

import pytest

from arbstr_asgi import Provider, Rates
from arbstr_asgi.config.policies import Rule
from arbstr_asgi.errors import MAX_QUOTED, RequestError
from arbstr_asgi.protocols.chat import ChatRequest, parse
from arbstr_asgi.protocols.token_estimate import Estimate, estimate_tokens
from arbstr_asgi.providers.routing import rank_providers


def chat(size: int = 2000, answer: int = 500, model: str = "m") -> ChatRequest:
    """A request with so many bytes of prompt, for so many tokens of answer."""
    messages = [{"role": "user", "content": "x" * size}]
    return parse(json.dumps({"model": model, "messages": messages, "max_tokens": answer}).encode())


def provider(name: str, rate: Any = None, fee: Any = 0, **facts: Any) -> Provider:
    """A provider with one rate for input and output."""
    return Provider(name=name, url="http://h", base_fee=fee, **{"input_rate": rate, "output_rate": rate, **facts})


FEE = provider("fee", 1_000, 50)
RATE = provider("rate", 5_000)
FREE = provider("free", 0)
UNKNOWN = provider("unknown")
HALF_KNOWN = provider("half", None, 0, input_rate=1)


@pytest.mark.parametrize(
    ("providers", "request_", "expected"),
    [
        ([FEE, RATE], chat(), ["rate", "fee"]),
        ([FEE, RATE], chat(200_000, 500), ["fee", "rate"]),
        ([FEE, RATE], chat(4, 100_000), ["fee", "rate"]),
        ([RATE, FREE], chat(), ["free", "rate"]),
        ([UNKNOWN, RATE, FREE], chat(), ["free", "rate", "unknown"]),
        ([UNKNOWN, RATE], chat(), ["rate", "unknown"]),
        ([UNKNOWN, HALF_KNOWN, RATE], chat(), ["rate", "half", "unknown"]),
        ([provider("b", 5), provider("c", 5), provider("a", 5)], chat(), ["a", "b", "c"]),
        ([provider("b", 5), provider("a", Decimal("5.0000001"))], chat(), ["b", "a"]),
        ([provider("in", 0, 0, input_rate=9), provider("out", 0, 0, output_rate=9)], chat(40, 500), ["in", "out"]),
        ([provider("in", 0, 0, input_rate=9), provider("out", 0, 0, output_rate=9)], chat(4000, 50), ["out", "in"]),
        ([provider("b", 1, 0, models=["m"]), provider("a", 1, 0, models=["x"])], chat(), ["b"]),
        ([provider("b", 1, 0, models=["M"]), provider("a", 1)], chat(), ["a"]),
        ([provider("list", 1), provider("own", 5, 0, model_rates={"m": Rates(input_rate=0, output_rate=0)})], chat(),
         ["own", "list"]),
        ([provider("list", 3), provider("own", 1, 0, aliases={"m": "big"}, model_rates={"big": Rates(base_fee=9)})],
         chat(), ["list", "own"]),
    ],
)  # fmt: skip
def test_order(providers: list[Provider], request_: ChatRequest, expected: list[str]) -> None:
    """The cheapest for this request is first, names decide between equals, and an unknown price is not a low one."""
    found = rank_providers(providers, request_)
    assert [candidate.provider.name for candidate in found] == expected
    assert [
        c.provider.name for c in rank_providers(providers[::-1], request_, estimate=estimate_tokens(request_))
    ] == expected


def test_costs() -> None:
    """Each candidate says what this request will cost there."""
    found = rank_providers([UNKNOWN, FEE, RATE], chat())
    assert [candidate.cost for candidate in found] == [Decimal(5), Decimal(51), None]


def test_one_is_not_estimated() -> None:
    """With one provider left there is nothing to compare; what it costs is said to who brings an estimate."""
    only = provider("a", 1_000, 1, models=["m"])
    others = [only, provider("b", 1, 0, models=["x"]), provider("c")]
    rule = Rule(name="r", allowed_providers=["a", "b"])
    for found in (rank_providers([only], chat()), rank_providers(others, chat(), rule)):
        assert found == [(only, "m", None)]
    assert rank_providers([only], chat(), estimate=Estimate(1_000, 500)) == [(only, "m", Decimal("2.5"))]


def test_alias() -> None:
    """Each provider is asked for the model by the name it knows."""
    plain, aliased = provider("a", 1), provider("b", 2, 0, models=["x"], aliases={"m": "vendor/m"})
    found = rank_providers([plain, aliased], chat())
    assert [(candidate.provider.name, candidate.model) for candidate in found] == [("a", "m"), ("b", "vendor/m")]
    assert rank_providers([aliased], chat())[0].model == "vendor/m"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, ["free", "fee", "rate", "unknown"]),
        ({"allowed_models": ["m", "n"]}, ["free", "fee", "rate", "unknown"]),
        ({"allowed_providers": ["rate", "fee", "nobody"]}, ["fee", "rate"]),
        ({"max_sats_per_1m_input": 1_000}, ["free", "fee"]),
        ({"max_sats_per_1m_output": 1_000}, ["free", "fee"]),
        ({"max_sats_per_1m_output": Decimal("999.9")}, ["free"]),
        ({"max_sats_per_1m_output": 0}, ["free"]),
        ({"max_sats_per_1m_input": 10**9}, ["free", "fee", "rate"]),
        ({"max_sats_per_1m_input": 10**9, "max_sats_per_1m_output": 1_000}, ["free", "fee"]),
        ({"max_sats_per_1m_output": 10**9, "allowed_providers": ["unknown", "rate"]}, ["rate"]),
    ],
)
def test_rule(facts: dict[str, Any], expected: list[str]) -> None:
    """A rule keeps who is named, at rates within its caps; an unknown rate is within none."""
    found = rank_providers([UNKNOWN, RATE, FEE, FREE], chat(200_000, 500), Rule(name="r", **facts))
    assert [candidate.provider.name for candidate in found] == expected


def test_rule_and_model_rates() -> None:
    """Caps are compared with the rates of the model, and models are allowed by the client's name for them."""
    aliased = provider("a", 5, 0, aliases={"m": "big"}, model_rates={"big": Rates(output_rate=50)})
    assert rank_providers([aliased], chat(), Rule(name="r", allowed_models=["m"], max_sats_per_1m_output=50))
    for facts in ({"max_sats_per_1m_output": 49}, {"allowed_models": ["big"]}):
        with pytest.raises(RequestError):
            rank_providers([aliased], chat(), Rule(name="r", **facts))


@pytest.mark.parametrize(
    ("rule", "model", "status", "code", "param", "message"),
    [
        (None, "x", 404, "model_not_found", "model", 'No provider is configured for the model "x".'),
        (Rule(name="p", allowed_models=["m"]), "x", 404, "model_not_found", "model", "No provider is configured"),
        (Rule(name="p", allowed_models=["n"]), "m", 400, "model_not_allowed", "model",
         "Model 'm' is not allowed by policy 'p'."),
        (Rule(name="p", allowed_models=["M"]), "m", 400, "model_not_allowed", "model", "Model 'm' is not allowed"),
        (Rule(name="p", allowed_providers=["b"]), "m", 400, "no_provider_within_policy", None, "policy 'p'"),
        (Rule(name="p", max_sats_per_1m_input=0), "m", 400, "no_provider_within_policy", None, "policy 'p'"),
    ],
)  # fmt: skip
def test_nobody(rule: Rule | None, model: str, status: int, code: str, param: str | None, message: str) -> None:
    """Where nobody is left, the error says what was in the way."""
    with pytest.raises(RequestError) as caught:
        rank_providers([provider("a", 1, 0, models=["m"])], chat(model=model), rule)
    error = caught.value
    assert (error.status_code, error.code, error.param) == (status, code, param)
    assert message in error.message


@pytest.mark.parametrize("model", ["x" * 255, "\n" * 255, "\ud83d" * 200, "\x1b[31m", "\u202e" * 40])
def test_hostile_model(model: str) -> None:
    """A message quotes of a model's name what is printable and short."""
    with pytest.raises(RequestError) as caught:
        rank_providers([FREE], chat(model=model), Rule(name="p", allowed_models=["m"]))
    quoted = caught.value.message.removeprefix("Model '").removesuffix("' is not allowed by policy 'p'.")
    assert len(quoted) <= MAX_QUOTED
    assert quoted.isprintable()
    assert json.loads(caught.value.to_json())["error"]["code"] == "model_not_allowed"
