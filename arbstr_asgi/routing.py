"""Which providers may answer a request, best first."""

from collections.abc import Sequence

from arbstr_asgi.errors import RequestError
from arbstr_asgi.provider import Provider


def candidates(providers: Sequence[Provider], model: str) -> list[Provider]:
    """The providers that serve `model`, in the order of the configuration. Raises RequestError (404) for none."""
    found = [provider for provider in providers if provider.serves(model)]
    if not found:
        raise RequestError(404, "No provider is configured for this model.", param="model", code="model_not_found")
    return found
