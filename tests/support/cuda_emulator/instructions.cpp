// What the PTX instructions of the kernels do.
#include "machine.h"

namespace emulator {

// ---- memory instructions

void copy_async(uint32_t target, const void* source, uint32_t bytes) {
  note_write(target, 16);
  if (bytes) check_global(source, bytes, 16);
  for (uint32_t at = target; at < target + 16; at += 4) words[at / 4].in_flight++;
  fibers[current].copies.push_back({target, source, bytes});
}

void commit_copies() {
  fibers[current].groups.push_back(std::move(fibers[current].copies));
  fibers[current].copies.clear();
}

void wait_copies(size_t pending) {
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

void load_matrices(uint32_t* const (&target)[4], uint32_t address) {
  note_read(address, 16);
  MatrixLoad own{{target[0], target[1], target[2], target[3]}, address};
  meet_warp("ldmatrix", own, [](MatrixLoad** lanes) {
    // Lane l: word t of row g of each matrix; lane 8 q + r holds the address of row r of matrix q.
    for (int lane = 0; lane < 32; lane++)
      for (int q = 0; q < 4; q++)
        memcpy(lanes[lane]->target[q], memory + lanes[q * 8 + lane / 4]->address + lane % 4 * 4, 4);
  });
}

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
static void read_sparse_a(Multiply** lanes, float (*a)[32], int selector) {
  std::fill(a[0], a[16], 0.0f);
  for (int lane = 0; lane < 32; lane++)
    for (int q = 0; q < 4; q++) {
      int g = lane / 4, t = lane % 4, low = q % 2;
      uint32_t metadata = lanes[g * 4 + 2 * selector + q / 2]->metadata;
      uint32_t nibble = metadata >> (16 * low + 4 * t) & 15;
      uint32_t first = nibble & 3, second = nibble >> 2;
      if (first >= second) fail("illegal metadata: positions %u, %u", first, second);
      float* group = &a[g + 8 * low][q / 2 * 16 + t * 4];
      group[first] = element(lanes[lane]->a, 2 * q);
      group[second] = element(lanes[lane]->a, 2 * q + 1);
    }
}

void multiply_sparse(Multiply own, int selector) {
  auto work = [selector](Multiply** lanes) {
    float a[16][32], b[32][8];
    read_sparse_a(lanes, a, selector);
    read_b(lanes, b, 4);
    accumulate(lanes, a, b, 32);
  };
  meet_warp(selector ? "mma.sp selector 1" : "mma.sp selector 0", own, work);
}

// Elements 2 q, 2 q + 1 of lane (g, t) are a[g + 8 (q % 2)][2 t + 8 (q / 2) + 0, 1].
void multiply_dense(Multiply own) {
  meet_warp("mma", own, [](Multiply** lanes) {
    float a[16][32] = {}, b[32][8];
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 8; i++)
        a[lane / 4 + i / 2 % 2 * 8][lane % 4 * 2 + i / 4 * 8 + i % 2] = element(lanes[lane]->a, i);
    read_b(lanes, b, 2);
    accumulate(lanes, a, b, 16);
  });
}

// ---- wgmma: results arrive as late as they may, at the wait; until then the sums are NaN

void fence_async_reads() {
  for (uint32_t word : fibers[current].unfenced) words[word].fenced = true;
  fibers[current].unfenced.clear();
}

void fence_wgmma() { fibers[current].registers_fenced = true; }

void issue_wgmma(GroupMultiply own) {
  Fiber& fiber = fibers[current];
  if (!fiber.registers_fenced) fail("issues wgmma without wgmma.fence");
  if (fiber.sums.empty()) fiber.sums.assign(own.sums, own.sums + own.columns / 2);
  std::fill(own.sums, own.sums + own.columns / 2, NAN);
  fiber.issued.push_back(own);
}

void commit_wgmma() {
  Fiber& fiber = fibers[current];
  fiber.committed.insert(fiber.committed.end(), fiber.issued.begin(), fiber.issued.end());
  fiber.issued.clear();
}

// Rows of 128 bytes, eight of them `stride` after the last eight, 16-byte vectors permuted by XOR.
static float pixel_element(uint64_t descriptor, int row, int k) {
  uint32_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || start % 1024 >= 128) fail("wgmma: not 128-byte swizzle at 1024");
  uint32_t address = start + row / 8 * stride + row % 8 * 128 + k * 2;
  address ^= (address >> 7 & 7) << 4;
  note_read(address & ~3u, 4);
  if (!words[address / 4].fenced) fail("wgmma reads shared byte %u without a proxy fence", address);
  half value;
  memcpy(&value, memory + address, 2);
  return (float)value;
}

// Each warp has 16 of the 64 rows, its operands and sums laid out as those of mma.sp.
static void run_wgmma(Multiply** lanes, const GroupMultiply& first) {
  float a[16][32];
  read_sparse_a(lanes, a, first.selector);
  for (int column = 0; column < first.columns; column += 8) {
    float b[32][8];
    for (int k = 0; k < 32; k++)
      for (int n = 0; n < 8; n++) b[k][n] = pixel_element(first.pixels, column + n, k);
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        lanes[lane]->d[i] = fibers[current / 32 * 32 + lane].committed[0].sums + column / 2 + i;
        lanes[lane]->c[i] = *lanes[lane]->d[i];
      }
    accumulate(lanes, a, b, 32);
  }
}

void wait_wgmma() {
  int own = 0;
  meet_warp("wgmma.wait_group", own, [](int**) {
    Fiber* warp = &fibers[current / 32 * 32];
    if (warp->committed.empty()) return;
    for (int lane = 0; lane < 32; lane++)
      std::copy(warp[lane].sums.begin(), warp[lane].sums.end(), warp[lane].committed[0].sums);
    for (size_t i = 0; i < warp->committed.size(); i++) {
      Multiply operands[32];
      Multiply* lanes[32];
      for (int lane = 0; lane < 32; lane++) {
        const GroupMultiply& multiply = warp[lane].committed[i];
        std::copy(multiply.a, multiply.a + 4, operands[lane].a);
        operands[lane].metadata = multiply.metadata;
        lanes[lane] = &operands[lane];
      }
      run_wgmma(lanes, warp->committed[i]);
    }
    for (int lane = 0; lane < 32; lane++) warp[lane].committed.clear();
  });
  fibers[current].sums.clear();
  fibers[current].registers_fenced = false;
}

}  // namespace emulator

EXPORTED void set_buffers(int count, const char** names, char** begins, const long* sizes) {
  emulator::buffers.clear();
  for (int i = 0; i < count; i++)
    emulator::buffers.push_back({names[i], begins[i], begins[i] + sizes[i]});
}
