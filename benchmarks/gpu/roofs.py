"""What bounds a kernel on this GPU: the rate of dense tensor cores, the bandwidth of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.driver import Device
from benchmarks.gpu.peers import TorchPeers
from benchmarks.gpu.timing import Replay, take_turns

COPY_BYTES = 1 << 29
PRODUCT = 8192  # rows and columns


@dataclass(frozen=True)
class Roofs:
    """Dense float16 FLOP/s; bytes/s, read plus written; whether these were measured here."""

    flops: float
    bandwidth: float
    measured: bool = False

    def ms(self, flops: float, nbytes: float, sparse: bool) -> float:
        """The least time: sparse tensor cores count twice the dense rate."""
        compute = flops / (self.flops * (2 if sparse else 1))
        return 1e3 * max(compute, nbytes / self.bandwidth)


# By the data sheets (A100 SXM 80 GB, H100 SXM), where nothing was measured.
SHEETS = {"sm_80": Roofs(312e12, 2.0e12), "sm_90a": Roofs(989e12, 3.35e12)}


def measure_roofs(device: Device, peers: TorchPeers | None, step: Callable[[str], None]) -> Roofs:
    """By a large copy and, where torch is there, a large product; else by the data sheet."""
    source, target = device.allocate(COPY_BYTES), device.allocate(COPY_BYTES)
    copy = Replay(lambda: device.copy(target, source), 1, "loop")
    ms = take_turns(device, {"copy": copy}, on_step=step)["copy"].fastest
    bandwidth = 2e3 * COPY_BYTES / ms
    device.free(source)
    device.free(target)
    if peers is None:
        return Roofs(SHEETS[device.arch].flops, bandwidth)
    product = Replay(peers.square_product(PRODUCT), 1, "loop")
    ms = take_turns(device, {"product": product}, on_step=step)["product"].ms
    peers.forget()
    return Roofs(2e3 * PRODUCT**3 / ms, bandwidth, measured=True)
