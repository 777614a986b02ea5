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
#include <cstdarg>
#include <cstdio>
#include <deque>
#include <vector>

#include "emulator.h"

namespace emulator {

constexpr int kThreads = 1024, kStack = 64 * 1024;

struct Buffer { const char* name; const char* begin; const char* end; };
struct Copy { uint32_t target; const void* source; uint32_t bytes; };

// Who touched a 32-bit word of shared memory last, and behind which barrier.
struct Word {
  int writer = -1, reader = -1;  // reader -2: several threads
  long written = -1, read = -1;  // number of the barrier
  int in_flight = 0;             // copies that have not been waited for
  bool fenced = false;           // visible to the path by which wgmma reads
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done;
  const long* waits_for;  // runs on when this differs from `seen`
  long seen;
  std::vector<Copy> copies;
  std::deque<std::vector<Copy>> groups;
  std::vector<uint32_t> unfenced;  // words it has written since its last fence.proxy.async
  bool registers_fenced;           // by wgmma.fence
  std::vector<GroupMultiply> issued, committed;
  std::vector<float> sums;  // as they were before the first of them
};

// Threads that meet: a warp at one of its instructions, or the block at a barrier.
struct Meeting {
  int arrived = 0;
  long count = 0;
  const char* what = nullptr;
  void* operands[32];
};

alignas(1024) unsigned char memory[kShared];
static Word words[kShared / 4];
static std::vector<Fiber> fibers;  // their stacks are let go of with each launch
static ucontext_t scheduler;
static Meeting block_meeting, warp_meetings[kThreads / 32];
static std::vector<Buffer> buffers;
static void (*body)(void**);
static void** arguments;
Index block_index;
int current;
static int threads, shared_bytes;
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

void barrier() { meet(block_meeting, threads, "a barrier", nullptr, [] {}); }

static void check_shared(uint32_t address, uint32_t bytes) {
  if (address % bytes) fail("shared address %u is not a multiple of %u bytes", address, bytes);
  if (address + bytes > (uint32_t)shared_bytes)
    fail("shared address %u is beyond the %d bytes of the block", address, shared_bytes);
}

void note_read(uint32_t address, uint32_t bytes) {
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

void note_write(uint32_t address, uint32_t bytes) {
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
    word.fenced = false;
    fibers[current].unfenced.push_back(at / 4);
  }
}

void check_global(const void* address, uint32_t bytes, uint32_t alignment) {
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

// ---- blocks

static void run_thread() {
  body(arguments);
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
    fiber.unfenced.clear();
    fiber.registers_fenced = false;
    fiber.issued.clear();
    fiber.committed.clear();
    fiber.sums.clear();
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

const char* run_grid(Index grid, int block_threads, int bytes, void (*kernel)(void**), void** given) {
  *error = 0;
  threads = block_threads;
  shared_bytes = bytes;
  body = kernel;
  arguments = given;
  fibers = std::vector<Fiber>((block_threads + 31) / 32 * 32);
  for (int y = 0; y < grid.y; y++)
    for (int x = 0; x < grid.x && !*error; x++) {
      block_index = {x, y, 0};
      run_block();
    }
  std::vector<Fiber>().swap(fibers);
  return *error ? error : nullptr;
}

}  // namespace emulator
