// Runs the thread blocks of a CUDA kernel on a CPU, one after the other, and checks what a GPU would
// not: that shared memory is written before it is read, with a barrier in between; that copies are
// waited for; that global accesses stay inside their buffers; that sparsity metadata is legal.
//
// Every thread is a fiber. It runs until it has to wait for its warp or its block, so whatever the
// kernel does not synchronise happens in a fixed order, and the checks do not depend on that order.
// cp.async lands as late as it may: at the wait of the thread that issued it.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <vector>

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

constexpr int kShared = 227 * 1024, kThreads = 1024, kStack = 64 * 1024;

struct Buffer { const char* name; const char* begin; const char* end; };
struct Copy { uint32_t target; const void* source; uint32_t bytes; };

// Who touched a 32-bit word of shared memory last, and behind which barrier.
struct Word {
  int writer = -1, reader = -1;  // reader -2: several threads
  long written = -1, read = -1;  // number of the barrier
  int in_flight = 0;             // copies that have not been waited for
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done;
  const long* waits_for;  // runs on when this differs from `seen`
  long seen;
  std::vector<Copy> copies;
  std::deque<std::vector<Copy>> groups;
};

// Threads that meet: a warp at one of its instructions, or the block at a barrier.
struct Meeting {
  int arrived = 0;
  long count = 0;
  const char* what = nullptr;
  void* operands[32];
};

alignas(128) static unsigned char memory[kShared];
static Word words[kShared / 4];
static std::vector<Fiber> fibers(kThreads);
static ucontext_t scheduler;
static Meeting block_meeting, warp_meetings[kThreads / 32];
static std::vector<Buffer> buffers;
static std::function<void()> body;
static Index block_index;
static int threads, current, shared_bytes;
static char error[512];

static void fail(const char* format, ...) {
  int used = snprintf(error, sizeof error, "block (%d, %d), thread %d: ", block_index.x,
                      block_index.y, current);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error + used, sizeof error - used, format, arguments);
  va_end(arguments);
  setcontext(&scheduler);  // gives the block up
}

static void wait_until_changed(const long& count) {
  Fiber& fiber = fibers[current];
  fiber.waits_for = &count;
  fiber.seen = count;
  swapcontext(&fiber.context, &scheduler);
}

// The last to arrive does the work of all.
template <typename Work>
static void meet(Meeting& meeting, int expected, const char* what, void* operands, Work work) {
  if (meeting.arrived == 0) meeting.what = what;
  if (meeting.what != what && strcmp(meeting.what, what))
    fail("is at %s while its warp is at %s", what, meeting.what);
  if (expected == 32) meeting.operands[current % 32] = operands;
  if (++meeting.arrived < expected) return wait_until_changed(meeting.count);
  work();
  meeting.arrived = 0;
  meeting.count++;
}

template <typename Operands, typename Work>
static void meet_warp(const char* what, Operands& own, Work work) {
  Meeting& warp = warp_meetings[current / 32];
  meet(warp, 32, what, &own, [&] { work((Operands**)warp.operands); });
}

static void barrier() { meet(block_meeting, threads, "a barrier", nullptr, [] {}); }

static void check_shared(uint32_t address, uint32_t bytes) {
  if (address % bytes) fail("shared address %u is not a multiple of %u bytes", address, bytes);
  if (address + bytes > (uint32_t)shared_bytes)
    fail("shared address %u is beyond the %d bytes of the block", address, shared_bytes);
}

static void note_read(uint32_t address, uint32_t bytes) {
  check_shared(address, bytes);
  for (uint32_t at = address; at < address + bytes; at += 4) {
    Word& word = words[at / 4];
    if (word.in_flight) fail("reads shared byte %u while a copy to it is in flight", at);
    if (word.writer < 0) fail("reads shared byte %u, which nobody has written", at);
    if (word.writer != current && word.written == block_meeting.count)
      fail("reads shared byte %u, which thread %d wrote behind the same barrier", at, word.writer);
    bool first = word.read != block_meeting.count || word.reader == current;
    word.reader = first ? current : -2;
    word.read = block_meeting.count;
  }
}

static void note_write(uint32_t address, uint32_t bytes) {
  check_shared(address, bytes);
  for (uint32_t at = address; at < address + bytes; at += 4) {
    Word& word = words[at / 4];
    if (word.in_flight) fail("writes shared byte %u while a copy to it is in flight", at);
    if (word.writer >= 0 && word.writer != current && word.written == block_meeting.count)
      fail("writes shared byte %u, which thread %d wrote behind the same barrier", at, word.writer);
    if (word.read == block_meeting.count && word.reader != current)
      fail("writes shared byte %u, which another thread reads behind the same barrier", at);
    word.writer = current;
    word.written = block_meeting.count;
  }
}

static void check_global(const void* address, uint32_t bytes, uint32_t alignment) {
  const char* begin = (const char*)address;
  if ((uintptr_t)begin % alignment) fail("global address is not a multiple of %u", alignment);
  for (const Buffer& buffer : buffers)
    if (begin >= buffer.begin && begin + bytes <= buffer.end) return;
  for (const Buffer& buffer : buffers)
    if (begin + 4096 >= buffer.begin && begin < buffer.end + 4096)
      fail("global access %ld bytes from the start of %s, which has %ld",
           (long)(begin - buffer.begin), buffer.name, (long)(buffer.end - buffer.begin));
  fail("global access outside every buffer");
}

// ---- memory instructions

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

static void copy_async(uint32_t target, const void* source, uint32_t bytes) {
  note_write(target, 16);
  if (bytes) check_global(source, bytes, 16);
  for (uint32_t at = target; at < target + 16; at += 4) words[at / 4].in_flight++;
  fibers[current].copies.push_back({target, source, bytes});
}

static void commit_copies() {
  fibers[current].groups.push_back(std::move(fibers[current].copies));
  fibers[current].copies.clear();
}

static void wait_copies(size_t pending) {
  auto& groups = fibers[current].groups;
  for (; groups.size() > pending; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      for (uint32_t at = copy.target; at < copy.target + 16; at += 4) words[at / 4].in_flight--;
      note_write(copy.target, 16);
      memcpy(memory + copy.target, copy.source, copy.bytes);
      memset(memory + copy.target + copy.bytes, 0, 16 - copy.bytes);
    }
}

// ---- warp instructions; lane = 4 g + t in the comments, layouts as in the PTX ISA 9.0, 9.7.14

struct MatrixLoad { uint32_t* target[4]; uint32_t address; };

static void load_matrices(uint32_t* const (&target)[4], uint32_t address) {
  note_read(address, 16);
  MatrixLoad own{{target[0], target[1], target[2], target[3]}, address};
  meet_warp("ldmatrix", own, [](MatrixLoad** lanes) {
    // Lane l: word t of row g of each matrix; lane 8 q + r holds the address of row r of matrix q.
    for (int lane = 0; lane < 32; lane++)
      for (int q = 0; q < 4; q++)
        memcpy(lanes[lane]->target[q], memory + lanes[q * 8 + lane / 4]->address + lane % 4 * 4, 4);
  });
}

struct Multiply { float* d[4]; uint32_t a[4], b[4]; float c[4]; uint32_t metadata; };

static float element(const uint32_t* registers, int i) {
  half value;
  memcpy(&value, (const char*)registers + 2 * i, 2);
  return (float)value;
}

static void accumulate(Multiply** lanes, const float (*a)[32], const float (*b)[8], int depth) {
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) {
      int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < depth; k++) sum += a[row][k] * b[k][column];
      *lanes[lane]->d[i] = lanes[lane]->c[i] + sum;
    }
}

// Element 2 q + h of lane (g, t) is b[8 q + 2 t + h][g].
static void read_b(Multiply** lanes, float (*b)[8], int registers) {
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 2 * registers; i++)
      b[i / 2 * 8 + lane % 4 * 2 + i % 2][lane / 4] = element(lanes[lane]->b, i);
}

// Elements 2 q, 2 q + 1 of lane (g, t) are of row g + 8 (q % 2), and there what is kept of the
// columns 4 t .. 4 t + 3, plus 16 for q >= 2; their positions are a nibble in the metadata of lane
// (g, 2 selector + q / 2): number t of its lower or, for row g + 8, upper half.
static void multiply_sparse(Multiply own, int selector) {
  auto work = [selector](Multiply** lanes) {
    float a[16][32] = {}, b[32][8];
    for (int lane = 0; lane < 32; lane++)
      for (int q = 0; q < 4; q++) {
        int g = lane / 4, t = lane % 4, low = q % 2;
        uint32_t metadata = lanes[g * 4 + 2 * selector + q / 2]->metadata;
        uint32_t nibble = metadata >> (16 * low + 4 * t) & 15;
        if ((nibble & 3) >= nibble >> 2) fail("illegal metadata: positions %u, %u", nibble & 3, nibble >> 2);
        for (int h = 0; h < 2; h++)
          a[g + 8 * low][q / 2 * 16 + t * 4 + (nibble >> 2 * h & 3)] = element(lanes[lane]->a, 2 * q + h);
      }
    read_b(lanes, b, 4);
    accumulate(lanes, a, b, 32);
  };
  meet_warp(selector ? "mma.sp selector 1" : "mma.sp selector 0", own, work);
}

// Elements 2 q, 2 q + 1 of lane (g, t) are a[g + 8 (q % 2)][2 t + 8 (q / 2) + 0, 1].
static void multiply_dense(Multiply own) {
  meet_warp("mma", own, [](Multiply** lanes) {
    float a[16][32] = {}, b[32][8];
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 8; i++)
        a[lane / 4 + i / 2 % 2 * 8][lane % 4 * 2 + i / 4 * 8 + i % 2] = element(lanes[lane]->a, i);
    read_b(lanes, b, 2);
    accumulate(lanes, a, b, 16);
  });
}

// ---- blocks

static void run_thread() {
  body();
  fibers[current].done = true;
  setcontext(&scheduler);
}

static void start_block() {
  std::fill(words, words + kShared / 4, Word());
  block_meeting = Meeting();
  std::fill(warp_meetings, warp_meetings + kThreads / 32, Meeting());
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.stack.resize(kStack);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_thread, 0);
    fiber.done = false;
    fiber.waits_for = nullptr;
    fiber.copies.clear();
    fiber.groups.clear();
  }
}

static void run_block() {
  start_block();
  for (bool moved = true; moved && !*error;) {
    moved = false;
    for (int i = 0; i < threads && !*error; i++) {
      Fiber& fiber = fibers[i];
      if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.seen)) continue;
      moved = true;
      fiber.waits_for = nullptr;
      current = i;
      swapcontext(&scheduler, &fiber.context);
    }
  }
  for (current = 0; current < threads && !*error; current++)
    if (!fibers[current].done) fail("waits for threads that never come");
}

static const char* run_grid(Index grid, int block_threads, int bytes, std::function<void()> kernel) {
  *error = 0;
  threads = block_threads;
  shared_bytes = bytes;
  body = kernel;
  for (int y = 0; y < grid.y; y++)
    for (int x = 0; x < grid.x && !*error; x++) {
      block_index = {x, y, 0};
      run_block();
    }
  return *error ? error : nullptr;
}

}  // namespace emulator

#define threadIdx (Index{emulator::current, 0, 0})
#define blockIdx emulator::block_index
static void __syncthreads() { emulator::barrier(); }
