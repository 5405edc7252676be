"""How many tokens a request will use, guessed before it is sent; and the texts that a provider would count."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from arbstr_asgi.protocols import prompt
from arbstr_asgi.protocols.chat import ChatRequest
from arbstr_asgi.protocols.json_edit import BOM
from arbstr_asgi.protocols.reply import Chunk, decode
from arbstr_asgi.protocols.sse import BLOCK_END, parse_block

BYTES_A_TOKEN = 4
OUTPUT_TOKENS = 256  # of an answer that the client has not limited
MAX_COUNT = 2**63 - 1
# What OpenAI has published of its counting: https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken
A_MESSAGE = 3
A_NAME = 1
THE_REPLY = 3
_KEYS = ("content", "reasoning_content", "reasoning", "refusal")


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


_UNSET = msgspec.UNSET


class PromptTexts(NamedTuple):
    """What a request says, and the tokens that come with its form."""

    texts: list[str]
    overhead: int


class ReplyTexts(NamedTuple):
    """What a reply, or its beginning, says: a text for each choice, and in how many events."""

    texts: list[str]
    events: int


class _Message(msgspec.Struct, gc=False):
    role: msgspec.Raw | msgspec.UnsetType = _UNSET
    name: msgspec.Raw | msgspec.UnsetType = _UNSET
    content: msgspec.Raw | msgspec.UnsetType = _UNSET
    tool_calls: msgspec.Raw | msgspec.UnsetType = _UNSET
    function_call: msgspec.Raw | msgspec.UnsetType = _UNSET


class _Request(msgspec.Struct, gc=False):
    messages: msgspec.Raw | msgspec.UnsetType = _UNSET
    tools: msgspec.Raw | msgspec.UnsetType = _UNSET
    functions: msgspec.Raw | msgspec.UnsetType = _UNSET


class _Part(msgspec.Struct, gc=False):
    text: msgspec.Raw


_request = msgspec.json.Decoder(_Request)
_messages = msgspec.json.Decoder(list[_Message])
_parts = msgspec.json.Decoder(list[_Part])


def prompt_texts(body: bytes) -> PromptTexts | None:
    """What a request's messages and tools say; None where they can't be read, or are not of text alone."""
    request = prompt.read_as(_request, body)
    if request is None or request.messages is _UNSET:
        return None
    messages = prompt.decoded(_messages, bytes(request.messages))
    if messages is None:
        return None
    texts = [bytes(said).decode() for said in (request.tools, request.functions) if said is not _UNSET]
    overhead = THE_REPLY + A_MESSAGE * len(messages)
    for message in messages:
        said = _content(message.content)
        if said is None:
            return None
        texts += said
        texts += [text for raw in (message.role, message.name) if (text := prompt.text(raw)) is not None]
        texts += [bytes(raw).decode() for raw in (message.tool_calls, message.function_call) if raw is not _UNSET]
        overhead += A_NAME if message.name is not _UNSET else 0
    return PromptTexts(texts, overhead)


def _content(said: msgspec.Raw | msgspec.UnsetType) -> list[str] | None:
    """The texts of a message; None where something else is among them, such as an image."""
    if said is _UNSET or bytes(said) == b"null":
        return []
    whole = prompt.text(said)
    if whole is not None:
        return [whole]
    parts = prompt.decoded(_parts, bytes(said))
    texts = [prompt.text(part.text) for part in parts or ()]
    return None if parts is None or None in texts else [text for text in texts if text is not None]


def reply_texts(kept: bytes, *, whole: bool) -> ReplyTexts | None:
    """What a reply says of which this has been kept; None where there is no choice in it."""
    kept = kept.removeprefix(BOM)
    if kept.lstrip().startswith(b"{"):
        document = decode(kept) if whole else None
        chunks = [] if document is None else [document]
    else:
        chunks = list(_events(kept, whole=whole))
    texts: dict[object, list[str]] = {}
    for chunk in chunks:
        for position, choice in enumerate(chunk.choices if isinstance(chunk.choices, list) else []):
            if isinstance(choice, dict):
                index = choice.get("index")
                texts.setdefault(index if isinstance(index, int) else position, []).extend(_said(choice))
    return ReplyTexts(["".join(pieces) for pieces in texts.values()], len(chunks)) if texts else None


def _events(kept: bytes, *, whole: bool) -> Iterator[Chunk]:
    at = 0
    while at < len(kept):
        end = BLOCK_END.search(kept, at)
        if end is None and not whole:
            return
        block = parse_block(kept[at:] if end is None else kept[at : end.end()])
        at = len(kept) if end is None else end.end()
        if block.data is None:
            continue
        if block.data.strip().startswith(b"[DONE]"):
            return
        chunk = decode(block.data)
        if chunk is not None:
            yield chunk


def _said(choice: dict[str, Any]) -> Iterator[str]:
    """The texts of a choice: what it says, thinks and calls."""
    said = choice.get("delta") or choice.get("message")
    if not isinstance(said, dict):
        said = {"content": choice.get("text")}
    for key in _KEYS:
        yield from _strings(said.get(key))
    calls = said.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, said.get("function_call")):
        if isinstance(function, dict):
            yield from _strings(function.get("name"))
            yield from _strings(function.get("arguments"))


def _strings(said: object) -> Iterator[str]:
    if isinstance(said, str):
        yield said
    elif isinstance(said, list):
        for part in said:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]
