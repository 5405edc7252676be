"""Parses chat completion requests, and edits two members of their bytes: `stream_options` and `model`."""

import json

import msgspec

from arbstr_asgi.errors import RequestError
from arbstr_asgi.protocols import json_edit
from arbstr_asgi.protocols.json_edit import RawFields

MAX_MODEL_CHARACTERS = 255
INCLUDE_USAGE = b'"include_usage":true'


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request as the client sent it: the bytes, and the members that routing needs."""

    body: bytes
    model: str
    stream: bool
    stream_options: bytes | None = None
    """The JSON of `stream_options`, None when the client sent none."""

    def __repr__(self) -> str:
        return f"<ChatRequest of {len(self.body)} bytes>"  # error trackers show the locals of a traceback


_text = msgspec.json.Decoder(str)


def parse(body: bytes) -> ChatRequest:
    """Check that `body` is a JSON object with a string `model` and a boolean, null or absent `stream`.

    All other members are left to the provider to validate. Raises RequestError (400).
    """
    try:
        if not body.isascii():
            body.decode()
        fields = json_edit.read_raw_fields(body)
    except msgspec.ValidationError:
        raise RequestError(400, "The request body must be a JSON object.", code="invalid_json") from None
    except UnicodeDecodeError:
        raise RequestError(400, "The request body is not valid UTF-8.", code="invalid_utf8") from None
    except RecursionError:
        raise RequestError(400, "The request body is nested too deeply.", code="invalid_json") from None
    except msgspec.MsgspecError:  # accepted if escaped lone surrogates are the reason (clients that cut an emoji)
        repaired = json_edit.read_surrogate_fields(body)
        if repaired is None:
            raise RequestError(400, "The request body is not valid JSON.", code="invalid_json") from None
        fields = repaired
    options = None if fields.stream_options is msgspec.UNSET else bytes(fields.stream_options)
    return ChatRequest(body=body, model=_model(fields), stream=_stream(fields), stream_options=options)


def _model(fields: RawFields) -> str:
    if fields.model is msgspec.UNSET:
        raise RequestError(400, "'model' is required.", param="model", code="missing_required_parameter")
    raw = bytes(fields.model)
    if not raw.startswith(b'"'):
        raise RequestError(400, "'model' must be a string.", param="model", code="invalid_type")
    try:
        model = _text.decode(raw)
    except msgspec.MsgspecError:  # a lone surrogate
        model = str(json.loads(raw))
    if len(model) > MAX_MODEL_CHARACTERS:
        raise RequestError(400, f"'model' is longer than {MAX_MODEL_CHARACTERS} characters.", param="model")
    return model


def _stream(fields: RawFields) -> bool:
    raw = b"null" if fields.stream is msgspec.UNSET else bytes(fields.stream)
    if raw not in (b"true", b"false", b"null"):
        raise RequestError(400, "'stream' must be a boolean.", param="stream", code="invalid_type")
    return raw == b"true"


def ensure_stream_options(request: ChatRequest, *, require: bool = False) -> bytes:
    """The body to send: a streaming request gets `"stream_options": {"include_usage": true}`.

    An `include_usage` set by the client is kept, unless `require` overrides it; other members are kept. A value that is
    not an object is passed for the provider to reject (with `require`: RequestError). Returns `request.body` itself
    where nothing changes.
    """
    body, options = request.body, request.stream_options
    if not request.stream:
        return body
    if options is None:
        at = body.index(b"{") + 1
        return b"".join((body[:at], b'"stream_options":{', INCLUDE_USAGE, b"},", body[at:]))
    new_options = _with_usage(options, require=require)
    return body if new_options == options else json_edit.replace_value(body, "stream_options", options, new_options)


def _with_usage(options: bytes, *, require: bool) -> bytes:
    if options == b"null":
        return b"{" + INCLUDE_USAGE + b"}"
    if not options.startswith(b"{"):
        if require:
            raise RequestError(400, "'stream_options' must be an object.", param="stream_options")
        return options
    requested = _include_usage(options)
    if requested is None:
        return b"{" + INCLUDE_USAGE + (b"" if options[1:-1].isspace() or options == b"{}" else b",") + options[1:]
    if requested == b"null" or (require and requested != b"true"):
        return json_edit.replace_value(options, "include_usage", requested, b"true")
    return options


def _include_usage(options: bytes) -> bytes | None:
    try:
        requested = json_edit.read_raw_fields(options).include_usage
    except msgspec.MsgspecError:
        requested = (json_edit.read_surrogate_fields(options) or RawFields()).include_usage
    return None if requested is msgspec.UNSET else bytes(requested)


def with_model(body: bytes, request: ChatRequest, model: str) -> bytes:
    """`body`, of this request, with the value of its effective `model` replaced.

    Returns `body` itself where the model is the same. Raises RequestError (400) for a large body in which `model` can
    not be located cheaply.
    """
    if model == request.model:
        return body
    return json_edit.replace_value(body, "model", json_edit.member_value(body, "model"), json.dumps(model).encode())
