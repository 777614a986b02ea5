"""What was generated once is not generated again, and comes out the same in any case."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from tvm import relax
from typer.testing import CliRunner

import nmcompile
from nmcompile import runtime
from nmcompile.cache import Cache
from nmcompile.cli.app import app
from nmcompile.kernels import objects
from nmcompile.passes.lowering.fallback import lower_fallback
from nmcompile.passes.lowering.library import Linker, build_program
from nmcompile.runtime.format import read_artifact
from tests.support.mixed_models import conv, model, node, weight

Generated = Counter[str]
PROGRAM = """
import sys
import nmcompile
from tests.support import twins
twins.use()
model, output, cache = sys.argv[1:]
print(nmcompile.compile(model, output=output, cache=cache).digest)
"""


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Generated:
    """How often each function's code is generated."""
    counted: Generated = Counter()
    build: Callable[..., bytes] = objects._build

    def counting(name: str, *args: Any, **kwargs: Any) -> bytes:
        counted[name] += 1
        return build(name, *args, **kwargs)

    monkeypatch.setattr(objects, "_build", counting)
    return counted


def symbols(path: Path) -> set[str]:
    return {call.symbol for call in read_artifact(path).manifest.calls}


def test_a_second_compilation_generates_no_code(
    sparse_onnx: Path, tmp_path: Path, generated: Generated
) -> None:
    def compiled(cache: str) -> bytes:
        output = tmp_path / "out.nmc"
        nmcompile.compile(sparse_onnx, output=output, cache=cache)
        return output.read_bytes()

    first = compiled(str(tmp_path / "cache"))
    kernels = symbols(tmp_path / "out.nmc")
    assert kernels <= set(generated) and set(generated.values()) == {1}
    generated.clear()
    assert compiled(str(tmp_path / "cache")) == first
    assert not generated
    assert compiled("off") == first
    assert kernels <= set(generated)
    generated.clear()
    entries = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    for entry in entries[:2]:
        entry.write_bytes(entry.read_bytes()[:-1])
    assert compiled(str(tmp_path / "cache")) == first
    assert generated.total() == 2


def test_another_program_finds_it(sparse_onnx: Path, tmp_path: Path, generated: Generated) -> None:
    cache = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(sparse_onnx), str(tmp_path / "out.nmc"), cache],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    here = nmcompile.compile(sparse_onnx, output=tmp_path / "here.nmc", cache=cache)
    assert not generated
    assert here.digest == done.stdout.strip()


def test_the_command_line_switches_it_off(
    sparse_onnx: Path, tmp_path: Path, generated: Generated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NMCOMPILE_CACHE", str(tmp_path / "cache"))
    arguments = ["compile", str(sparse_onnx), "-o", str(tmp_path / "out.nmc"), "--no-cache"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert generated
    assert [path.name for path in tmp_path.iterdir()] == ["out.nmc"]


def test_layers_of_equal_shapes_share_a_function_whatever_model_they_are_in(
    tmp_path: Path, generated: Generated
) -> None:
    def compiled(layers: int, features: int) -> set[str]:
        nodes = [conv(f"t{i}" if i else "x", f"t{i + 1}", f"w{i}") for i in range(layers)]
        weights = {f"w{i}": weight(8, 8, 1, 1, seed=i) for i in range(layers - 1)}
        weights[f"w{layers - 1}"] = weight(features, 8, 1, 1)
        proto = model(nodes, weights, [(f"t{layers}", onnx.TensorProto.FLOAT, None)])
        nmcompile.compile(proto, output=tmp_path / "out.nmc", cache=tmp_path / "cache")
        return symbols(tmp_path / "out.nmc")

    (shared,) = compiled(3, 8)
    assert generated == {shared: 1}
    both = compiled(2, 24)
    assert shared in both and len(both) == 2
    assert generated == dict.fromkeys(both, 1)


def test_parts_of_a_model_share_functions_without_a_cache(
    tmp_path: Path, generated: Generated
) -> None:
    shape = (1, 8, 64, 64)
    proto = model(
        [
            conv("x", "a", "w0", pads=[1] * 4),
            node("NonZero", ["a"], ["n"]),
            node("Cast", ["n"], ["f"], to=onnx.TensorProto.FLOAT),
            node("ReduceSum", ["f"], ["s"], keepdims=0),
            node("Mul", ["a", "s"], ["b"]),
            conv("b", "y", "w1", pads=[1] * 4),
        ],
        {"w0": weight(8, 8, 3, 3), "w1": weight(8, 8, 3, 3, seed=1)},
        [("y", onnx.TensorProto.FLOAT, shape)],
        [("x", onnx.TensorProto.FLOAT, shape)],
    )
    nmcompile.compile(proto, output=tmp_path / "out.nmc", cache="off")
    manifest = read_artifact(tmp_path / "out.nmc").manifest
    kinds = [step.kind for step in manifest.steps]
    assert kinds == ["library", "onnx", "library"]
    kernels = [call.symbol for call in manifest.calls if call.symbol.startswith("conv2d")]
    assert len(kernels) == 2 and set(kernels) == {kernels[0]}
    assert generated[kernels[0]] == 1


def test_numbers_in_functions_tell_them_apart(tmp_path: Path, generated: Generated) -> None:
    """1 + 2^-23 and 1 look alike in six digits."""

    def compiled(low: float) -> set[str]:
        proto = model(
            [conv("x", "a", "w"), node("Elu", ["a"], ["y"], alpha=low)],
            {"w": weight(8, 8, 1, 1)},
            [("y", onnx.TensorProto.FLOAT, None)],
        )
        nmcompile.compile(proto, output=tmp_path / "out.nmc", cache=tmp_path / "cache")
        return symbols(tmp_path / "out.nmc")

    one, other = compiled(1.0), compiled(1.0 + 2.0**-23)
    assert len(one & other) == 1, "the convolution"
    assert one != other
    assert set(generated.values()) == {1}


def test_object_files_run_together_on_all_threads(tmp_path: Path) -> None:
    """Functions of TVM's, for any CPU: each with a loop that threads share."""
    x = relax.Var("x", relax.TensorType((64, 1024), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            value = builder.emit(relax.op.nn.softmax(x))
            value = builder.emit(relax.op.permute_dims(value, (1, 0)))
            ones = builder.emit(relax.op.sum(value, [0]))  # of each row of the softmax
            column = builder.emit(relax.op.reshape(ones, (64, 1)))
            out = builder.emit_output(relax.op.subtract(relax.op.exp(x), column))
        builder.emit_func_output(out)
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"})
    cached = tmp_path / "cache"
    libraries = []
    for _ in range(2):
        program = build_program(lower_fallback(builder.get()), target)
        maker = Linker(objects.Objects(Cache(cached)))
        libraries.append(maker.make(program, lambda done, total: None))
        assert program.content in libraries[-1]
    assert len(program.functions) > 1 and libraries[0] == libraries[1]
    (tmp_path / "model.so").write_bytes(libraries[1])
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "model.so")), tvm.cpu())
    data = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    found = machine["main"](tvm.runtime.tensor(data)).numpy()
    np.testing.assert_allclose(found, np.expm1(data.astype(np.float64)), rtol=1e-4, atol=1e-4)


@pytest.mark.isa("avx512f")
def test_what_comes_from_the_cache_runs(sparse_onnx: Path, tmp_path: Path) -> None:
    from tests.support.tiny_models import example, tiny_net

    for _ in range(2):
        nmcompile.compile(sparse_onnx, output=tmp_path / "out.nmc", cache=tmp_path / "cache")
    y = runtime.load(tmp_path / "out.nmc").run({"x": example().numpy()})["y"]
    expected = tiny_net("2:4").eval()(example()).detach().numpy()
    assert abs(y - expected).max() <= 1e-4 * abs(expected).max()


def test_dozens_of_operators_in_one_function_have_a_name_that_files_can_have(
    tmp_path: Path, generated: Generated
) -> None:
    """TVM names a fused function after all of its operators."""
    chain = [node("Elu", [f"x{i}"], [f"x{i + 1}"], alpha=1.0 + i / 8) for i in range(40)]
    proto = model(
        [conv("x", "x0", "w"), *chain, node("Identity", ["x40"], ["y"])],
        {"w": weight(8, 8, 1, 1)},
        [("y", onnx.TensorProto.FLOAT, None)],
    )
    nmcompile.compile(proto, output=tmp_path / "out.nmc", cache=tmp_path / "cache", rest="none")
    longest = max(generated, key=len)
    assert 100 < len(longest) < 128 and longest in symbols(tmp_path / "out.nmc")
