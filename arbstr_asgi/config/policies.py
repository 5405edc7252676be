"""Policies: which models and providers a kind of request may use, and their maximum rates."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from arbstr_asgi.config.section import ConfigSection
from arbstr_asgi.config.validation import rate, strings
from arbstr_asgi.errors import ConfigError


class Rule(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One policy, selected by the header `X-Arbstr-Policy` or by one of its `keywords`, which match whole words.

    Empty lists allow every model and every provider. The maximum rates are sats per 1,000,000 tokens; a provider with
    an unknown rate exceeds any maximum.
    """

    name: str
    allowed_models: Sequence[str] = ()
    allowed_providers: Sequence[str] = ()
    max_sats_per_1m_input: Decimal | int | None = None
    max_sats_per_1m_output: Decimal | int | None = None
    keywords: Sequence[str] = ()
    strategy: Literal["cheapest"] = "cheapest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not self.name.isprintable() or len(self.name) > 255:
            raise ConfigError("name: must be 1 to 255 printable characters")
        for name in ("allowed_models", "allowed_providers", "keywords"):
            self._set(name, strings(name, getattr(self, name)))
        for name in ("max_sats_per_1m_input", "max_sats_per_1m_output"):
            self._set(name, rate(name, getattr(self, name)))


class Policies(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules; the first match applies."""

    rules: Sequence[Rule] = ()
    default_strategy: Literal["cheapest"] = "cheapest"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("rules", tuple(self.rules))
        names = [rule.name for rule in self.rules]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ConfigError(f"rules[{index}].name: {name!r} is used twice")
