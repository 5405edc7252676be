"""Gateways of others, to be measured beside ours."""

import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from harness.client import clients
from harness.processes import command, listening

SECONDS_TO_START = 90.0

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    upstream there {{ server 127.0.0.1:{provider}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port}; keepalive_requests 1000000;
        location / {{
            proxy_pass http://there; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        }}
    }}
}}
"""
LITELLM = """
model_list:
  - model_name: gpt-4o
    litellm_params: {{model: openai/gpt-4o, api_base: "http://127.0.0.1:{provider}/v1", api_key: unused}}
litellm_settings: {{telemetry: false}}
"""


def has_nginx() -> bool:
    """Whether there is one to be measured."""
    return shutil.which("nginx") is not None


@asynccontextmanager
async def nginx(provider: int, folder: Path) -> AsyncIterator[tuple[int, int]]:
    """A plain proxy during the block: its port and its process."""
    port = _write(folder, "nginx.conf", NGINX, provider)
    arguments = (shutil.which("nginx") or "nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder))
    async with command(*arguments, environ={}, cwd=folder) as pid:
        await _check(port, folder, 10.0)
        yield port, pid


@asynccontextmanager
async def litellm(venv: Path, provider: int, folder: Path) -> AsyncIterator[tuple[int, int]]:
    """LiteLLM's proxy from a virtual environment, one worker, without a database, during the block."""
    port = _write(folder, "config.yaml", LITELLM, provider)
    place = ("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
    environ = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # it listens on loopback, for a minute
    }
    program = str(venv / "bin" / "litellm")
    async with command(program, "--config", "config.yaml", *place, environ=environ, cwd=folder) as pid:
        await _check(port, folder, SECONDS_TO_START)
        yield port, pid


async def answering(name: str, port: int) -> int:
    """The port of a gateway that is up already. Raises RuntimeError where it doesn't answer a call."""
    try:
        await _ask(port)
    except (OSError, EOFError, RuntimeError) as error:
        raise RuntimeError(f"{name} at 127.0.0.1:{port} does not answer a chat completion: {error}") from None
    return port


async def _ask(port: int) -> None:
    async with clients(port, 1):
        pass


async def _check(port: int, folder: Path, seconds: float) -> None:
    """Raises RuntimeError, with what the gateway said, where it doesn't answer a call."""
    try:
        await listening(port, seconds)
        await _ask(port)
    except (OSError, EOFError, RuntimeError) as error:
        said = (folder / "log.txt").read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{folder.name} does not answer: {error}\n{said}") from None


def _write(folder: Path, name: str, text: str, provider: int) -> int:
    """The configuration of a gateway in front of `provider`; gives the port that it is to listen on."""
    folder.mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    (folder / name).write_text(text.format(folder=folder, provider=provider, port=port))
    return port
