"""Django's ASGI application with the gateway around it: POST /v1/chat/completions for whoever has a session."""

import os
from collections.abc import MutableMapping
from importlib import import_module
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import parse_cookie

from arbstr_asgi import ArbstrError, ArbstrMiddleware, Config, DatabaseConfig, Provider

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_project.settings")

config = Config(
    providers=(
        Provider(
            name="upstream",
            url=os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8080/v1"),  # arbstr serve --mock
            api_key=os.environ.get("UPSTREAM_KEY") or None,
        ),
    ),
    database=DatabaseConfig(url=os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///django_project.db")),
)


def who(scope: MutableMapping[str, Any]) -> str:
    """The user of Django's session. The gateway is outside Django's middleware, so it opens the session itself.

    A signed cookie needs no I/O. With sessions in a database, make this `async def` and use `await store.aget(…)`.
    """
    cookies = parse_cookie("; ".join(v.decode("latin-1") for k, v in scope["headers"] if k == b"cookie"))
    store = import_module(settings.SESSION_ENGINE).SessionStore(cookies.get(settings.SESSION_COOKIE_NAME))
    user = store.get("user")
    if user is None:
        raise ArbstrError(401, "Log in first.", type="authentication_error", code="no_session")
    return str(user)


application = ArbstrMiddleware(get_asgi_application(), config, identify=who)
