"""Whether providers answer, in the shape of GET /health."""

from collections.abc import Mapping, Sequence
from typing import Any

from arbstr_asgi.config.provider import Provider


def health(providers: Sequence[Provider], states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The providers and their breakers' `states`, by name.

    The status is `ok`, `degraded` where a breaker is not closed, and `unhealthy` where each of them is open.
    """
    found = {provider.name: {**states[provider.name], "tier": provider.tier} for provider in providers}
    return {"status": _status({state["state"] for state in found.values()}), "providers": found}


def _status(states: set[str]) -> str:
    if states == {"open"}:
        return "unhealthy"
    return "ok" if states == {"closed"} else "degraded"
