"""The configured providers, in the shape of GET /providers and as table rows."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from arbstr_asgi.config.api_keys import masked
from arbstr_asgi.config.config import Config
from arbstr_asgi.config.provider import Provider, Rates

COLUMNS = ("name", "url", "models", "input", "output", "base", "key")
UNIT = "sats_per_1m_tokens"
_IN_USD = {"input_rate": "input_rate_usd_per_1m", "output_rate": "output_rate_usd_per_1m", "base_fee": "base_fee_usd"}


def provider_listing(config: Config, keys: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The providers and their rates, in sats per 1,000,000 tokens (`base_fee_sats` per request); None is unknown.

    Rates given in USD are listed in USD too, with `sats_per_usd`. `keys`, by provider name, are keys that are not in
    the configuration itself; of any key only the masked form is shown.
    """
    return {
        "providers": [_listing(provider, (keys or {}).get(provider.name)) for provider in config.providers],
        "rate_unit": UNIT,
        **({} if config.sats_per_usd is None else {"sats_per_usd": config.sats_per_usd}),
    }


def _listing(provider: Provider, key: str | None) -> dict[str, Any]:
    return {
        "name": provider.name,
        "url": provider.url,
        "models": list(provider.models),
        "input_rate_sats_per_1m": provider.input_rate,
        "output_rate_sats_per_1m": provider.output_rate,
        "base_fee_sats": provider.base_fee,
        **{_IN_USD[name]: usd for name, usd in provider.usd.items() if name in _IN_USD},
        "model_rate_count": len(provider.model_rates),
        "tier": provider.tier,
        "source": None,
        "provider_id": None,
        "routable": True,
        "has_api_key": provider.has_key,
        "api_key": masked(provider.api_key) or masked(key),
    }


def provider_rows(config: Config, keys: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each provider, and one below it for each model with its own rates.

    `keys` are the descriptions of each provider's key.
    """
    rows = []
    for provider, key in zip(config.providers, keys, strict=True):
        models = ", ".join(provider.models) or "every model"
        rows.append({"name": provider.name, "url": provider.url, "models": models, **_rates(provider), "key": key})
        for model, rates in provider.model_rates.items():
            rows.append({"name": "", "url": "", "models": model, **_rates(rates), "key": ""})
    return rows


def usd_rate_lines(provider: Provider) -> list[str]:
    """One line for the provider and one for each model with its own rates: the rates given in USD, in both units."""
    charges_by_name: dict[str, Provider | Rates] = {provider.name: provider}
    charges_by_name |= {f"{provider.name}, {model}": rates for model, rates in provider.model_rates.items()}
    lines = []
    for name, charges in charges_by_name.items():
        rates = [f"{rate} {_both_units(getattr(charges, rate), usd)}" for rate, usd in charges.usd.items()]
        if rates:
            lines.append(f"{name}: {', '.join(rates)}")
    return lines


def _rates(rates: Provider | Rates) -> dict[str, Any]:
    named = {"input": "input_rate", "output": "output_rate", "base": "base_fee"}
    return {column: _rate_text(rates, name) for column, name in named.items()}


def _rate_text(rates: Provider | Rates, name: str) -> Decimal | str | None:
    sats: Decimal | None = getattr(rates, name)
    return sats if sats is None or name not in rates.usd else f"{_plain(sats)} ({_plain(rates.usd[name])} USD)"


def _both_units(sats: Decimal, usd: Decimal) -> str:
    return f"{_plain(sats)} sats ({_plain(usd)} USD)"


def _plain(amount: Decimal) -> str:
    return f"{amount.normalize():f}"
