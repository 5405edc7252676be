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
MIN_REPEATED = 4  # parts; fewer may be said again by chance
_PLACES = ("delta", "message", "text")
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
    spoken: dict[object, _Spoken] = {}
    for chunk in chunks:
        for position, choice in enumerate(chunk.choices if isinstance(chunk.choices, list) else []):
            if isinstance(choice, dict):
                index = choice.get("index")
                spoken.setdefault(index if isinstance(index, int) else position, _Spoken()).add(choice)
    return ReplyTexts([one.text() for one in spoken.values()], len(chunks)) if spoken else None


def _events(kept: bytes, *, whole: bool) -> Iterator[Chunk]:
    at = 0
    while at < len(kept):
        end = BLOCK_END.search(kept, at)
        last = len(kept) if whole else max(kept.rfind(b"\n"), kept.rfind(b"\r")) + 1
        block = parse_block(kept[at:last] if end is None else kept[at : end.end()])
        at = len(kept) if end is None else end.end()
        if block.data is None:
            continue
        chunk = decode(block.data)
        for data in [block.data] if chunk is not None else block.data.split(b"\n"):  # events may be lines
            if data.strip().startswith(b"[DONE]"):
                return
            chunk = chunk or decode(data)
            if chunk is not None:
                yield chunk
            chunk = None


class _Spoken:
    """What one choice has said, each text once, whatever the number of names and places it comes under."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[str]] = {}  # by where they come from: what the last chunk repeats has its own
        self._size = 0

    def add(self, choice: dict[str, Any]) -> None:
        """Take in a choice of the next chunk."""
        for place in _PLACES:
            said = choice.get(place)
            if not said:
                continue
            pieces = list(_said(said if isinstance(said, dict) else {"content": said}))
            if place == "message":  # all of it, so far
                self._pieces[place] = pieces
            elif not self._repeats(pieces):
                self._pieces.setdefault(place, []).extend(pieces)
                self._size += sum(map(len, pieces))

    def text(self) -> str:
        """All of it."""
        return "".join(next((pieces for place in _PLACES if (pieces := self._pieces.get(place))), []))

    def _repeats(self, pieces: list[str]) -> bool:
        """Whether they are what has been said already, as some providers' last delta is."""
        before = self._pieces.get("delta", [])
        if len(before) < MIN_REPEATED or sum(map(len, pieces)) != self._size:
            return False
        return "".join(pieces) == "".join(before)


def _said(said: dict[str, Any]) -> Iterator[str]:
    """The texts of a message or its next part: what it says, thinks and calls; one that comes under several names
    comes once."""
    texts = ["".join(_strings(said.get(key))) for key in _KEYS]
    yield from dict.fromkeys(texts)
    calls = said.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    legacy = said.get("function_call")
    for function in functions if legacy in functions else (*functions, legacy):
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
