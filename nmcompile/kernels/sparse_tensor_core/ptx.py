"""Small vocabulary for writing GPU kernels in TIR: PTX instructions, activations.

Shared and global memory are only touched by the functions here, so that whoever runs the generated
CUDA elsewhere sees every access. Functions emit statements into the open builder frame or return a
TIR expression. Numbers refer to the PTX ISA 9.0.
"""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from nmcompile.kernels.prim_func import Buffer, Expr
from nmcompile.kernels.spec import GELU_TANH, Activation

_PACK = """
__forceinline__ __device__ uint32_t nmc_pack_half2(float low, float high) {
  __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&pair);
}
"""
_LOW = """
__forceinline__ __device__ float nmc_low_half(uint32_t pair) {
  return __low2float(*reinterpret_cast<__half2*>(&pair));
}
"""
_HIGH = """
__forceinline__ __device__ float nmc_high_half(uint32_t pair) {
  return __high2float(*reinterpret_cast<__half2*>(&pair));
}
"""


def unrolled(count: int) -> Any:
    """A loop that nvcc writes out, so that arrays indexed by its variable become registers."""
    return T.serial(0, count, unroll=True)


def registers(name: str, count: int, dtype: str = "uint32") -> Buffer:
    """An array in the registers of a thread."""
    return _named(name, T.alloc_buffer((count,), dtype, scope="local"))


def shared_memory(words: int, align: int) -> Buffer:
    """The dynamic shared memory of the block, 32-bit words; begins at a multiple of `align`."""
    return _named("shared", T.alloc_buffer((words,), "uint32", scope="shared.dyn", align=align))


def _named(name: str, buffer: Buffer) -> Buffer:
    IRBuilder.name(name, buffer)
    return buffer


def copy_async(target: Expr, source: Expr) -> None:
    """Begin to copy 16 bytes from global to shared memory, past L1 (9.7.9)."""
    T.evaluate(T.ptx.cp.async_.cg.shared.global_(target, source, 16))


def copy_async_or_zero(target: Expr, source: Expr, valid: Expr) -> None:
    """As `copy_async` where `valid` (a bool) holds, else 16 zero bytes; reads nothing then."""
    size = T.if_then_else(valid, T.uint32(16), T.uint32(0))
    T.evaluate(T.ptx.cp.async_.cg.shared.global_.L2__128B(target, source, 16, size))


def commit_copies() -> None:
    """Close a group of copies; empty ones count."""
    T.evaluate(T.ptx.cp.async_.commit_group())


def wait_copies(pending: int) -> None:
    """Wait until at most `pending` groups of this thread are under way."""
    T.evaluate(T.ptx.cp.async_.wait_group(pending))


def barrier() -> None:
    """Wait for all threads of the block."""
    T.evaluate(T.cuda.cta_sync())


def load_shared(target: Buffer, first: Expr, count: int, source: Expr) -> None:
    """Load 1, 2 or 4 registers from consecutive words."""
    _vector(T.ptx.ld.shared, target, first, count, source)


def load_global(target: Buffer, first: Expr, count: int, source: Expr) -> None:
    """Load 1, 2 or 4 registers from consecutive words."""
    _vector(T.ptx.ld.global_, target, first, count, source)


def store_shared(target: Expr, value: Expr) -> None:
    """Store one float32."""
    T.evaluate(T.ptx.st.shared.f32(target, value))


def store_global(target: Expr, source: Buffer, first: Expr) -> None:
    """Store four registers to consecutive words."""
    store = T.ptx.st.global_.v4
    store = store.f32 if source.dtype == "float32" else store.b32
    T.evaluate(store(target, *(source[first + i] for i in range(4))))


def _vector(instruction: Any, target: Buffer, first: Expr, count: int, source: Expr) -> None:
    width = {4: "v4", 2: "v2", 1: None}[count]
    vector = instruction if width is None else getattr(instruction, width)
    typed = vector.f32 if target.dtype == "float32" else vector.b32
    T.evaluate(typed(*(target[first + i] for i in range(count)), source))


def load_matrices(target: Buffer, first: Expr, source: Expr) -> None:
    """Load four 8x8 matrices of 16 bits; lane l gives the address of row l % 8 of matrix l / 8."""
    load = T.ptx.ldmatrix.sync.aligned.m8n8.x4.shared.b16
    T.evaluate(load(*(target[first + i] for i in range(4)), source))


def multiply_sparse(
    sums: Buffer, at: Expr, a: Buffer, a_at: Expr, b: Buffer, b_at: Expr, meta: Expr, selector: int
) -> None:
    """Sums += a (16 x 32, 2:4) x b (32 x 8) (9.7.14.6); the selector is part of the opcode."""
    mma = T.ptx["mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32"]
    left, right = _four(a, a_at), _four(b, b_at)
    T.evaluate(mma(*_four(sums, at), *left, *right, *_four(sums, at), meta, selector))


def multiply_dense(sums: Buffer, at: Expr, a: Buffer, a_at: Expr, b: Buffer, b_at: Expr) -> None:
    """Sums += a (16 x 16) x b (16 x 8) (9.7.14.5)."""
    mma = T.ptx["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"]
    right = [b[b_at], b[b_at + 1]]
    T.evaluate(mma(*_four(sums, at), *_four(a, a_at), *right, *_four(sums, at)))


def fence_async_reads() -> None:
    """Let the tensor cores' own path to shared memory see this thread's writes (9.7.13)."""
    T.evaluate(T.ptx.fence.proxy.async_.shared__cta())


def fence_wgmma() -> None:
    """Order the registers of this warp before the next `wgmma` (9.7.15.7)."""
    T.evaluate(T.ptx.wgmma.fence.sync.aligned())


def commit_wgmma() -> None:
    """Close a group of `wgmma`."""
    T.evaluate(T.ptx.wgmma.commit_group.sync.aligned())


def wait_wgmma() -> None:
    """Wait for all groups of `wgmma`."""
    T.evaluate(T.ptx.wgmma.wait_group.sync.aligned(0))


def multiply_group(
    sums: Buffer, columns: int, left: list[Expr], pixels: Expr, meta: Expr, selector: int
) -> None:
    """Sums += left (64 x 32, 2:4, 16 rows per warp) x pixels (32 x columns) (9.7.15.6).

    `pixels` points into the first row of shared memory, K-major with 128-byte swizzle.
    """
    name = f"nmc_wgmma_sparse_n{columns}_{selector}"
    descriptor = T.cuda.func_call(
        "nmc_descriptor", pixels, source_code=_DESCRIPTOR, return_type="uint64"
    )
    code = _wgmma_code(name, columns, selector)
    pointer = sums.ptr_to([0])
    T.evaluate(T.cuda.func_call(name, pointer, *left, descriptor, meta, source_code=code))


# Address, stride of eight rows (1024) in units of 16 bytes; 1 << 62: 128-byte swizzle (9.7.15.5.1).
_DESCRIPTOR = """
__forceinline__ __device__ uint64_t nmc_descriptor(void* pixels) {
  uint32_t address = (uint32_t)__cvta_generic_to_shared(pixels);
  return (uint64_t)((address & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
"""


def _wgmma_code(name: str, columns: int, selector: int) -> str:
    """A function around the instruction, which TVM does not know."""
    count = columns // 2  # sums of a thread
    sums = ", ".join(f"%{i}" for i in range(count))
    a0, a1, a2, a3, pixels, meta = (f"%{count + i}" for i in range(6))
    outputs = ", ".join(f'"+f"(sums[{i}])' for i in range(count))
    return f"""
__forceinline__ __device__ void {name}(float* sums, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t pixels, uint32_t meta) {{
  asm volatile("wgmma.mma_async.sp.sync.aligned.m64n{columns}k32.f32.f16.f16 {{{sums}}}, {{{a0}, {a1}, {a2}, {a3}}}, {pixels}, {meta}, {selector}, 1, 1, 1, 0;"
    : {outputs} : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(pixels), "r"(meta));
}}
"""  # noqa: E501


def _four(buffer: Buffer, first: Expr) -> list[Expr]:
    return [buffer[first + i] for i in range(4)]


def pack_half2(low: Expr, high: Expr) -> Expr:
    """Two float32, rounded to nearest, as one register of float16."""
    return T.cuda.func_call("nmc_pack_half2", low, high, source_code=_PACK, return_type="uint32")


def unpack_half2(pair: Expr) -> tuple[Expr, Expr]:
    """The two float16 of a register as float32."""
    return (
        T.cuda.func_call("nmc_low_half", pair, source_code=_LOW, return_type="float32"),
        T.cuda.func_call("nmc_high_half", pair, source_code=_HIGH, return_type="float32"),
    )


def activate(value: Expr, activation: Activation) -> Expr:
    """The activation of one float32."""
    kind = activation.kind
    if kind == "none":
        return value
    x = T.bind(value)
    zero, one = T.float32(0.0), T.float32(1.0)
    if kind == "relu":
        return T.max(x, zero)
    if kind == "clip":
        return T.min(T.max(x, T.float32(activation.low)), T.float32(activation.high))
    if kind in ("hard_sigmoid", "hard_swish"):
        gate = T.min(T.max(x * T.float32(1.0 / 6.0) + T.float32(0.5), zero), one)
        return gate if kind == "hard_sigmoid" else x * gate
    if kind == "gelu":
        return x * T.float32(0.5) * (one + T.erf(x * T.float32(math.sqrt(0.5))))
    if kind == "gelu_tanh":
        cubic = T.float32(-2.0 * GELU_TANH[0]) + x * x * T.float32(-2.0 * GELU_TANH[1])
        return x / (one + T.exp(x * cubic))
    if kind in ("sigmoid", "silu"):
        return (x if kind == "silu" else one) / (one + T.exp(zero - x))
    raise ValueError(f"unknown activation {kind}")
