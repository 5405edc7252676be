"""The configured models, in the shape of GET /v1/models."""

from collections.abc import Sequence
from typing import Any

from arbstr_asgi.config.provider import Provider
from arbstr_asgi.protocols.chat import MAX_MODEL_CHARACTERS
from arbstr_asgi.providers.routing import model_not_found

OWNER = "arbstr"
CREATED = 0  # seconds since 1970; required by the schema, unknown here


def model_list(providers: Sequence[Provider]) -> dict[str, Any]:
    """Each model and alias once, in the order of the providers.

    For a provider without `models` only its aliases are known.
    """
    named = dict.fromkeys(model for provider in providers for model in (*provider.models, *provider.aliases))
    return {"object": "list", "data": [_model(name) for name in named]}


def model(providers: Sequence[Provider], name: str) -> dict[str, Any]:
    """One model; any name where a provider lists none. Raises RequestError (404) where no provider serves it."""
    if not 0 < len(name) <= MAX_MODEL_CHARACTERS or not any(provider.serves(name) for provider in providers):
        raise model_not_found(name)
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": OWNER}
