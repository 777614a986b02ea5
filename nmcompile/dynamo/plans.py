"""Graphs that were compiled before, on disk: by what they compute, what with and what for."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import fx

from nmcompile.cache import OFF, Cache, source_digest
from nmcompile.dynamo.operator import RUN, open_session
from nmcompile.dynamo.options import Options
from nmcompile.dynamo.reasons import NothingOursError
from nmcompile.errors import ModelError, NmcompileError
from nmcompile.frontends.captured import Call, flat, load_program, save_program
from nmcompile.runtime import Session, cpu
from nmcompile.version import VERSION

_TOOLS = ("apache-tvm", "apache-tvm-ffi", "torch")
_LIBRARIES = ("aten", "prims", "quantized_decomposed")
"""Operators whose meaning goes with the version of torch."""
_FUNCTIONS = ("torch", "_operator", "math", "builtins")
_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class Plan:
    """A graph, ready to run.

    call: takes the inputs by position.
    sessions: of the compiled parts; `call` needs them kept.
    released: positions of parameters and buffers that are inputs, as the graph writes to them.
    """

    call: Call
    sessions: Mapping[str, Session]
    released: tuple[int, ...]


class Plans:
    """What is kept of one graph: a program of torch's, and the artifacts that it calls."""

    def __init__(self, cache: Cache, key: str | None, threads: int) -> None:
        """Look at a store.

        Args:
            cache: the store; may be off.
            key: of the graph, see `content_key`; None where nothing of it can be kept.
            threads: cores that a run uses.
        """
        self._cache = cache if key is not None else Cache(OFF[0])
        self._key = key or f"graph {next(_numbers)}"
        self._threads = threads

    def open_part(self, index: int, artifact: Path) -> tuple[str, Session]:
        """Keep an artifact, and load it; returns a name for it and its session."""
        kept = self._cache.add(f"{self._key} {index}", artifact)
        name = self._name(index)
        return name, open_session(name, kept, self._threads)

    def keep(self, program: torch.export.ExportedProgram, released: Sequence[int]) -> None:
        """Keep a program whose parts were opened here; one that torch cannot write is not kept."""
        if self._cache:
            with suppress(ModelError):
                self._write({"released": list(released)}, save_program(program))

    def keep_nothing(self, error: NothingOursError) -> None:
        """Keep that nothing of the graph pays."""
        self._write({"nothing": str(error), "layers": error.layers}, b"")

    def find(self) -> Plan | None:
        """What was kept; None where that is not all there, or not whole.

        Raises:
            NothingOursError: nothing of the graph pays.
        """
        content = self._cache.read(self._key)
        if content is None:
            return None
        head, _, program = content.partition(b"\n")
        facts = json.loads(head)
        if "nothing" in facts:
            raise NothingOursError(facts["nothing"], facts["layers"])
        sessions = {}
        try:
            module = flat(load_program(program))
            for node in module.graph.find_nodes(op="call_function", target=RUN):
                index = int(str(node.args[1]).rpartition("/")[2].partition("@")[0])
                artifact = self._cache.path(f"{self._key} {index}")
                if artifact is None:
                    return None
                name = self._name(index)
                sessions[name] = open_session(name, artifact, self._threads)
                node.args = (node.args[0], name)
        except NmcompileError:
            return None
        module.recompile()
        return Plan(module.forward, sessions, tuple(facts["released"]))

    def _write(self, facts: Mapping[str, Any], program: bytes) -> None:
        self._cache.write(self._key, json.dumps(facts).encode() + b"\n" + program)

    def _name(self, index: int) -> str:
        return f"{self._key}/{index}@{self._threads}"


def content_key(
    graph: fx.GraphModule, inputs: Sequence[torch.Tensor], options: Options
) -> str | None:
    """What a compiled graph is a function of, as a text; None where that cannot be told.

    Args:
        graph: as `nmcompile.frontends.captured.bind` makes it.
        inputs: of one call.
        options: what the user has asked for.
    """
    digest = hashlib.sha256()
    made = (*map(importlib.metadata.version, _TOOLS), torch.get_default_dtype(), cpu.model())
    wanted = (options.pattern, options.precision, options.chosen.name)
    shapes = [(tuple(x.shape), tuple(x.stride()), x.dtype, x.device) for x in inputs]
    _add(digest, VERSION, _own_source(), *made, *wanted, *shapes)
    for name, module in graph.named_modules():
        if isinstance(module, fx.GraphModule):
            _add(digest, name)
            for node in module.graph.nodes:
                if not _is_known(node):
                    return None
                _add(digest, node.op, node.name, _title(node), node.args, node.kwargs)
    for name, tensor in _stored(graph):
        _add(digest, name, tuple(tensor.shape), tensor.dtype)
        if tensor.numel():
            plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return f"torch.compile {digest.hexdigest()}"


def _add(digest: Any, *facts: object) -> None:
    for fact in facts:
        digest.update(f"{fact!s}\0".encode())


def _stored(graph: fx.GraphModule) -> Iterator[tuple[str, torch.Tensor]]:
    yield from graph.named_parameters(remove_duplicate=False)
    yield from graph.named_buffers(remove_duplicate=False)


def _title(node: fx.Node) -> str:
    """What a node calls or reads, as it is called in every process."""
    target = node.target
    if isinstance(target, str | torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(target)
    return f"{target.__module__}.{target.__qualname__}"


def _is_known(node: fx.Node) -> bool:
    """Whether the name of what a node calls says what that does, in this version of torch."""
    target: Any = node.target
    if node.op == "call_module":
        return False
    if node.op != "call_function":
        return True
    if isinstance(target, torch._ops.OpOverload):
        return _is_plain(target)
    if isinstance(target, torch._ops.OpOverloadPacket):
        packet: Any = target
        return all(_is_plain(getattr(packet, overload)) for overload in packet.overloads())
    if isinstance(target, torch._ops.HigherOrderOperator):
        return False
    module = getattr(target, "__module__", None)
    owner = type(getattr(target, "__self__", None)).__module__ if module is None else module
    return owner.partition(".")[0] in _FUNCTIONS


def _is_plain(target: Any) -> bool:
    """Whether an operator stays one: torch.export follows composite ones into what they call."""
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        target.name(), "CompositeImplicitAutograd"
    )
    return target.namespace in _LIBRARIES or not composite


@cache
def _own_source() -> str:
    """A digest of this package: between versions, too, an artifact depends on what compiled it."""
    packages = ("nmcompile", "nmcompile.passes", "nmcompile.runtime")
    specs = [importlib.util.find_spec(package) for package in packages]
    return source_digest(
        Path(folder) for spec in specs if spec for folder in spec.submodule_search_locations or ()
    )
