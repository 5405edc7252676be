"""Who calls: a bearer token of the configuration, or whatever the host says."""

import hmac
import inspect
import json
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from arbstr_asgi._utils import MAX_NAME_CHARACTERS, is_name
from arbstr_asgi.config.settings import Server, token_bytes
from arbstr_asgi.errors import ArbstrError, ServerError
from arbstr_asgi.providers.headers import Headers

logger = logging.getLogger("arbstr_asgi")

MAX_TAGS_BYTES = 4096


class Caller(msgspec.Struct, frozen=True):
    """Who a call is for: columns of its row. `tags` is stored as JSON, at most 4 KiB.

    An `operator` may ask the ledger about everybody, an end user about itself.
    """

    end_user: str | None = None
    tenant: str | None = None
    tags: Mapping[str, Any] | None = None
    operator: bool = False

    def tags_json(self) -> str | None:
        """`tags` as JSON text; None, with a WARNING, for what can't be stored."""
        if not self.tags:
            return None
        try:
            text = json.dumps(dict(self.tags), ensure_ascii=False, allow_nan=False)
            if len(text.encode("utf-8", "replace")) <= MAX_TAGS_BYTES:
                return text
        except Exception:  # noqa: BLE001, S110 - the host's own mapping may raise anything
            pass
        logger.warning("a caller's tags were not recorded: they must be JSON of at most %d bytes", MAX_TAGS_BYTES)
        return None


Identity = str | Caller | None
Identify = Callable[[MutableMapping[str, Any]], Identity | Awaitable[Identity]]


def as_caller(identity: Identity) -> Caller:
    """A name or a Caller as a Caller. Raises TypeError for anything else."""
    if identity is None:
        return Caller()
    if isinstance(identity, str):
        return Caller(identity)
    if isinstance(identity, Caller):
        return identity
    raise TypeError(f"expected a name, a Caller or None, not {type(identity).__name__}")


def check_names(caller: Caller) -> Caller:
    """The caller itself. Raises ServerError (500), and logs why, where a name would have to be altered to be stored.

    Two names that are stored alike would read each other's rows.
    """
    for field in ("end_user", "tenant"):
        name = getattr(caller, field)
        if name is not None and not is_name(name):
            logger.error(
                "a caller's %s is refused, since names are never cut: a str of at most %d characters, without NUL and "
                "lone surrogates, is needed",
                field,
                MAX_NAME_CHARACTERS,
            )
            message = f"The caller's {field} is not a name that can be recorded."
            raise ServerError(message, status_code=500, code="invalid_caller_name")
    return caller


class Authenticator:
    """Tells who sent a request, or refuses it."""

    def __init__(self, server: Server, identify: Identify | None) -> None:
        self._identify = identify
        self._tokens = [
            (token_bytes(token.token), Caller(token.name, operator=token.operator)) for token in server.tokens
        ]
        if server.auth_token is not None:
            self._tokens.append((token_bytes(server.auth_token), Caller()))
        self.guarded = bool(self._tokens) or identify is not None or server.public

    async def identify(self, scope: MutableMapping[str, Any]) -> Caller:
        """The caller. Raises ArbstrError: 401 without a valid token, what `identify` raised, 500 if it failed."""
        holder = self._token_owner(scope)
        if self._identify is None:
            return holder
        try:
            identity = self._identify(scope)
            if inspect.isawaitable(identity):
                identity = await identity
            caller = as_caller(identity)
        except ArbstrError:
            raise
        except Exception as error:  # noqa: BLE001 - the host's code may raise anything
            # Neither the message nor the frames' text: both may hold what the client sent.
            at = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("identify failed: %s in %s, line %s", type(error).__name__, at.name, at.lineno)  # noqa: TRY400
            raise ServerError("The caller could not be identified.", status_code=500, code="identify_failed") from None
        return holder if identity is None else check_names(caller)

    def _token_owner(self, scope: Mapping[str, Any]) -> Caller:
        if not self._tokens:
            return Caller()
        scheme, _, given = (Headers(scope["headers"]).get(b"authorization") or "").partition(" ")
        token_sent, holder = given.strip(" \t").encode("latin-1"), None  # only these surround a header's value
        for token, caller in self._tokens:  # all of them, so that the time says nothing of which one is close
            if hmac.compare_digest(token, token_sent) and scheme.lower() == "bearer":
                holder = caller
        if holder is None:
            raise ArbstrError(
                401,
                "Invalid or missing bearer token.",
                type="authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return holder
