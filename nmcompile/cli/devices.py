"""`nmc device serve`, `nmc device tracker` and `nmc devices`: machines that run jobs for others."""

import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from nmcompile.cli.guard import guarded
from nmcompile.cli.options import JsonOption
from nmcompile.cli.output import print_json, print_table
from nmcompile.cli.printing import say

device_app = typer.Typer(
    help="Let other machines measure compiled models on this one, by TVM's RPC.",
    no_args_is_help=True,
)

TrackerOption = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="The tracker that knows the devices.")
]
HostOption = Annotated[
    str,
    typer.Option(
        help="The interface to listen on. Whoever can connect can run any code here, so the "
        "default is this machine only."
    ),
]


@device_app.command("serve")
@guarded
def serve_device(
    key: Annotated[str, typer.Option(help="What kind of device this is, for example icelake.")],
    tracker: TrackerOption = "",
    host: HostOption = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="To listen on; 0 takes a free one.")
    ] = 9090,
) -> None:
    """Run compiled models that others send, one at a time, until interrupted.

    Each job runs in a process of its own; a server that dies is replaced.
    """
    from nmcompile.devices import Address, DeviceServer

    where = Address.parse(tracker) if tracker else None
    with until_stopped() as stop, DeviceServer(key, host=host, port=port, tracker=where) as server:
        known = f", registered at {where}" if where else ""
        say(f"serving as {key} on {host}:{server.port}{known}; ctrl-C ends it")
        warn_of(host)
        replaced = server.watch(stop)
    say(f"stopped; the server was replaced {replaced} times" if replaced else "stopped")


@device_app.command("tracker")
@guarded
def track_devices(
    host: HostOption = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="To listen on; 0 takes a free one.")
    ] = 9190,
) -> None:
    """Keep the list of devices, and hand out free ones, until interrupted."""
    from nmcompile.devices import start_tracker

    with until_stopped() as stop:
        tracker = start_tracker(host, port)
        try:
            say(f"tracking devices on {host}:{tracker.port}; ctrl-C ends it")
            warn_of(host)
            stop.wait()
        finally:
            tracker.terminate()
    say("stopped")


@guarded
def show_devices(tracker: TrackerOption, as_json: JsonOption = False) -> None:
    """List the devices that a tracker knows."""
    from nmcompile.devices import Address, list_devices

    found = list_devices(Address.parse(tracker))
    if as_json:
        print_json(
            {
                "devices": [
                    {"key": d.key, "servers": d.servers, "free": d.free, "pending": d.pending}
                    for d in found
                ]
            }
        )
        return
    rows = [(d.key, ", ".join(d.servers), str(d.free), str(d.pending)) for d in found]
    print_table("", ("key", "servers", "free", "waiting jobs"), rows, right=(2, 3))


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that what was started is ended in order."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def warn_of(host: str) -> None:
    """Say what listening on more than the loopback interface means."""
    if not _is_loopback(host):
        typer.secho(
            f"warning: whoever can connect to {host} can run any code on this machine; use a "
            "trusted network only",
            fg=typer.colors.YELLOW,
            err=True,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False
