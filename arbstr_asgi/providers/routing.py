"""Routing: which providers can serve a request, cheapest first, and which policy applies."""

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from arbstr_asgi.config.policies import Policies, Rule
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import RequestError, quotable
from arbstr_asgi.protocols import prompt
from arbstr_asgi.protocols.chat import MAX_MODEL_CHARACTERS, ChatRequest
from arbstr_asgi.protocols.token_estimate import Estimate, estimate_tokens
from arbstr_asgi.providers.pricing import cost_estimate

MAX_SCANNED = 1024 * 1024  # characters
_ZERO = Decimal(0)


class PolicyMatcher:
    """Finds the rule of a request, by the name in a header or by keywords in its last user message.

    Keywords match as whole words, case-insensitive; letters, digits and `_` of Unicode are word characters. A rule
    without keywords applies by name only.
    """

    def __init__(self, policies: Policies) -> None:
        self._by_name = {rule.name: rule for rule in policies.rules}
        keywords_by_rule = (
            (rule, [keyword.casefold().strip() for keyword in rule.keywords]) for rule in policies.rules
        )
        compiled = (
            (rule, [_Keyword(keyword) for keyword in keywords if keyword]) for rule, keywords in keywords_by_rule
        )
        self._by_keyword = [(rule, keywords) for rule, keywords in compiled if keywords]

    def match(self, request: ChatRequest, name: str | None) -> Rule | None:
        """The rule called `name`; without a name the first with a keyword in the last user message, or None.

        Raises RequestError (400) for an unknown name.
        """
        if name is not None:
            named = self._by_name.get(name)
            if named is None:
                raise RequestError(400, f"Policy '{quotable(name)}' is unknown.", code="unknown_policy")
            return named
        if not self._by_keyword:
            return None
        text = _last_user_message(request.body)[:MAX_SCANNED].casefold()
        for rule, keywords in self._by_keyword:
            if any(keyword.matches(text) for keyword in keywords):
                return rule
        return None


class _Keyword:
    """A phrase to find as whole words, case-insensitive."""

    __slots__ = ("_keyword", "_pattern")

    def __init__(self, keyword: str) -> None:
        self._keyword = keyword
        escaped = re.escape(keyword)
        # The literal comes first, so that the search is linear.
        self._pattern = re.compile(rf"{escaped}(?<!\w{escaped})(?!\w)")

    def matches(self, text: str) -> bool:
        return self._keyword in text and self._pattern.search(text) is not None


def _last_user_message(body: bytes) -> str:
    """The text of the last user message, "" where there is none or it can not be decoded."""
    keywords_by_rule = prompt.read(body)
    messages = None if keywords_by_rule is None else prompt.messages(keywords_by_rule)
    for message in reversed(messages or []):
        if prompt.text(message.role) == "user":
            texts = prompt.content_texts(message.content) or []
            return "\n".join(text for text in texts if text is not None)
    return ""


class Candidate(NamedTuple):
    """A provider that may answer."""

    provider: Provider
    model: str
    """The model name sent to this provider: its alias of the requested model."""
    cost: Decimal | None
    """The estimated cost of this request in sats; None: unknown, or not needed for a single candidate."""


def rank_providers(
    providers: Sequence[Provider], request: ChatRequest, rule: Rule | None = None, *, estimate: Estimate | None = None
) -> list[Candidate]:
    """The providers that serve the model within the rule, sorted by the estimated cost of this request, then by name.

    Providers without a known price come last. The estimate is computed here unless given, and only if several providers
    are left; a single one has cost None then. Raises RequestError: 404 where no provider serves the model, 400 where
    the rule allows no model or provider of it.
    """
    model = request.model
    candidates = [provider for provider in providers if provider.serves(model)]
    if not candidates:
        raise model_not_found(model)
    if rule is not None:
        candidates = _apply_rule(candidates, model, rule)
    if estimate is None:
        if len(candidates) == 1:
            [provider] = candidates
            return [Candidate(provider, provider.aliases.get(model, model), None)]
        estimate = estimate_tokens(request)
    priced = []
    for provider in candidates:
        target = provider.aliases.get(model, model)
        priced.append(Candidate(provider, target, cost_estimate(estimate, provider.rates(model, target))))
    return sorted(priced, key=_rank)


def model_not_found(model: str) -> RequestError:
    """The error (404) for a model that no provider serves; it names the model as JSON, cut to 255 characters."""
    message = f"No provider is configured for the model {json.dumps(model[:MAX_MODEL_CHARACTERS])}."
    return RequestError(404, message, param="model", code="model_not_found")


def _rank(candidate: Candidate) -> tuple[bool, Decimal, str]:
    return candidate.cost is None, candidate.cost or _ZERO, candidate.provider.name


def _apply_rule(providers: list[Provider], model: str, rule: Rule) -> list[Provider]:
    if rule.allowed_models and model not in rule.allowed_models:
        message = f"Model '{quotable(model)}' is not allowed by policy '{quotable(rule.name)}'."
        raise RequestError(400, message, param="model", code="model_not_allowed")
    candidates = [provider for provider in providers if _allows(rule, provider, model)]
    if not candidates:
        message = f"No provider of this model is within policy '{quotable(rule.name)}'."
        raise RequestError(400, message, code="no_provider_within_policy")
    return candidates


def _allows(rule: Rule, provider: Provider, model: str) -> bool:
    if rule.allowed_providers and provider.name not in rule.allowed_providers:
        return False
    rates = provider.rates(model, provider.aliases.get(model))
    return _within_cap(rates.input_rate, rule.max_sats_per_1m_input) and _within_cap(
        rates.output_rate, rule.max_sats_per_1m_output
    )


def _within_cap(rate: Decimal | int | None, cap: Decimal | int | None) -> bool:
    return cap is None or (rate is not None and rate <= cap)
