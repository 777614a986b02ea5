"""Where devices are found: addresses, and what a tracker knows."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nmcompile.errors import DeviceError, InputError
from nmcompile.wording import way

LOOPBACK = "127.0.0.1"
PATIENCE = 5.0  # seconds to reach a tracker


@dataclass(frozen=True)
class Address:
    """A TCP address."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Address:
        """Read `HOST:PORT`.

        Raises:
            InputError: it is none.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise InputError(f"address {text!r}: expected HOST:PORT, for example {LOOPBACK}:9190")
        return Address(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Devices:
    """The devices of one key.

    servers: addresses of all that are registered, busy ones too.
    free: how many wait for work; pending: how many requests wait for a device.
    """

    key: str
    servers: tuple[str, ...]
    free: int
    pending: int


def connect_tracker(address: Address) -> Any:
    """A connection to a tracker, TVM's `TrackerSession`.

    Raises:
        DeviceError: nothing answers there, or something else does.
    """
    from tvm import rpc

    # TVM's own attempt waits a minute.
    try:
        socket.create_connection((address.host, address.port), PATIENCE).close()
    except OSError as error:
        raise DeviceError(
            f"no tracker answers at {address} ({error.strerror or error}); start one with "
            f"`nmc device tracker`, or correct {way('--tracker', 'its address')}"
        ) from error
    try:
        session = rpc.connect_tracker(address.host, address.port)
        session._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return session
    except (RuntimeError, OSError) as error:
        raise DeviceError(f"what answers at {address} is no tracker: {error}") from error


def request_device(session: Any, key: str) -> tuple[str, int, str]:
    """Wait in a tracker's queue for a free device: its host and port, and the key to its session.

    TVM's own `TrackerSession.request` connects in the same step, and does not say which device it
    is that does not answer.

    Raises:
        OSError: the connection to the tracker broke.
        RuntimeError: the tracker refuses.
    """
    from tvm.rpc import base

    base.sendjson(session._sock, [base.TrackerCode.REQUEST, key, "", 1])
    code, answer = base.recvjson(session._sock)
    if code != base.TrackerCode.SUCCESS:
        raise RuntimeError(f"the tracker refuses a device with the key {key!r}: {answer}")
    host, port, matchkey = answer
    return host, port, matchkey


def connect_promptly(connect: Callable[..., socket.socket], *arguments: Any) -> socket.socket:
    """TVM's `connect`, to a tracker, without the wait of a twenty-fifth of a second per message.

    TVM sends the length of a message before the message, which TCP holds back until the length is
    acknowledged (Nagle's algorithm); the other side puts that off.
    """
    connected = connect(*arguments)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def list_devices(address: Address) -> list[Devices]:
    """What is registered with a tracker, by key.

    Raises:
        DeviceError: as `connect_tracker`.
    """
    session = connect_tracker(address)
    try:
        return summarise(session.summary())
    except (RuntimeError, OSError) as error:
        raise DeviceError(
            f"the tracker at {address} does not say what it knows: {error}"
        ) from error
    finally:
        session.close()


def summarise(summary: dict[str, Any]) -> list[Devices]:
    """A tracker's own summary as devices by key."""
    servers: dict[str, list[str]] = {}
    for server in summary["server_info"]:
        key = server["key"].removeprefix("server:")
        servers.setdefault(key, []).append(":".join(map(str, server["addr"])))
    queues = summary["queue_info"]
    return [
        Devices(
            key,
            tuple(sorted(servers.get(key, ()))),
            queues.get(key, {}).get("free", 0),
            queues.get(key, {}).get("pending", 0),
        )
        for key in sorted({*servers, *queues})
    ]
