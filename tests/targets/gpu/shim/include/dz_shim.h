// DeepZig's device functions in plain C++: what the preludes have in PTX and MSL.
#pragma once
#include "common.h"

template <class T>
inline T dz_shuffle_xor(T value, int mask, int line = __builtin_LINE()) {
  return shim::shuffle_xor(value, mask, line);
}

template <class T>
inline T dz_shuffle(T value, int lane, int line = __builtin_LINE()) {
  return shim::shuffle(value, lane, line);
}

inline float dz_fma(float a, float b, float c) { return fmaf(a, b, c); }

inline int dz_round(float value) { return int(rintf(value)); }

inline int dz_dot4(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += int8_t(a >> 8 * i) * int8_t(b >> 8 * i);
  return c;
}

inline unsigned dz_multiply_high(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }

inline float dz_divide(float a, float b) { return a / b; }

inline float dz_sin(float angle) { return sinf(angle); }

inline float dz_cos(float angle) { return cosf(angle); }

namespace shim {

// The registers of a lane that multiplies, as it publishes them.
template <class Word, int A, int B>
struct Operands {
  Word a[A], b[B];
};

template <class Word, int A, int B>
inline ShimLanes publish_operands(const Word* a, const Word* b, int line) {
  Operands<Word, A, B> own;
  memcpy(own.a, a, sizeof own.a);
  memcpy(own.b, b, sizeof own.b);
  return publish(own, line);
}

// Register `index` of lane `lane`, which a multiplication needs all 32 of.
template <class Word, int A, int B>
inline const Operands<Word, A, B>& operands(const ShimLanes& lanes, unsigned lane) {
  return *reinterpret_cast<const Operands<Word, A, B>*>(lanes.slots + lane * kShimSlotBytes);
}

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

// mma.sync.aligned.m16n8k(8 words).row.col, PTX ISA, "Matrix Fragments for mma.m16n8k16" and "...m16n8k32": of A, a lane
// has word lane % 4 and that + 4 of rows lane / 4 and that + 8; of B those words of column lane / 4; of the sums columns
// lane % 4 * 2 and that + 1 of the two rows.
template <class Element, class Sum>
inline void mma(Sum* sums, const unsigned* a, const unsigned* b, int line) {
  ShimLanes lanes = publish_operands<unsigned, 4, 2>(a, b, line);
  unsigned row = lanes.lane / 4, column = lanes.lane % 4 * 2;
  for (int i = 0; i < 4; i++) {
    Sum sum = sums[i];
    for (unsigned word = 0; word < 8; word++) {
      unsigned wa = operands<unsigned, 4, 2>(lanes, row * 4 + word % 4).a[i / 2 + word / 4 * 2];
      unsigned wb = operands<unsigned, 4, 2>(lanes, (column + i % 2) * 4 + word % 4).b[word / 4];
      for (int k = 0; k < Element::count; k++) sum += Element::get(wa, k) * Element::get(wb, k);
    }
    sums[i] = sum;
  }
}

// simdgroup_multiply_accumulate of 8x8 matrices. A lane has two neighbours of a row (MLX, steel/gemm/mma.h).
inline unsigned simd_lane(unsigned row, unsigned column) {
  return row / 4 * 16 + column / 4 * 8 + row % 4 * 2 + column % 4 / 2;
}

template <class Word, int N, class Get>
inline void simd_mma(float* sums, const Word* a, const Word* b, Get get, int line) {
  ShimLanes lanes = publish_operands<Word, N, N>(a, b, line);
  unsigned row = lanes.lane / 16 * 4 + lanes.lane / 2 % 4, column = lanes.lane / 8 % 2 * 4 + lanes.lane % 2 * 2;
  for (unsigned i = 0; i < 2; i++) {
    float sum = sums[i];
    for (unsigned k = 0; k < 8; k++) {
      sum += get(operands<Word, N, N>(lanes, simd_lane(row, k)).a, k % 2) *
             get(operands<Word, N, N>(lanes, simd_lane(k, column)).b, i);
    }
    sums[i] = sum;
  }
}

}  // namespace shim

inline float dz_half(unsigned bits) { return shim::Half::to(uint16_t(bits)); }

inline void dz_mma_bf16(float* sums, const unsigned* a, const unsigned* b, int line = __builtin_LINE()) {
  shim::mma<shim::BrainPair>(sums, a, b, line);
}

inline void dz_mma_f16(float* sums, const unsigned* a, const unsigned* b, int line = __builtin_LINE()) {
  shim::mma<shim::HalfPair>(sums, a, b, line);
}

inline void dz_mma_s8(int* sums, const unsigned* a, const unsigned* b, int line = __builtin_LINE()) {
  shim::mma<shim::Bytes>(sums, a, b, line);
}

inline void dz_simd_mma_f32(float* sums, const float* a, const float* b, int line = __builtin_LINE()) {
  shim::simd_mma<float, 2>(sums, a, b, [](const float* pair, unsigned i) { return pair[i]; }, line);
}

inline void dz_simd_mma_f16(float* sums, const unsigned* a, const unsigned* b, int line = __builtin_LINE()) {
  shim::simd_mma<unsigned, 1>(
      sums, a, b, [](const unsigned* pair, unsigned i) { return shim::HalfPair::get(pair[0], int(i)); }, line);
}

// PTX ISA, "cp.async": here as late as it can be, so that a missing wait shows.
inline void dz_cp_async_16(void* to, const void* from) { shim_api->copy(to, from, 16); }
inline void dz_cp_async_4(void* to, const void* from) { shim_api->copy(to, from, 4); }
inline void dz_cp_async_commit() { shim_api->commit(); }
inline void dz_cp_async_wait(int pending) { shim_api->wait(unsigned(pending)); }

// Codes 2 pair and 2 pair + 1 of four e4m3 codes as a pair of bf16.
inline unsigned dz_bf16_of_e4m3(unsigned codes, int pair) {
  unsigned result = 0;
  for (int i = 0; i < 2; i++) {
    unsigned code = codes >> (16 * pair + 8 * i) & 255, magnitude = code & 127;
    float value = magnitude < 8 ? magnitude / 512.f : shim::bits<float>((magnitude << 20) + (120u << 23));
    result |= (shim::bits<unsigned>(value) >> 16 | (code & 128) << 8) << 16 * i;
  }
  return result;
}
