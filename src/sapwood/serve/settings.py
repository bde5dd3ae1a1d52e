"""How a state is served: where, to whom, and within which limits."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapwood.data.decode import DEFAULT_PIXEL_LIMIT
from sapwood.errors import ConfigError
from sapwood.paths import expanded
from sapwood.settings import check

MIB = 2**20
ASK_TOKEN, TEACH_TOKEN = "SAPWOOD_ASK_TOKEN", "SAPWOOD_TEACH_TOKEN"
_LEAST_TOKEN = 16


@dataclass(frozen=True)
class ServeSettings:
    """What ``create_app`` needs to know.

    Attributes:
        state: the state folder.
        host: address to listen at; beyond this machine tokens are required.
        port: to listen at.
        ask_token: who asks must send it; None asks for none. The token to teach opens this too.
        teach_token: who teaches must send it.
        read_only: nobody teaches.
        allowed_hosts: further names by which the server may be called, of a proxy for instance.
        device: where to compute; None takes cuda if there is one.
        upload_bytes: most of a request that asks.
        pictures: most of a request that asks.
        teach_bytes: most of a request that teaches, and of what an archive unpacks to.
        teach_pictures: most of a request that teaches.
        pixels: most of a picture, width x height.
        queue: most pictures that wait for the network.
        jobs: most lessons that wait.
        timeout: seconds that a prediction, or the next piece of an upload, may take.
        connections: most requests at a time.
        batch: pictures that go through the network together.
        window: seconds that a picture waits for company.
    """

    state: Path
    host: str = "127.0.0.1"
    port: int = 8000
    ask_token: str | None = field(default=None, repr=False)
    teach_token: str | None = field(default=None, repr=False)
    read_only: bool = False
    allowed_hosts: tuple[str, ...] = ()
    device: str | None = None
    upload_bytes: int = 64 * MIB
    pictures: int = 64
    teach_bytes: int = 2048 * MIB
    teach_pictures: int = 20_000
    pixels: int = DEFAULT_PIXEL_LIMIT
    queue: int = 256
    jobs: int = 16
    timeout: float = 30.0
    connections: int = 128
    batch: int = 16
    window: float = 0.004

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", expanded(self.state))
        counts = ("upload_bytes", "pictures", "teach_bytes", "teach_pictures", "pixels", "queue", "jobs")
        check(
            (0 <= self.port < 65536, f"port must be 0 to 65535, got {self.port}"),
            *((getattr(self, name) > 0, f"{name} must be > 0") for name in (*counts, "timeout", "connections")),
            (self.batch > 0, f"batch must be > 0, got {self.batch}"),
            (self.window >= 0, f"window must be >= 0, got {self.window}"),
            (self.queue >= self.pictures, f"queue ({self.queue}) must hold a request of {self.pictures} pictures"),
            *(
                (
                    token is None or (len(token) >= _LEAST_TOKEN and token.isascii() and token.isprintable()),
                    f"a token to {what} must be {_LEAST_TOKEN} printable ASCII characters or more",
                )
                for what, token in (("ask", self.ask_token), ("teach", self.teach_token))
            ),
        )
        if not self.loopback:
            lacking = [ASK_TOKEN] if self.ask_token is None else []
            lacking += [TEACH_TOKEN] if self.teach_token is None and not self.read_only else []
            if lacking:
                raise ConfigError(
                    f"host {self.host} can be reached from other machines, so it needs tokens: set "
                    f"{' and '.join(lacking)} (or name files that hold them), or serve --read-only to teach nobody"
                )

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host == "localhost" or _address(self.host, "is_loopback")

    @property
    def everywhere(self) -> bool:
        """Whether it listens at all addresses of the machine."""
        return _address(self.host, "is_unspecified")

    def limits(self) -> dict[str, Any]:
        """What a client should know before it sends anything."""
        names = ("upload_bytes", "pictures", "teach_bytes", "teach_pictures", "pixels", "queue", "timeout")
        return {name: getattr(self, name) for name in names}

    def needs_token(self) -> dict[str, bool]:
        """Whether a token must be sent to ask, and to teach."""
        return {"ask": self.ask_token is not None, "teach": self.teach_token is not None}


def read_token(name: str, file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """A token from a file, else from the environment variable ``name``; None where there is neither.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    if file is None:
        return environment.get(name) or None
    try:
        token = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as a token ({error}); name a file that holds one") from error
    if not token:
        raise ConfigError(f"{file}: is empty; it must hold the token")
    return token


def _address(host: str, what: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host.strip("[]")), what))
    except ValueError:
        return False
