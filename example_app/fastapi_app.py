"""FastAPI: metered chat behind the app's own login, and a page on which each user sees what they spent."""

import os
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated, Any

from databases import Database
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection

from arbstr_asgi import Arbstr, ArbstrError, ArbstrMiddleware, Caller, Config, DatabaseConfig, Provider

DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///fastapi_app.db")

config = Config(
    providers=(
        Provider(
            name="upstream",
            url=os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8080/v1"),  # arbstr serve --mock
            api_key=os.environ.get("UPSTREAM_KEY") or None,
            input_rate=Decimal(10_000),  # sats per 1M tokens
            output_rate=Decimal(30_000),
            base_fee=Decimal(1),
        ),
    ),
    database=DatabaseConfig(url=DATABASE_URL),
    metering="require",  # users pay by these rows, so none may opt out of being counted
)


class User(BaseUser):
    """Somebody who has logged in."""

    def __init__(self, name: str, team: str, *, may_chat: bool) -> None:
        self.name = name
        self.team = team
        self.may_chat = may_chat

    @property
    def is_authenticated(self) -> bool:
        """Always: others are never made."""
        return True

    @property
    def display_name(self) -> str:
        """What the pages call them."""
        return self.name


USERS = {  # bearer token -> user; a real app asks its database, or checks a signature
    "alice-token": User("alice", "research", may_chat=True),
    "bob-token": User("bob", "sales", may_chat=True),
    "carol-token": User("carol", "sales", may_chat=False),
}


class BearerLogin(AuthenticationBackend):
    """Puts the user of an `Authorization: Bearer …` into `scope["user"]`."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """The user, or None for a stranger."""
        user = USERS.get(conn.headers.get("authorization", "").removeprefix("Bearer "))
        return None if user is None else (AuthCredentials(["authenticated"]), user)


def who(scope: MutableMapping[str, Any]) -> Caller:
    """Who a call is for: what the login middleware has found."""
    user = scope["user"]
    if not isinstance(user, User):
        raise ArbstrError(401, "Log in first.", type="authentication_error", headers={"www-authenticate": "Bearer"})
    if not user.may_chat:
        raise ArbstrError(403, "Your plan has no chat.", type="permission_error", code="no_plan")
    return Caller(end_user=user.name, tenant=user.team)


def current_user(request: Request) -> User:
    """The same login, as a dependency for the app's own routes."""
    if not isinstance(request.user, User):
        raise HTTPException(401, "Log in first.", headers={"www-authenticate": "Bearer"})
    return request.user


CurrentUser = Annotated[User, Depends(current_user)]

llm = Arbstr(config)  # for /my/chat; no `identify`, because the route's dependency has asked already
database = Database(DATABASE_URL)  # the app's own connection, to read what the ledger wrote


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the ledger first and close it last."""
    async with llm.lifespan(app), database:
        yield


app = FastAPI(lifespan=lifespan)

# The order matters. Starlette puts what is added last outermost, and ArbstrMiddleware answers its path itself: only a
# login that is added after it has run when a chat completion arrives.
app.add_middleware(ArbstrMiddleware, config=config, identify=who)  # POST /v1/chat/completions
app.add_middleware(AuthenticationMiddleware, backend=BearerLogin())


@app.post("/my/chat")
async def chat(request: Request, user: CurrentUser) -> Response:
    """A chat completion on a route of the app, behind whatever it depends on."""
    if not user.may_chat:
        raise HTTPException(403, "Your plan has no chat.")
    return await llm.respond(request, caller=Caller(end_user=user.name, tenant=user.team, tags={"page": "my-chat"}))


@app.get("/my/spend")
async def spend(user: CurrentUser) -> list[dict[str, Any]]:
    """What the user has spent, by model. A call is in here a moment (50 ms) after it has ended.

    Amounts are exact in PostgreSQL and MySQL; SQLite stores them as exact text and adds them up as floats.
    """
    rows = await database.fetch_all(
        "SELECT model, COUNT(*) AS calls, SUM(input_tokens) AS input_tokens, SUM(output_tokens) AS output_tokens, "
        "SUM(cost_sats) AS cost_sats FROM requests "
        "WHERE end_user = :user AND end_reason <> 'in_flight' GROUP BY model ORDER BY model",
        {"user": user.name},
    )
    return [dict(row._mapping) for row in rows]
