"""FastAPI and SQLAlchemy: users are a table of the app's, calls are rows beside it, and a page joins the two."""

import os
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import String, select, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.datastructures import Headers

from arbstr_asgi import ArbstrError, ArbstrMiddleware, Caller, Config, DatabaseConfig, Provider

DATABASE_URL = os.environ["DATABASE_URL"]  # postgresql+asyncpg://user:password@host/name
engine = create_async_engine(DATABASE_URL, pool_size=5)
session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The app's own tables."""


class User(Base):
    """Somebody who may chat."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    team: Mapped[str] = mapped_column(String(100))
    token: Mapped[str] = mapped_column(String(100), unique=True)  # a real app keeps a hash of it


async def user_of(token: str) -> User | None:
    """The user with this token."""
    async with session() as opened:
        return await opened.scalar(select(User).where(User.token == token))


async def who(scope: MutableMapping[str, Any]) -> Caller:
    """The end user of a call: the app's own user."""
    user = await user_of(Headers(scope=scope).get("authorization", "").removeprefix("Bearer "))
    if user is None:
        raise ArbstrError(401, "Log in first.", type="authentication_error")
    return Caller(end_user=user.name, tenant=user.team)


config = Config(
    providers=[
        Provider(
            name="upstream",
            url=os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8080/v1"),  # arbstr serve --mock
            api_key=os.environ.get("UPSTREAM_KEY"),
            input_rate_usd=Decimal("0.15"),
            output_rate_usd=Decimal("0.60"),
        )
    ],
    sats_per_usd=1_500,
    database=DatabaseConfig(url=DATABASE_URL, table_prefix="arbstr_"),
    metering="require",
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the table and two users; a real app has Alembic for the one, and a sign-up for the other."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with session.begin() as opened:
        await opened.merge(User(name="alice", team="research", token="alice-token"))
        await opened.merge(User(name="bob", team="sales", token="bob-token"))
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(ArbstrMiddleware, config=config, identify=who)

TEAMS = text(
    "SELECT users.team, COUNT(*) AS calls, SUM(calls.output_tokens) AS output_tokens, SUM(calls.cost_sats) AS sats "
    "FROM users JOIN arbstr_requests AS calls ON calls.end_user = users.name GROUP BY users.team ORDER BY users.team"
)


@app.get("/spend")
async def spend(bearer: HTTPAuthorizationCredentials = Depends(HTTPBearer())) -> list[dict[str, Any]]:  # noqa: B008
    """What each team has spent, to whoever is logged in. Sums are exact, and so texts in JSON."""
    if await user_of(bearer.credentials) is None:
        return []
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(TEAMS)).mappings()]
