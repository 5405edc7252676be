"""The model's name that a provider is asked for, where it is not the client's."""

import json

from arbstr_asgi import splice
from arbstr_asgi.chat import ChatRequest


def with_model(body: bytes, request: ChatRequest, model: str) -> bytes:
    """`body`, which is the request's or was made of it, with the value of its effective `model` replaced.

    Returns `body` itself where that is the model it names already. Raises RequestError (400) for a large body whose
    `model` can't be found cheaply.
    """
    if model == request.model:
        return body
    return splice.replace_value(body, "model", splice.member_value(body, "model"), json.dumps(model).encode())
