"""Which providers may answer a request, the cheapest first, and which policy applies to it."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import msgspec

from arbstr_asgi.config.policies import Policies, Rule
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import RequestError, quotable
from arbstr_asgi.protocols import prompt
from arbstr_asgi.protocols.chat import ChatRequest
from arbstr_asgi.protocols.token_estimate import Estimate, estimate_tokens
from arbstr_asgi.providers.pricing import cost_estimate

MAX_SCANNED = 1024 * 1024  # characters


_NOTHING = Decimal(0)


class Candidate(NamedTuple):
    """A provider that may answer."""

    provider: Provider
    model: str
    """What this provider is asked for: its alias of the model that the client named."""
    cost: Decimal | None
    """What this request will cost, in sats, by an estimate; None: unknown, or there was nothing to compare."""


def rank_providers(
    providers: Sequence[Provider], request: ChatRequest, rule: Rule | None = None, *, estimate: Estimate | None = None
) -> list[Candidate]:
    """The providers that serve the request's model within the rule, by what this request will cost, then by name.

    A provider whose price is unknown comes last. The estimate is made here where none is given and several providers
    are left; with a single one and no estimate, its cost is None. Raises RequestError: 404 where nobody serves the
    model, 400 where the rule does not allow it or leaves nobody.
    """
    model = request.model
    found = [provider for provider in providers if provider.serves(model)]
    if not found:
        raise RequestError(404, "No provider is configured for this model.", param="model", code="model_not_found")
    if rule is not None:
        found = _within(found, model, rule)
    if estimate is None:
        if len(found) == 1:
            [only] = found
            return [Candidate(only, only.aliases.get(model, model), None)]
        estimate = estimate_tokens(request)
    priced = []
    for provider in found:
        target = provider.aliases.get(model, model)
        priced.append(Candidate(provider, target, cost_estimate(estimate, provider.rates(model, target))))
    return sorted(priced, key=_rank)


def _rank(candidate: Candidate) -> tuple[bool, Decimal, str]:
    return candidate.cost is None, candidate.cost or _NOTHING, candidate.provider.name


def _within(providers: list[Provider], model: str, rule: Rule) -> list[Provider]:
    if rule.allowed_models and model not in rule.allowed_models:
        message = f"Model '{quotable(model)}' is not allowed by policy '{quotable(rule.name)}'."
        raise RequestError(400, message, param="model", code="model_not_allowed")
    found = [provider for provider in providers if _allows(rule, provider, model)]
    if not found:
        message = f"No provider of this model is within policy '{quotable(rule.name)}'."
        raise RequestError(400, message, code="no_provider_within_policy")
    return found


def _allows(rule: Rule, provider: Provider, model: str) -> bool:
    if rule.allowed_providers and provider.name not in rule.allowed_providers:
        return False
    rates = provider.rates(model, provider.aliases.get(model))
    return _below(rates.input_rate, rule.max_sats_per_1m_input) and _below(
        rates.output_rate, rule.max_sats_per_1m_output
    )


def _below(rate: Decimal | int | None, cap: Decimal | int | None) -> bool:
    return cap is None or (rate is not None and rate <= cap)


class _Part(msgspec.Struct, gc=False):
    text: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_parts = msgspec.json.Decoder(list[_Part])


class _Keyword:
    """Words that a text may hold as whole words, in any case."""

    __slots__ = ("_pattern", "_words")

    def __init__(self, words: str) -> None:
        self._words = words
        escaped = re.escape(words)
        # The words come first, so that the search is for a literal, and linear.
        self._pattern = re.compile(rf"{escaped}(?<!\w{escaped})(?!\w)")

    def is_in(self, folded: str) -> bool:
        return self._words in folded and self._pattern.search(folded) is not None


class PolicyMatcher:
    """Finds a request's rule, by the name that a header gives or by the words of its last user message.

    A keyword is met as whole words, in any case; Unicode's letters, digits and `_` make words. A rule without keywords
    is only for those who name it.
    """

    def __init__(self, policies: Policies) -> None:
        self._by_name = {rule.name: rule for rule in policies.rules}
        said = ((rule, [words.casefold().strip() for words in rule.keywords]) for rule in policies.rules)
        kept = ((rule, [_Keyword(words) for words in keywords if words]) for rule, keywords in said)
        self._by_words = [(rule, keywords) for rule, keywords in kept if keywords]

    def match(self, request: ChatRequest, name: str | None) -> Rule | None:
        """The rule called `name`; without a name the first that has a keyword in the last user message, if any.

        Raises RequestError (400) for a name that no rule has.
        """
        if name is not None:
            named = self._by_name.get(name)
            if named is None:
                raise RequestError(400, f"Policy '{quotable(name)}' is unknown.", code="unknown_policy")
            return named
        if not self._by_words:
            return None
        folded = _last_user_message(request.body)[:MAX_SCANNED].casefold()
        for rule, keywords in self._by_words:
            if any(keyword.is_in(folded) for keyword in keywords):
                return rule
        return None


def _last_user_message(body: bytes) -> str:
    """The text of the last user message, "" where there is none or it can't be read."""
    said = prompt.read(body)
    messages = None if said is None else prompt.messages(said)
    for message in reversed(messages or []):
        if prompt.text(message.role) == "user":
            return _text(message.content)
    return ""


def _text(content: msgspec.Raw | msgspec.UnsetType) -> str:
    whole = prompt.text(content)
    if whole is not None or content is msgspec.UNSET:
        return whole or ""
    said = bytes(content)
    parts = prompt.decoded(_parts, said) if said.count(b"{") <= prompt.MAX_OBJECTS else None
    return "\n".join(text for part in parts or [] if (text := prompt.text(part.text)) is not None)
