"""Estimates the tokens of a request before it is sent; extracts the texts that a provider counts."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from arbstr_asgi.protocols import prompt
from arbstr_asgi.protocols.chat import ChatRequest
from arbstr_asgi.protocols.json_edit import BOM
from arbstr_asgi.protocols.reply import Chunk, decode
from arbstr_asgi.protocols.sse import BLOCK_END, parse_block

BYTES_PER_TOKEN = 4
DEFAULT_OUTPUT_TOKENS = 256  # of an answer that the client has not limited
MAX_COUNT = 2**63 - 1
# What OpenAI has published of its counting: https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken
TOKENS_PER_MESSAGE = 3
TOKENS_PER_NAME = 1
TOKENS_BEFORE_REPLY = 3
_TEXT_KEYS = ("content", "reasoning_content", "reasoning", "refusal")
_COUNT = re.compile(rb"[1-9][0-9]{0,18}")
_UNSET = msgspec.UNSET


class Estimate(NamedTuple):
    """Estimated token counts."""

    input_tokens: int
    output_tokens: int


class PromptTexts(NamedTuple):
    """The texts of a request, and the tokens of the message format."""

    texts: list[str]
    overhead: int


class ReplyTexts(NamedTuple):
    """The text of each choice of a response, or of its beginning, and the number of events."""

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


_request = msgspec.json.Decoder(_Request)
_messages = msgspec.json.Decoder(list[_Message])


def estimate_tokens(request: ChatRequest) -> Estimate:
    """Input: bytes of the messages / BYTES_PER_TOKEN. Output: the limit in the request, else DEFAULT_OUTPUT_TOKENS.

    Text counts as its UTF-8, other content as its JSON. Where the messages can not be decoded, the whole body counts.
    """
    raw = prompt.read(request.body)
    if raw is None:
        return Estimate(_tokens(len(request.body)), DEFAULT_OUTPUT_TOKENS)
    messages = prompt.messages(raw)
    size = len(request.body) if messages is None else sum(_size(message.content) for message in messages)
    limit = _limit(raw.max_completion_tokens) or _limit(raw.max_tokens) or DEFAULT_OUTPUT_TOKENS
    return Estimate(_tokens(size), limit)


def _tokens(size: int) -> int:
    return max(1, size // BYTES_PER_TOKEN)


def _size(content: msgspec.Raw | msgspec.UnsetType) -> int:
    if content is msgspec.UNSET:
        return 0
    raw = bytes(content)
    if raw == b"null":
        return 0
    if not raw.startswith(b'"'):
        return len(raw)
    if b"\\" not in raw:
        return len(raw) - len(b'""')
    text = prompt.text(content)
    return len(raw) if text is None else len(text.encode())


def _limit(raw: msgspec.Raw | msgspec.UnsetType) -> int | None:
    """The value as a count; None if it is no positive 64-bit integer."""
    if raw is msgspec.UNSET or not _COUNT.fullmatch(raw):
        return None
    count = int(bytes(raw))
    return count if count <= MAX_COUNT else None


def prompt_texts(body: bytes) -> PromptTexts | None:
    """The texts of the messages and tools; None where they can not be decoded, or have other content than text."""
    request = prompt.read_as(_request, body)
    if request is None or request.messages is _UNSET:
        return None
    messages = prompt.decoded(_messages, bytes(request.messages))
    if messages is None:
        return None
    texts = [bytes(raw).decode() for raw in (request.tools, request.functions) if raw is not _UNSET]
    overhead = TOKENS_BEFORE_REPLY + TOKENS_PER_MESSAGE * len(messages)
    for message in messages:
        raw = _content(message.content)
        if raw is None:
            return None
        texts += raw
        texts += [text for raw in (message.role, message.name) if (text := prompt.text(raw)) is not None]
        texts += [bytes(raw).decode() for raw in (message.tool_calls, message.function_call) if raw is not _UNSET]
        overhead += TOKENS_PER_NAME if message.name is not _UNSET else 0
    return PromptTexts(texts, overhead)


def _content(raw: msgspec.Raw | msgspec.UnsetType) -> list[str] | None:
    """The texts of a message content; None where it has a part other than text, such as an image."""
    texts = prompt.content_texts(raw)
    return None if texts is None or None in texts else [text for text in texts if text is not None]


def reply_texts(sample: bytes, *, whole: bool) -> ReplyTexts | None:
    """The texts of a response of which `sample` is all (`whole`) or the beginning; None without any choice."""
    sample = sample.removeprefix(BOM)
    if sample.lstrip().startswith(b"{"):
        document = decode(sample) if whole else None
        chunks = [] if document is None else [document]
    else:
        chunks = list(_events(sample, whole=whole))
    texts: dict[object, list[str]] = {}
    for chunk in chunks:
        for position, choice in enumerate(chunk.choices if isinstance(chunk.choices, list) else []):
            if isinstance(choice, dict):
                index = choice.get("index")
                texts.setdefault(index if isinstance(index, int) else position, []).extend(_choice_texts(choice))
    return ReplyTexts(["".join(pieces) for pieces in texts.values()], len(chunks)) if texts else None


def _events(sample: bytes, *, whole: bool) -> Iterator[Chunk]:
    offset = 0
    while offset < len(sample):
        end = BLOCK_END.search(sample, offset)
        if end is None and not whole:
            return
        block = parse_block(sample[offset:] if end is None else sample[offset : end.end()])
        offset = len(sample) if end is None else end.end()
        if block.data is None:
            continue
        if block.data.strip().startswith(b"[DONE]"):
            return
        chunk = decode(block.data)
        if chunk is not None:
            yield chunk


def _choice_texts(choice: dict[str, Any]) -> Iterator[str]:
    """The texts of a choice: content, reasoning, refusal, tool calls."""
    raw = choice.get("delta") or choice.get("message")
    if not isinstance(raw, dict):
        raw = {"content": choice.get("text")}
    for key in _TEXT_KEYS:
        yield from _strings(raw.get(key))
    calls = raw.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, raw.get("function_call")):
        if isinstance(function, dict):
            yield from _strings(function.get("name"))
            yield from _strings(function.get("arguments"))


def _strings(raw: object) -> Iterator[str]:
    if isinstance(raw, str):
        yield raw
    elif isinstance(raw, list):
        for part in raw:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]
