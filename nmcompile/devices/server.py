"""A device that serves jobs: TVM's RPC server, watched over, and the tracker it registers with.

Whoever can connect can run any code on the device, so that servers and trackers keep to the
loopback interface unless told otherwise.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any

from nmcompile.devices.process import die_with_parent
from nmcompile.devices.tracker import (
    LOOPBACK,
    Address,
    connect_promptly,
    connect_tracker,
    list_devices,
)
from nmcompile.errors import DeviceError, NmcompileError
from nmcompile.wording import way

CALL = "nmcompile.device.call"
HANDLER = "nmcompile.devices.job:run_job"
PORT, TRACKER_PORT = 9090, 9190
PAUSE = 0.2  # seconds between two looks at a server
REGISTRATION = 30.0  # seconds


class DeviceServer:
    """Serves one job at a time from a process of its own, which is replaced when it dies.

    port: where it listens.
    """

    def __init__(
        self,
        key: str,
        *,
        host: str = LOOPBACK,
        port: int = PORT,
        tracker: Address | None = None,
        handler: str = HANDLER,
    ) -> None:
        """Start the server.

        Args:
            key: what kind of device this is, for example "icelake".
            host: the interface to listen on.
            port: to listen on; 0 takes a free one.
            tracker: where to register.
            handler: `module:function` that answers a job's request, a JSON object, with another.

        Raises:
            DeviceError: the port is taken, or the tracker does not register it.
        """
        if tracker is not None:
            connect_tracker(tracker).close()
        self.key, self.host, self.tracker, self.handler = key, host, tracker, handler
        self.port = _free_port(host) if port == 0 else port
        self._server = self._start()

    def _start(self) -> Any:
        from tvm import rpc

        tracker = None if self.tracker is None else (self.tracker.host, self.tracker.port)
        try:
            server = rpc.Server(
                self.host,
                self.port,
                self.port + 1,
                key=self.key,
                tracker_addr=tracker,
                silent=True,
                server_init_callback=functools.partial(_prepare, self.handler),
            )
        except (ValueError, OSError, ChildProcessError) as error:
            last = str(error).strip().rpartition("\n")[2]
            raise DeviceError(
                f"a device server cannot listen on {self.host}:{self.port}: {last}; choose another "
                f"{way('--port', 'port')}"
            ) from error
        if self.tracker is not None:
            self._await_tracker(server)
        return server

    def _await_tracker(self, server: Any) -> None:
        """Return when the tracker knows the server.

        Raises:
            DeviceError: it does not; the server is ended.
        """
        assert self.tracker is not None
        ending, end = f":{self.port}", time.monotonic() + REGISTRATION
        while time.monotonic() < end:
            for devices in list_devices(self.tracker):
                if devices.key == self.key and any(s.endswith(ending) for s in devices.servers):
                    return
            time.sleep(PAUSE)
        server.terminate()
        raise DeviceError(
            f"the tracker at {self.tracker} does not list the server on port {self.port} after "
            f"{REGISTRATION:.0f} s; see whether it still runs"
        )

    @property
    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self._server is not None and bool(self._server.proc.is_alive())

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return int(self._server.proc._proc.pid)

    def watch(self, stop: threading.Event) -> int:
        """Replace the server whenever it has died, until `stop` is set; returns how often."""
        replaced = 0
        while not stop.wait(PAUSE):
            if not self.alive:
                self._server.terminate()
                self._server = self._start()
                replaced += 1
        return replaced

    def close(self) -> None:
        """End the server, and all processes that it has started."""
        server, self._server = self._server, None
        if server is not None:
            server.terminate()

    def __enter__(self) -> DeviceServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start_tracker(host: str = LOOPBACK, port: int = TRACKER_PORT) -> Any:
    """Start TVM's tracker in a process of its own; `port` and `terminate()` are its.

    Args:
        host: the interface to listen on.
        port: to listen on; 0 takes a free one.

    Raises:
        DeviceError: the port is taken, or tornado is not installed.
    """
    try:
        from tvm.rpc.tracker import Tracker
    except ImportError as error:
        raise DeviceError(
            f"a tracker needs {error.name}; pip install 'nmcompile[devices]'"
        ) from error
    port = port or _free_port(host)
    try:
        return Tracker(host, port, port + 1, silent=True)
    except (ValueError, OSError, ChildProcessError) as error:
        last = str(error).strip().rpartition("\n")[2]
        raise DeviceError(
            f"a tracker cannot listen on {host}:{port}: {last}; choose another "
            f"{way('--port', 'port')}"
        ) from error


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _prepare(handler: str) -> None:
    """In the process of the server, before it listens: what sessions, its forks, can call."""
    import tvm_ffi
    from tvm.rpc import base
    from tvm.rpc.server import PopenRPCServerState

    base.connect_with_retry = functools.partial(connect_promptly, base.connect_with_retry)
    parent = os.getppid()
    module, _, function = handler.partition(":")
    answer = getattr(importlib.import_module(module), function)

    def call(request: str) -> str:
        die_with_parent()
        try:
            return json.dumps({"response": answer(json.loads(request))})
        except NmcompileError as error:
            return json.dumps({"error": str(error)})
        except Exception as error:
            return json.dumps({"error": f"unexpected {type(error).__name__}: {error}"})

    def end_in_time() -> None:
        """End this process, of which TVM's listener is one thread, with that and with its parent.

        A session that crashes ends the listener only. The kernel could watch over the parent, but
        takes the thread that started this process for it.
        """
        while PopenRPCServerState.current is None or PopenRPCServerState.current.thread.is_alive():
            if os.getppid() != parent:
                break
            time.sleep(PAUSE)
        os._exit(1)

    tvm_ffi.register_global_func(CALL, call, override=True)
    threading.Thread(target=end_in_time, daemon=True).start()
