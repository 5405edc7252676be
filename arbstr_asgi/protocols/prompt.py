"""Reads the messages of a request. Never raises: validating them is left to the provider."""

from typing import TypeVar

import msgspec

from arbstr_asgi.protocols.json_edit import BOM, without_surrogates

MAX_OBJECTS = 100_000  # each becomes a Python object, which takes time
MAX_REPAIR_BYTES = 1024 * 1024
T = TypeVar("T")


class Message(msgspec.Struct, gc=False):
    """The members of a message that are read, as raw JSON."""

    role: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    content: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Prompt(msgspec.Struct, gc=False):
    """The members of a body that are read, as raw JSON; the last of duplicates."""

    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    max_tokens: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    max_completion_tokens: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Part(msgspec.Struct, gc=False):
    text: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_prompt = msgspec.json.Decoder(Prompt)
_messages = msgspec.json.Decoder(list[Message])
_parts = msgspec.json.Decoder(list[_Part])
_text = msgspec.json.Decoder(str)


def read(body: bytes) -> Prompt | None:
    """The prompt of a body, with escaped lone surrogates replaced; None where it can not be decoded."""
    return read_as(_prompt, body)


def read_as(decoder: msgspec.json.Decoder[T], body: bytes) -> T | None:
    """Decode a body with this decoder, with escaped lone surrogates replaced; None where it can not be decoded."""
    body = body.removeprefix(BOM)
    result = decoded(decoder, body)
    if result is None and len(body) <= MAX_REPAIR_BYTES and b"\\ud" in body.lower():
        result = decoded(decoder, without_surrogates(body))
    return result


def messages(prompt: Prompt) -> list[Message] | None:
    """The messages; None where they are no list of objects, or more than MAX_OBJECTS."""
    if prompt.messages is msgspec.UNSET:
        return []
    raw = bytes(prompt.messages)
    return None if raw.count(b"{") > MAX_OBJECTS else decoded(_messages, raw)


def content_texts(content: msgspec.Raw | msgspec.UnsetType) -> list[str | None] | None:
    """The texts of a message content, None for each part without text; None where it can not be decoded."""
    if content is msgspec.UNSET or bytes(content) == b"null":
        return []
    whole = text(content)
    if whole is not None:
        return [whole]
    raw = bytes(content)
    parts = decoded(_parts, raw) if raw.count(b"{") <= MAX_OBJECTS else None
    return None if parts is None else [text(part.text) for part in parts]


def text(raw: msgspec.Raw | msgspec.UnsetType) -> str | None:
    """The decoded string, None for any other type."""
    if raw is msgspec.UNSET:
        return None
    return decoded(_text, bytes(raw))


def decoded(decoder: msgspec.json.Decoder[T], raw: bytes) -> T | None:
    """The decoded value, None where decoding fails."""
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
