"""Rates in USD: turned into sats once, exactly, and shown in both units."""

from decimal import Decimal, getcontext, localcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from arbstr_asgi import Config, ConfigError, Provider
from arbstr_asgi.api.providers import provider_listing
from arbstr_asgi.cli.main import main
from arbstr_asgi.config.provider import RATES, Rates
from arbstr_asgi.protocols.usage import Usage
from arbstr_asgi.providers.pricing import cost

PRICE = Decimal("1538.4615384615")
TOML = """
sats_per_usd = 1538.5
[server]
public = true
[[providers]]
name = "alpha"
url = "http://127.0.0.1:1/v1"
input_rate_usd = 2.50
output_rate = 30000
base_fee_usd = 0.001
[providers.model_rates."small"]
output_rate_usd = 0.6
"""


def configured(price: Any = PRICE, **provider: Any) -> Config:
    """A configuration with one provider."""
    return Config(providers=[Provider(name="p", url="http://h", **provider)], sats_per_usd=price)


def test_exact() -> None:
    """The sats are the product of the two decimals, whatever the host's context rounds to."""
    rate = Decimal("2.123456789012345678901234567890123")
    with localcontext() as context:
        context.prec = 3
        found = configured(input_rate_usd=rate).providers[0].input_rate
    getcontext().clear_flags()
    with localcontext() as context:
        context.prec = 200
        assert found == rate * PRICE


def test_every_rate() -> None:
    """Each rate may be given in USD, of a provider and of one model, and a call costs what it would cost in sats."""
    usd: dict[str, Any] = {f"{name}_usd": number for number, name in enumerate(RATES, 1)}
    sats: dict[str, Any] = {name: number * 1000 for number, name in enumerate(RATES, 1)}
    usage = Usage(input_tokens=1000, output_tokens=100, cached_tokens=10, reasoning_tokens=20)
    of_usd = configured(1000, **usd, model_rates={"m": Rates(**usd)}).providers[0]
    of_sats = configured(None, **sats, model_rates={"m": Rates(**sats)}).providers[0]
    for model in ("m", "other"):
        assert cost(usage, of_usd.rates(model)) == cost(usage, of_sats.rates(model)) != None  # noqa: E711
    assert of_usd.usd == {name: number for number, name in enumerate(RATES, 1)}


def test_models_take_what_they_leave_out() -> None:
    """A model's rate replaces the provider's in either unit, and what it leaves out is the provider's in either."""
    rates = {"a": Rates(input_rate=7), "b": Rates(input_rate_usd=Decimal("0.5")), "c": Rates(output_rate=5)}
    provider = configured(1000, input_rate_usd=2, output_rate=3, base_fee_usd=1, model_rates=rates).providers[0]
    found = {name: provider.rates(name) for name in rates}
    assert [(r.input_rate, r.output_rate, r.base_fee) for r in found.values()] == [
        (7, 3, 1000),
        (500, 3, 1000),
        (2000, 5, 1000),
    ]
    fee, both = ["base_fee"], ["base_fee", "input_rate"]
    assert [sorted(r.usd) for r in found.values()] == [fee, both, both]


def test_the_given_provider_stays() -> None:
    """A provider may be part of two configurations with two prices; nothing is changed in it, nor by a copy."""
    one = Provider(name="p", url="http://h", input_rate_usd=1, model_rates={"m": Rates(output_rate_usd=2)})
    dear, cheap = (Config(providers=[one], sats_per_usd=price) for price in (2000, 1000))
    assert (one.input_rate, one.rates("m").output_rate) == (None, None)
    assert [c.providers[0].input_rate for c in (dear, cheap)] == [2000, 1000]
    assert msgspec.structs.replace(dear, cost_comment=True).providers == dear.providers


@pytest.mark.parametrize("name", RATES)
def test_one_unit_a_rate(name: str) -> None:
    """A rate that is given in both units is refused."""
    with pytest.raises(ConfigError, match=f"{name}_usd: give {name} or {name}_usd, not both"):
        configured(**{name: 1, f"{name}_usd": 1})


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input_rate_usd": 1}, "providers[0].input_rate_usd: needs sats_per_usd, at the top of the configuration"),
    (
        {"model_rates": {"a.b": {"base_fee_usd": 0}}},
        "providers[0].model_rates.a.b.base_fee_usd: needs sats_per_usd, at the top of the configuration",
    ),
    ({"output_rate_usd": -1}, "providers[0].output_rate_usd: must be a number that is not negative"),
]


@pytest.mark.parametrize(("facts", "said"), BAD)
def test_refused(facts: dict[str, Any], said: str) -> None:
    """A price that is missing, and an amount that can't be, are said with their path."""
    with pytest.raises(ConfigError) as raised:
        Config.parse({"providers": [{"name": "p", "url": "http://h", **facts}]}, {})
    assert raised.value.message == said


@pytest.mark.parametrize("price", [0, -1, Decimal("NaN"), Decimal("Infinity"), "many", True])
def test_bad_price(price: Any) -> None:
    """A dollar costs a finite number of sats."""
    with pytest.raises(ConfigError, match="sats_per_usd: "):
        configured(price)


def test_check_and_providers(tmp_path: Path) -> None:
    """`arbstr check` and `arbstr providers` show what is given in USD in both units, and the rest in sats."""
    path = tmp_path / "arbstr.toml"
    path.write_text(TOML)
    path.chmod(0o600)
    checked = CliRunner().invoke(main, ["check", "-c", str(path)])
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert [line for line in checked.stdout.splitlines() if line.startswith("rates")] == [
        "rates      alpha: input_rate 3846.25 sats (2.5 USD), base_fee 1.5385 sats (0.001 USD)",
        "rates      alpha, small: input_rate 3846.25 sats (2.5 USD), output_rate 923.1 sats (0.6 USD), "
        "base_fee 1.5385 sats (0.001 USD)",
    ]
    listed = CliRunner().invoke(main, ["providers", "-c", str(path)]).stdout
    assert "3846.25 (2.5 USD)  30000            1.5385 (0.001 USD)" in listed
    assert "3846.25 (2.5 USD)  923.1 (0.6 USD)  1.5385 (0.001 USD)" in listed
    assert listed.endswith("USD: as given, at 1538.5 sats\n")


def test_listing() -> None:
    """GET /providers has the amounts in USD beside those in sats, where they are given so."""
    found = provider_listing(configured(1000, input_rate_usd=2, output_rate=5))
    (provider,) = found["providers"]
    assert (found["sats_per_usd"], provider["input_rate_sats_per_1m"], provider["input_rate_usd_per_1m"]) == (
        1000,
        2000,
        2,
    )
    assert "output_rate_usd_per_1m" not in provider
    assert "sats_per_usd" not in provider_listing(configured(None))
