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
DEFAULT_OUTPUT_TOKENS = 256  # of a response that the client has not limited
MAX_COUNT = 2**63 - 1
# As published by OpenAI: https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken
TOKENS_PER_MESSAGE = 3
TOKENS_PER_NAME = 1
TOKENS_BEFORE_REPLY = 3
MIN_REPEATED_TEXTS = 4  # of a choice; fewer may occur again by chance
_MESSAGE_KEYS = ("delta", "message", "text")
_TEXT_KEYS = ("content", "reasoning_content", "reasoning", "refusal")

_COUNT = re.compile(rb"[1-9][0-9]{0,18}")
_UNSET = msgspec.UNSET


class Estimate(NamedTuple):
    """Estimated token counts."""

    input_tokens: int
    output_tokens: int


def estimate_tokens(request: ChatRequest) -> Estimate:
    """Input: bytes of the messages / BYTES_PER_TOKEN. Output: the limit in the request, else DEFAULT_OUTPUT_TOKENS.

    Text counts as its UTF-8, other content as its JSON. Where the messages can not be decoded, the whole body counts.
    """
    fields = prompt.read(request.body)
    if fields is None:
        return Estimate(_tokens(len(request.body)), DEFAULT_OUTPUT_TOKENS)
    messages = prompt.messages(fields)
    size = len(request.body) if messages is None else sum(_size(message.content) for message in messages)
    limit = _limit(fields.max_completion_tokens) or _limit(fields.max_tokens) or DEFAULT_OUTPUT_TOKENS
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


class _Part(msgspec.Struct, gc=False):
    text: msgspec.Raw


_request = msgspec.json.Decoder(_Request)
_messages = msgspec.json.Decoder(list[_Message])
_parts = msgspec.json.Decoder(list[_Part])


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
        content = _content(message.content)
        if content is None:
            return None
        texts += content
        texts += [text for raw in (message.role, message.name) if (text := prompt.text(raw)) is not None]
        texts += [bytes(raw).decode() for raw in (message.tool_calls, message.function_call) if raw is not _UNSET]
        overhead += TOKENS_PER_NAME if message.name is not _UNSET else 0
    return PromptTexts(texts, overhead)


def _content(raw: msgspec.Raw | msgspec.UnsetType) -> list[str] | None:
    """The texts of a message content; None where it has a part other than text, such as an image."""
    if raw is _UNSET or bytes(raw) == b"null":
        return []
    whole = prompt.text(raw)
    if whole is not None:
        return [whole]
    parts = prompt.decoded(_parts, bytes(raw))
    texts = [prompt.text(part.text) for part in parts or ()]
    return None if parts is None or None in texts else [text for text in texts if text is not None]


def reply_texts(sample: bytes, *, whole: bool) -> ReplyTexts | None:
    """The texts of a response of which `sample` is all (`whole`) or the beginning; None without any choice."""
    sample = sample.removeprefix(BOM)
    if sample.lstrip().startswith(b"{"):
        document = decode(sample) if whole else None
        chunks = [] if document is None else [document]
    else:
        chunks = list(_events(sample, whole=whole))
    choice_texts: dict[object, _ChoiceText] = {}
    for chunk in chunks:
        for position, choice in enumerate(chunk.choices if isinstance(chunk.choices, list) else []):
            if isinstance(choice, dict):
                index = choice.get("index")
                choice_texts.setdefault(index if isinstance(index, int) else position, _ChoiceText()).add(choice)
    if not choice_texts:
        return None
    return ReplyTexts([choice_text.text() for choice_text in choice_texts.values()], len(chunks))


def _events(sample: bytes, *, whole: bool) -> Iterator[Chunk]:
    at = 0
    while at < len(sample):
        end = BLOCK_END.search(sample, at)
        last = len(sample) if whole else max(sample.rfind(b"\n"), sample.rfind(b"\r")) + 1
        block = parse_block(sample[at:last] if end is None else sample[at : end.end()])
        at = len(sample) if end is None else end.end()
        if block.data is None:
            continue
        chunk = decode(block.data)
        for data in (
            [block.data] if chunk is not None else block.data.split(b"\n")
        ):  # without blank lines, each line is an event
            if data.strip().startswith(b"[DONE]"):
                return
            chunk = chunk or decode(data)
            if chunk is not None:
                yield chunk
            chunk = None


class _ChoiceText:
    """Collects the text of one choice; a text that occurs under several keys counts once."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[str]] = {}  # by key: a last chunk may repeat the deltas as `message`
        self._size = 0

    def add(self, choice: dict[str, Any]) -> None:
        """Add the choice of the next chunk."""
        for key in _MESSAGE_KEYS:
            message = choice.get(key)
            if not message:
                continue
            pieces = list(_message_texts(message if isinstance(message, dict) else {"content": message}))
            if key == "message":  # the whole text so far
                self._pieces[key] = pieces
            elif not self._repeats(pieces):
                self._pieces.setdefault(key, []).extend(pieces)
                self._size += sum(map(len, pieces))

    def text(self) -> str:
        """The text of all chunks."""
        return "".join(next((pieces for key in _MESSAGE_KEYS if (pieces := self._pieces.get(key))), []))

    def _repeats(self, pieces: list[str]) -> bool:
        """Whether they equal all earlier deltas, as the last delta of some providers does."""
        previous = self._pieces.get("delta", [])
        if len(previous) < MIN_REPEATED_TEXTS or sum(map(len, pieces)) != self._size:
            return False
        return "".join(pieces) == "".join(previous)


def _message_texts(message: dict[str, Any]) -> Iterator[str]:
    """The texts of a message or delta: content, reasoning, refusal, tool calls; a text under several keys once."""
    texts = ["".join(_strings(message.get(key))) for key in _TEXT_KEYS]
    yield from dict.fromkeys(texts)
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    legacy = message.get("function_call")
    for function in functions if legacy in functions else (*functions, legacy):
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
