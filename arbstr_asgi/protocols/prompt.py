"""What a request says to the model, read without ever raising: the provider is the judge of it."""

from typing import TypeVar

import msgspec

from arbstr_asgi.protocols.json_edit import BOM, without_surrogates

MAX_OBJECTS = 100_000  # each message may be an object of ours, and takes its time
MAX_REPAIR_BYTES = 1024 * 1024
T = TypeVar("T")


class Message(msgspec.Struct, gc=False):
    """A message's members that matter, as their JSON."""

    role: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    content: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Prompt(msgspec.Struct, gc=False):
    """A body's members that matter, as their JSON; the last duplicate of each."""

    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    max_tokens: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    max_completion_tokens: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_prompt = msgspec.json.Decoder(Prompt)
_messages = msgspec.json.Decoder(list[Message])
_text = msgspec.json.Decoder(str)


def read(body: bytes) -> Prompt | None:
    """The prompt in a body, in which escaped lone surrogates are replaced; None where it can't be read."""
    return read_as(_prompt, body)


def read_as(decoder: msgspec.json.Decoder[T], body: bytes) -> T | None:
    """The same, as the decoder understands it."""
    body = body.removeprefix(BOM)
    found = decoded(decoder, body)
    if found is None and len(body) <= MAX_REPAIR_BYTES and b"\\ud" in body.lower():
        found = decoded(decoder, without_surrogates(body))
    return found


def messages(prompt: Prompt) -> list[Message] | None:
    """The messages, None where they are no list of objects or too many."""
    if prompt.messages is msgspec.UNSET:
        return []
    said = bytes(prompt.messages)
    return None if said.count(b"{") > MAX_OBJECTS else decoded(_messages, said)


def text(said: msgspec.Raw | msgspec.UnsetType) -> str | None:
    """The string that `said` is, else None."""
    if said is msgspec.UNSET:
        return None
    return decoded(_text, bytes(said))


def decoded(decoder: msgspec.json.Decoder[T], said: bytes) -> T | None:
    """What the decoder makes of it, None where that is nothing."""
    try:
        return decoder.decode(said)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
