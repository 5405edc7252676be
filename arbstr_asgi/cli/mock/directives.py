"""Directives that control a mock provider, in the text of the last user message.

`[mock: stall]` is for both providers, `[mock-cheap: 503]` for one; several words, as in `[mock: slow no-usage]`, and
several brackets are combined.
"""

import re
from collections.abc import Iterator
from typing import Any

CHEAP, EXPENSIVE = "mock-cheap", "mock-expensive"
BOTH = "mock"
STATUS = re.compile(r"[45][0-9][0-9]")
ANY_STATUS = "400-599"
WORDS = {
    "reset": "closes the connection without an answer",
    "stall": "says nothing for 30 s",
    "hang": "stops in the middle for 30 s",
    "cut": "closes the connection in the middle",
    "slow": "takes its time: five words a second",
    "error-event": "begins with an error, under status 200",
    "late-error": "ends in the middle with an error, under status 200",
    "no-usage": "does not say what it used",
    "usage-everywhere": "says in every event what it has used so far",
    "no-done": "ends a stream without [DONE]",
    "comments": "puts a comment before every event",
}
MEANINGS = {ANY_STATUS: "answers with this status and an error", **WORDS}

_DIRECTIVE = re.compile(r"\[(mock[\w-]*):([^\][]*)\]")


class UnknownDirective(ValueError):
    """An unknown directive; the message lists all that exist."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"mock: {text[:40]!r} is not understood. Say [{BOTH}: WORD], [{CHEAP}: WORD] or [{EXPENSIVE}: WORD]; "
            f"the words: {', '.join(MEANINGS)}"
        )


def directives(messages: Any, name: str) -> frozenset[str]:
    """The directives for the provider `name`. Raises UnknownDirective, also for those of another provider."""
    active_words: set[str] = set()
    for target, text in _DIRECTIVE.findall(_last_user_message(messages)):
        if target not in (BOTH, CHEAP, EXPENSIVE):
            raise UnknownDirective(target)
        words = text.replace(",", " ").split()
        for word in words or [""]:
            if word not in WORDS and not STATUS.fullmatch(word):
                raise UnknownDirective(word)
        if target in (BOTH, name):
            active_words.update(words)
    return frozenset(active_words)


def status(active: frozenset[str]) -> int | None:
    """The error status to respond with; None: 200."""
    return max((int(word) for word in active if STATUS.fullmatch(word)), default=None)


def _last_user_message(messages: Any) -> str:
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            return "\n".join(_texts(message.get("content")))
    return ""


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]
