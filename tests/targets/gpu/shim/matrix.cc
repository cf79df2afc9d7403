// Every lane publishes its registers; then each computes its own sums, along k in ascending order. It is here and not in
// the headers because it is worth more of the compiler's time than kernels get.
#include "matrix.h"

#include "engine.h"
#include "include/floats.h"

namespace shim {
namespace {

struct HalfPair {
  static constexpr int count = 2;
  static float get(unsigned word, int i) { return Half::to(uint16_t(word >> 16 * i)); }
};

struct BrainPair {
  static constexpr int count = 2;
  static float get(unsigned word, int i) { return bits<float>(i ? word & 0xffff0000u : word << 16); }
};

struct Bytes {
  static constexpr int count = 4;
  static int get(unsigned word, int i) { return int8_t(word >> 8 * i); }
};

// The registers of a lane that multiplies, as it publishes them.
template <class Word, int A, int B>
struct Operands {
  Word a[A], b[B];

  static ShimLanes publish(const Word* a, const Word* b, int line) {
    Operands own;
    memcpy(own.a, a, sizeof own.a);
    memcpy(own.b, b, sizeof own.b);
    return kApi.publish(&own, sizeof own, line);
  }

  // Those of any of the 32 lanes, all of which a multiplication needs.
  static const Operands& of(const ShimLanes& lanes, unsigned lane) {
    return *reinterpret_cast<const Operands*>(lanes.slots + lane * kShimSlotBytes);
  }
};

// PTX ISA, "Matrix Fragments for mma.m16n8k16" and "...m16n8k32": of A, a lane has word lane % 4 and that + 4 of rows
// lane / 4 and that + 8; of B those words of column lane / 4; of the sums columns lane % 4 * 2 and that + 1 of the two
// rows.
template <class Element, class Sum>
void mma(Sum* sums, const unsigned* a, const unsigned* b, int line) {
  using Registers = Operands<unsigned, 4, 2>;
  constexpr int size = 8 * Element::count;
  ShimLanes lanes = Registers::publish(a, b, line);
  unsigned row = lanes.lane / 4, column = lanes.lane % 4 * 2;
  Sum left[2][size], right[2][size];
  for (unsigned i = 0; i < 2; i++) {
    for (unsigned word = 0; word < 8; word++) {
      unsigned wa = Registers::of(lanes, row * 4 + word % 4).a[i + word / 4 * 2];
      unsigned wb = Registers::of(lanes, (column + i) * 4 + word % 4).b[word / 4];
      for (int k = 0; k < Element::count; k++) {
        left[i][word * Element::count + k] = Element::get(wa, k);
        right[i][word * Element::count + k] = Element::get(wb, k);
      }
    }
  }
  for (int i = 0; i < 4; i++) {
    Sum sum = sums[i];
    for (int k = 0; k < size; k++) sum += left[i / 2][k] * right[i % 2][k];
    sums[i] = sum;
  }
}

// The lane that has an element of an 8x8 matrix: each has two neighbours of a row (MLX, steel/gemm/mma.h).
unsigned simd_lane(unsigned row, unsigned column) {
  return row / 4 * 16 + column / 4 * 8 + row % 4 * 2 + column % 4 / 2;
}

template <class Word, int N, class Get>
void simd_mma(float* sums, const Word* a, const Word* b, int line, Get get) {
  using Registers = Operands<Word, N, N>;
  ShimLanes lanes = Registers::publish(a, b, line);
  unsigned row = lanes.lane / 16 * 4 + lanes.lane / 2 % 4, column = lanes.lane / 8 % 2 * 4 + lanes.lane % 2 * 2;
  for (unsigned k = 0; k < 8; k++) {
    float left = get(Registers::of(lanes, simd_lane(row, k)).a, k % 2);
    const Word* right = Registers::of(lanes, simd_lane(k, column)).b;
    for (unsigned i = 0; i < 2; i++) sums[i] += left * get(right, i);
  }
}

}  // namespace

void mma_bf16(float* sums, const unsigned* a, const unsigned* b, int line) { mma<BrainPair>(sums, a, b, line); }
void mma_f16(float* sums, const unsigned* a, const unsigned* b, int line) { mma<HalfPair>(sums, a, b, line); }
void mma_s8(int* sums, const unsigned* a, const unsigned* b, int line) { mma<Bytes>(sums, a, b, line); }

void simd_mma_f32(float* sums, const float* a, const float* b, int line) {
  simd_mma<float, 2>(sums, a, b, line, [](const float* pair, unsigned i) { return pair[i]; });
}

void simd_mma_f16(float* sums, const unsigned* a, const unsigned* b, int line) {
  simd_mma<unsigned, 1>(sums, a, b, line, [](const unsigned* pair, unsigned i) { return HalfPair::get(*pair, int(i)); });
}

}  // namespace shim
