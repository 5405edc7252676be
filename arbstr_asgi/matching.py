"""Which policy applies to a request."""

import re

import msgspec

from arbstr_asgi import prompt
from arbstr_asgi.chat import ChatRequest
from arbstr_asgi.config.policies import Policies, Rule
from arbstr_asgi.errors import RequestError, quotable

MAX_SCANNED = 1024 * 1024  # characters


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
