// What kernels see: CUDA's names, and what the PTX instructions do, for `translate.py` to call. What
// stands behind it (`instructions.cpp`, `machine.h`) is compiled once for all kernels.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define EXPORTED extern "C" __attribute__((visibility("default")))

typedef _Float16 half;
struct __half2 { half x, y; };
struct Index { int x, y, z; };

#define uint unsigned int
#define __forceinline__ inline
#define __device__
#define __restrict__ __restrict

static __half2 __floats2half2_rn(float low, float high) { return {(half)low, (half)high}; }
static float __low2float(__half2 pair) { return (float)pair.x; }
static float __high2float(__half2 pair) { return (float)pair.y; }
static float max(float a, float b) { return fmaxf(a, b); }
static float min(float a, float b) { return fminf(a, b); }
static int min(int a, int b) { return a < b ? a : b; }

namespace emulator {

constexpr int kShared = 227 * 1024;

alignas(1024) extern unsigned char memory[kShared];
extern Index block_index;
extern int current;

// max.NaN.f32 and min.NaN.f32 (PTX ISA 9.0, 9.7.3): NaN where either is.
static float max_nan(float a, float b) { return a != a || b != b ? NAN : fmaxf(a, b); }
static float min_nan(float a, float b) { return a != a || b != b ? NAN : fminf(a, b); }

// ---- memory instructions

void note_read(uint32_t address, uint32_t bytes);
void note_write(uint32_t address, uint32_t bytes);
void check_global(const void* address, uint32_t bytes, uint32_t alignment);

static uint32_t shared_address(const void* pointer) {
  return (uint32_t)((const unsigned char*)pointer - memory);
}

template <typename T, int N>
static void load_shared(T* const (&target)[N], uint32_t address) {
  note_read(address, 4 * N);
  for (int i = 0; i < N; i++) memcpy(target[i], memory + address + 4 * i, 4);
}

template <typename T, int N>
static void store_shared(uint32_t address, const T (&source)[N]) {
  note_write(address, 4 * N);
  memcpy(memory + address, source, 4 * N);
}

template <typename T, int N>
static void load_global(T* const (&target)[N], const void* address) {
  check_global(address, 4 * N, 4 * N);
  for (int i = 0; i < N; i++) memcpy(target[i], (const char*)address + 4 * i, 4);
}

template <typename T, int N>
static void store_global(const void* address, const T (&source)[N]) {
  check_global(address, 4 * N, 4 * N);
  memcpy((void*)address, source, 4 * N);
}

void copy_async(uint32_t target, const void* source, uint32_t bytes);
void commit_copies();
void wait_copies(size_t pending);

// ---- warp instructions

struct Multiply { float* d[4]; uint32_t a[4], b[4]; float c[4]; uint32_t metadata; };

void load_matrices(uint32_t* const (&target)[4], uint32_t address);
void multiply_sparse(Multiply own, int selector);
void multiply_dense(Multiply own);

// ---- wgmma

// One wgmma as its threads have issued it: kept elements of 16 rows, and where the pixels are.
struct GroupMultiply { float* sums; int columns; uint32_t a[4]; uint64_t pixels; uint32_t metadata; int selector; };

void fence_async_reads();
void fence_wgmma();
void issue_wgmma(GroupMultiply own);
void commit_wgmma();
void wait_wgmma();

// ---- launches

void barrier();
const char* run_grid(Index grid, int threads, int bytes, void (*kernel)(void**), void** arguments);

}  // namespace emulator

#define threadIdx (Index{emulator::current, 0, 0})
#define blockIdx emulator::block_index
static void __syncthreads() { emulator::barrier(); }
