"""Turns the CUDA that TVM writes into C++ for `emulator.h`.

TVM wraps every PTX instruction in a function of its own, whose body is one `asm volatile`: those
bodies are replaced, the rest is C++ already.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from nmcompile.kernels.cuda.build import Launch

Names = Sequence[str]

_WRAPPER = re.compile(
    r"__forceinline__ __device__ void (?P<name>\w+)\((?P<parameters>[^)]*)\) \{\s*"
    r'asm volatile\("(?P<text>[^"]*)".*?\);\s*\}',
    re.DOTALL,
)
# What gives a result: it touches no memory, so that the statement alone is replaced.
_RESULT = re.compile(r'asm\("(?P<name>max|min)\.NaN\.f32 [^;]*;[^;]*;')
_PREAMBLE_END = "#define ushort unsigned short\n#endif\n"


def _pointers(names: Names) -> str:
    return "{" + ", ".join(f"&{name}" for name in names) + "}"


def _values(names: Names) -> str:
    return "{" + ", ".join(names) + "}"


def _load(space: str, text: str, names: Names) -> str:
    kind = "float" if text.split()[0].endswith("f32") else "uint32_t"
    *targets, address = names
    count = len(targets)
    return f"{kind}* const t[{count}] = {_pointers(targets)}; emulator::load_{space}(t, {address});"


def _store(space: str, text: str, names: Names) -> str:
    kind = "float" if text.split()[0].endswith("f32") else "uint32_t"
    address, *values = names
    count = len(values)
    return f"{kind} v[{count}] = {_values(values)}; emulator::store_{space}({address}, v);"


def _copy(text: str, names: Names) -> str:
    target, source, *size = names
    return f"emulator::copy_async({target}, {source}, {size[0] if size else 16});"


def _load_matrices(text: str, names: Names) -> str:
    return f"uint32_t* const t[4] = {_pointers(names[:4])}; emulator::load_matrices(t, {names[4]});"


def _multiply(names: Names, b: int, metadata: str) -> str:
    d, a, rest = names[:4], names[4:8], names[8:]
    fields = (_pointers(d), _values(a), _values(rest[:b]), _values(rest[b : b + 4]), metadata)
    return "{" + ", ".join(fields) + "}"


def _multiply_sparse(text: str, names: Names) -> str:
    selector = text.rstrip(";").split()[-1]
    return f"emulator::multiply_sparse({_multiply(names, 4, names[-1])}, {selector});"


def _multiply_dense(text: str, names: Names) -> str:
    return f"emulator::multiply_dense({_multiply(names, 2, '0')});"


def _wgmma(text: str, names: Names) -> str:
    shape = re.search(r"\.m64n(\d+)k32\..*, (\d), 1, 1, 1, 0;", text)
    assert shape is not None, text
    sums, a, (pixels, metadata) = names[0], names[1:5], names[5:7]
    fields = (sums, shape[1], _values(a), pixels, metadata, shape[2])
    return f"emulator::issue_wgmma({{{', '.join(fields)}}});"


def _last_number(text: str) -> str:
    return text.rstrip(";").split()[-1]


# How an instruction begins, and the C++ that stands for it.
INSTRUCTIONS: tuple[tuple[str, Callable[[str, Names], str]], ...] = (
    ("ld.shared.", lambda text, names: _load("shared", text, names)),
    ("st.shared.", lambda text, names: _store("shared", text, names)),
    ("ld.global.", lambda text, names: _load("global", text, names)),
    ("st.global.", lambda text, names: _store("global", text, names)),
    ("cp.async.cg.shared.global", _copy),
    ("cp.async.commit_group", lambda text, names: "emulator::commit_copies();"),
    ("cp.async.wait_group", lambda text, names: f"emulator::wait_copies({_last_number(text)});"),
    ("ldmatrix.sync.aligned.m8n8.x4.shared.b16", _load_matrices),
    ("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32", _multiply_sparse),
    ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", _multiply_dense),
    ("fence.proxy.async.shared::cta", lambda text, names: "emulator::fence_async_reads();"),
    ("wgmma.fence.sync.aligned", lambda text, names: "emulator::fence_wgmma();"),
    ("wgmma.mma_async.sp.sync.aligned", _wgmma),
    ("wgmma.commit_group.sync.aligned", lambda text, names: "emulator::commit_wgmma();"),
    ("wgmma.wait_group.sync.aligned 0;", lambda text, names: "emulator::wait_wgmma();"),
)


def _emulated(match: re.Match[str]) -> str:
    names = [words.split()[-1] for words in match["parameters"].split(",") if words.strip()]
    for start, write in INSTRUCTIONS:
        if match["text"].startswith(start):
            body = write(match["text"], names)
            return f"static void {match['name']}({match['parameters']}) {{ {body} }}"
    raise NotImplementedError(f"the emulator does not know the instruction {match['text']}")


def translate(text: str, launches: Sequence[Launch]) -> str:
    """C++ with one function `run_<number>` per launch: (buffers) to an error or null."""
    kernels = text[text.index(_PREAMBLE_END) + len(_PREAMBLE_END) :]
    kernels = _WRAPPER.sub(_emulated, kernels)
    kernels = _RESULT.sub(r"result = emulator::\g<name>_nan(a, b);", kernels)
    if "asm volatile" in kernels:
        raise NotImplementedError("an asm statement is not in a function of its own")
    kernels = kernels.replace("__cvta_generic_to_shared", "emulator::shared_address")
    kernels = re.sub(
        r'extern "C" __global__ void __launch_bounds__\([^)]*\) ', "static void ", kernels
    )
    shared = r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];"
    kernels = re.sub(shared, r"\1* \2 = (\1*)emulator::memory;", kernels)
    drivers = [_driver(number, launch, kernels) for number, launch in enumerate(launches)]
    return "\n".join(['#include "emulator.h"', kernels, *drivers])


def _driver(number: int, launch: Launch, kernels: str) -> str:
    signature = re.search(rf"static void {launch.kernel}\(([^)]*)\) \{{", kernels)
    assert signature is not None
    kinds = [parameter.split("__restrict__")[0] for parameter in signature[1].split(", ")]
    arguments = ", ".join(f"({kind})arguments[{i}]" for i, kind in enumerate(kinds))
    grid, threads = _values([str(extent) for extent in launch.grid]), launch.block[0]
    return (
        f"static void call_{number}(void** arguments) {{ {launch.kernel}({arguments}); }}\n"
        f"EXPORTED const char* run_{number}(void** arguments) {{\n"
        f"  return emulator::run_grid({grid}, {threads}, {launch.shared_bytes}, call_{number}, "
        "arguments);\n}"
    )
