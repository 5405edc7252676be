"""Policies: which models and providers a kind of request may use, and their maximum rates."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from arbstr_asgi.config.section import ConfigSection
from arbstr_asgi.config.validation import rate, strings
from arbstr_asgi.errors import ConfigError


class Rule(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One policy, selected by the header `X-Arbstr-Policy` or by one of its `keywords`."""

    name: str
    """What the header `X-Arbstr-Policy` calls it, and the row."""
    allowed_models: Sequence[str] = ()
    """The models that such requests may ask for; none listed: all."""
    allowed_providers: Sequence[str] = ()
    """The providers that may answer; none listed: all."""
    max_sats_per_1m_input: Decimal | int | None = None
    """The highest `input_rate`; a provider whose rate is unknown exceeds it. Unit: sats per 1,000,000 tokens."""
    max_sats_per_1m_output: Decimal | int | None = None
    """The highest `output_rate`; a provider whose rate is unknown exceeds it. Unit: sats per 1,000,000 tokens."""
    keywords: Sequence[str] = ()
    """Whole words of the last user message that choose this policy where the header does not."""
    strategy: Literal["cheapest"] = "cheapest"
    """How the provider is chosen; there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not self.name.isprintable() or len(self.name) > 255:
            raise ConfigError("name: must be 1 to 255 printable characters")
        for name in ("allowed_models", "allowed_providers", "keywords"):
            self._set(name, strings(name, getattr(self, name)))
        for name in ("max_sats_per_1m_input", "max_sats_per_1m_output"):
            self._set(name, rate(name, getattr(self, name)))


class Policies(ConfigSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policies."""

    rules: Sequence[Rule] = ()
    """The policies; the first that matches applies."""
    default_strategy: Literal["cheapest"] = "cheapest"
    """The strategy where no policy applies; there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("rules", tuple(self.rules))
        names = [rule.name for rule in self.rules]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ConfigError(f"rules[{index}].name: {name!r} is used twice")
