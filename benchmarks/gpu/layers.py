"""One layer: every variant checked, then timed in turns with the peers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.gpu.contents import Kit, Layer, Variant
from benchmarks.gpu.driver import Device, DriverError
from benchmarks.gpu.kernels import LayerOnGpu, Mismatch, Packed
from benchmarks.gpu.peers import TorchPeers
from benchmarks.gpu.roofs import Roofs, measure_roofs
from benchmarks.gpu.timing import Replay, set_count, take_turns

Step = Callable[[str], None]
CRASHED = "its process died or lost the GPU; left out when the layer was tried again"


@dataclass
class LayerBench:
    """What one process keeps between layers."""

    device: Device
    kit: Kit
    math: Any
    peers: TorchPeers | None
    packed: Packed = field(default_factory=Packed)

    def roofs(self, step: Step) -> Roofs:
        """Measure this GPU's."""
        return measure_roofs(self.device, self.peers, step)

    def check(self, layer: Layer, step: Step, skip: Collection[str]) -> list[dict[str, Any]]:
        """Check the chosen variant on whole numbers only."""
        on_gpu = LayerOnGpu(self.device, self.kit, self.packed, self.math, layer)
        rows = []
        try:
            on_gpu.fill(exact=True, sets=1)
            for variant in layer.variants:
                if variant.chosen:
                    row = self._checked(on_gpu, variant, step, skip)
                    rows.append({"layer": layer.name, "pattern": layer.pattern, **row})
        finally:
            on_gpu.release()
        return rows

    def run(self, layer: Layer, roofs: Roofs, step: Step, skip: Collection[str]) -> dict[str, Any]:
        """The layer's row of the result.

        step: told what is about to run, so that whoever watches knows what a crash was about: the
            name of a variant or peer, then what of it.
        skip: variants and peers that are left out, because they crashed before.

        Raises:
            DriverError: a kernel failed in a way that may leave the GPU's context unusable.
        """
        on_gpu = LayerOnGpu(self.device, self.kit, self.packed, self.math, layer)
        try:
            return self._run(on_gpu, layer, roofs, step, skip)
        finally:
            try:
                on_gpu.release()
            except DriverError:
                pass  # what failed before is raised already
            if self.peers is not None:
                self.peers.forget()

    def _run(
        self,
        on_gpu: LayerOnGpu,
        layer: Layer,
        roofs: Roofs,
        step: Step,
        skip: Collection[str],
    ) -> dict[str, Any]:
        conv = layer.conv
        dense_bytes = conv.out_channels * conv.taps * conv.in_channels * 2
        nbytes = on_gpu.input_bytes + on_gpu.output_bytes
        sets = set_count(self.device, nbytes + dense_bytes)
        step("whole numbers")
        on_gpu.fill(exact=True, sets=1)
        rows = {v.name: self._checked(on_gpu, v, step, skip) for v in layer.variants}
        step("random numbers")
        on_gpu.fill(exact=False, sets=sets)
        replays: dict[str, Replay] = {}
        peers: dict[str, dict[str, Any]] = {}
        try:
            for variant in layer.variants:
                row = rows[variant.name]
                if "failure" not in row:
                    if variant.rank == 0 or variant.chosen:
                        row.update(self._compared(on_gpu, variant, step))
                    if "failure" not in row:
                        step(f"{variant.name}: graph")
                        replays[variant.name] = on_gpu.replay(variant)
            if self.peers is not None:
                weight, _ = self.packed.arrays(layer, False)
                found = self.peers.contenders(layer, on_gpu.x, weight, sets)
                for name, make in found:
                    peers[name] = {"name": name}
                    if name in skip:
                        peers[name]["failure"] = CRASHED
                        continue
                    step(name)
                    try:
                        replays[name] = make()
                    except Exception as error:  # whatever torch raises: ours are timed all the same
                        self.device.synchronize()
                        peers[name]["failure"] = describe(error)
            times = take_turns(self.device, replays, on_step=lambda name: step(f"{name}: time"))
        finally:
            for replay in replays.values():
                _quietly(replay.close)
        flops = 2.0 * conv.macs
        for name, timing in times.items():
            row = rows[name] if name in rows else peers[name]
            variant_of = next((v for v in layer.variants if v.name == name), None)
            sparse = variant_of is not None and variant_of.method != "dense"
            weight_bytes = dense_bytes * 9 // 16 if sparse else dense_bytes
            least = roofs.ms(flops, nbytes + weight_bytes, sparse)
            row.update(asdict(timing))
            row["tflops"] = flops / timing.ms / 1e9
            row["roof_share"] = least / timing.ms
        return {
            "layer": layer.name,
            "conv": asdict(conv),
            "batch": conv.batch,
            "window": f"{conv.kernel[0]}x{conv.kernel[1]}",
            "count": layer.count,
            "pattern": layer.pattern,
            "sets": sets,
            "variants": list(rows.values()),
            "peers": list(peers.values()),
        }

    def _checked(
        self, on_gpu: LayerOnGpu, variant: Variant, step: Step, skip: Collection[str]
    ) -> dict[str, Any]:
        """A variant's row, with a failure if whole numbers are not exact."""
        row: dict[str, Any] = {
            "name": variant.name,
            "method": variant.method,
            "config": asdict(variant.config),
            "cycles": variant.cycles,
            "rank": variant.rank,
            "chosen": variant.chosen,
            "registers": variant.registers,
            "exact": False,
        }
        if variant.name in skip:
            return {**row, "failure": CRASHED}
        step(f"{variant.name}: check")
        try:
            on_gpu.check(variant)
        except Mismatch as error:
            return {**row, "failure": str(error)}
        except DriverError as error:
            self.device.synchronize()  # raises where the context is lost
            return {**row, "failure": str(error)}
        return {**row, "exact": True}

    def _compared(self, on_gpu: LayerOnGpu, variant: Variant, step: Step) -> dict[str, Any]:
        step(f"{variant.name}: compare")
        try:
            norm, largest = on_gpu.check(variant)
        except Mismatch as error:
            return {"failure": str(error)}
        return {"error_norm": norm, "error_max": largest}


def describe(error: BaseException) -> str:
    """One line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _quietly(close: Callable[[], None]) -> None:
    try:
        close()
    except Exception:
        pass  # after a failed kernel every call fails
