"""What we know of a chat completion request, the one member we may add to it, and another model's name in it."""

import json

import msgspec

from arbstr_asgi.errors import RequestError
from arbstr_asgi.protocols import json_edit
from arbstr_asgi.protocols.json_edit import RawFields

MAX_MODEL_CHARACTERS = 255
INCLUDE_USAGE = b'"include_usage":true'


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request as the client sent it: the bytes, and the facts that decide its way."""

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

    Everything else is the provider's to judge. Raises RequestError (400).
    """
    try:
        if not body.isascii():
            body.decode()
        wire = json_edit.read_raw_fields(body)
    except msgspec.ValidationError:
        raise RequestError(400, "The request body must be a JSON object.", code="invalid_json") from None
    except UnicodeDecodeError:
        raise RequestError(400, "The request body is not valid UTF-8.", code="invalid_utf8") from None
    except RecursionError:
        raise RequestError(400, "The request body is nested too deeply.", code="invalid_json") from None
    except msgspec.MsgspecError:  # fine if escaped lone surrogates are the reason (clients that cut an emoji)
        found = json_edit.read_surrogates(body)
        if found is None:
            raise RequestError(400, "The request body is not valid JSON.", code="invalid_json") from None
        wire = found
    options = None if wire.stream_options is msgspec.UNSET else bytes(wire.stream_options)
    return ChatRequest(body=body, model=_model(wire), stream=_stream(wire), stream_options=options)


def _model(wire: RawFields) -> str:
    if wire.model is msgspec.UNSET:
        raise RequestError(400, "'model' is required.", param="model", code="missing_required_parameter")
    said = bytes(wire.model)
    if not said.startswith(b'"'):
        raise RequestError(400, "'model' must be a string.", param="model", code="invalid_type")
    try:
        model = _text.decode(said)
    except msgspec.MsgspecError:  # a lone surrogate
        model = str(json.loads(said))
    if len(model) > MAX_MODEL_CHARACTERS:
        raise RequestError(400, f"'model' is longer than {MAX_MODEL_CHARACTERS} characters.", param="model")
    return model


def _stream(wire: RawFields) -> bool:
    said = b"null" if wire.stream is msgspec.UNSET else bytes(wire.stream)
    if said not in (b"true", b"false", b"null"):
        raise RequestError(400, "'stream' must be a boolean.", param="stream", code="invalid_type")
    return said == b"true"


def ensure_stream_options(request: ChatRequest, *, require: bool = False) -> bytes:
    """The body to send: with `"stream_options": {"include_usage": true}` where the request streams.

    An `include_usage` that the client set stays, unless `require` overrides it; other members survive; what is not
    an object passes for the provider to judge (with `require`: RequestError). Returns `request.body` itself where
    nothing is to be added.
    """
    body, options = request.body, request.stream_options
    if not request.stream:
        return body
    if options is None:
        at = body.index(b"{") + 1
        return b"".join((body[:at], b'"stream_options":{', INCLUDE_USAGE, b"},", body[at:]))
    wanted = _with_usage(options, require=require)
    return body if wanted == options else json_edit.replace_value(body, "stream_options", options, wanted)


def _with_usage(options: bytes, *, require: bool) -> bytes:
    if options == b"null":
        return b"{" + INCLUDE_USAGE + b"}"
    if not options.startswith(b"{"):
        if require:
            raise RequestError(400, "'stream_options' must be an object.", param="stream_options")
        return options
    asked = _include_usage(options)
    if asked is None:
        return b"{" + INCLUDE_USAGE + (b"" if options[1:-1].isspace() or options == b"{}" else b",") + options[1:]
    if asked == b"null" or (require and asked != b"true"):
        return json_edit.replace_value(options, "include_usage", asked, b"true")
    return options


def _include_usage(options: bytes) -> bytes | None:
    try:
        asked = json_edit.read_raw_fields(options).include_usage
    except msgspec.MsgspecError:
        asked = (json_edit.read_surrogates(options) or RawFields()).include_usage
    return None if asked is msgspec.UNSET else bytes(asked)


def with_model(body: bytes, request: ChatRequest, model: str) -> bytes:
    """`body`, which is the request's or was made of it, with the value of its effective `model` replaced.

    Returns `body` itself where that is the model it names already. Raises RequestError (400) for a large body whose
    `model` can't be found cheaply.
    """
    if model == request.model:
        return body
    return json_edit.replace_value(body, "model", json_edit.member_value(body, "model"), json.dumps(model).encode())
