"""How many tokens a request will use, guessed before it is sent."""

import re
from typing import NamedTuple

import msgspec

from arbstr_asgi import prompt
from arbstr_asgi.chat import ChatRequest

BYTES_A_TOKEN = 4
OUTPUT_TOKENS = 256  # of an answer that the client has not limited
MAX_COUNT = 2**63 - 1

_COUNT = re.compile(rb"[1-9][0-9]{0,18}")


class Estimate(NamedTuple):
    """Guessed counts of tokens."""

    input_tokens: int
    output_tokens: int


def estimate_tokens(request: ChatRequest) -> Estimate:
    """A token for four bytes of the messages' contents, and as many as the answer may have, else 256.

    Text counts as its UTF-8, everything else as its JSON. Where the messages can't be read, the whole body counts.
    """
    said = prompt.read(request.body)
    if said is None:
        return Estimate(_tokens(len(request.body)), OUTPUT_TOKENS)
    messages = prompt.messages(said)
    size = len(request.body) if messages is None else sum(_size(message.content) for message in messages)
    limit = _limit(said.max_completion_tokens) or _limit(said.max_tokens) or OUTPUT_TOKENS
    return Estimate(_tokens(size), limit)


def _tokens(size: int) -> int:
    return max(1, size // BYTES_A_TOKEN)


def _size(content: msgspec.Raw | msgspec.UnsetType) -> int:
    if content is msgspec.UNSET:
        return 0
    said = bytes(content)
    if said == b"null":
        return 0
    if not said.startswith(b'"'):
        return len(said)
    if b"\\" not in said:
        return len(said) - len(b'""')
    text = prompt.text(content)
    return len(said) if text is None else len(text.encode())


def _limit(said: msgspec.Raw | msgspec.UnsetType) -> int | None:
    """The count that `said` is; None if it is not one, or zero."""
    if said is msgspec.UNSET or not _COUNT.fullmatch(said):
        return None
    count = int(bytes(said))
    return count if count <= MAX_COUNT else None
