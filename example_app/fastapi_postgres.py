"""FastAPI in front of OpenAI: every chat completion is a row in the app's own PostgreSQL."""

import os
from decimal import Decimal
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers

from arbstr_asgi import ArbstrError, ArbstrMiddleware, Config, DatabaseConfig, Provider, Rates

USERS = {os.environ["ALICE_TOKEN"]: "alice"}  # your own login goes here

config = Config(
    providers=[
        Provider(
            name="openai",
            url=os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
            api_key=os.environ["OPENAI_API_KEY"],
            models=["gpt-4o-mini"],
            model_rates={"gpt-4o-mini": Rates(input_rate_usd=Decimal("0.15"), output_rate_usd=Decimal("0.60"))},
        )
    ],
    sats_per_usd=1_500,  # costs are kept in sats
    database=DatabaseConfig(url=os.environ["DATABASE_URL"], table_prefix="arbstr_"),
    metering="require",  # no client may opt out of being counted
)


def who(scope: dict[str, Any]) -> str:
    """The end user of a call; it runs before the body is read."""
    user = USERS.get(Headers(scope=scope).get("authorization", "").removeprefix("Bearer "))
    if user is None:
        raise ArbstrError(401, "Log in first.", type="authentication_error")
    return user


app = FastAPI()
app.add_middleware(ArbstrMiddleware, config=config, identify=who)
