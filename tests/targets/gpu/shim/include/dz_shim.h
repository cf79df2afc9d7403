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

inline float dz_sum_f32(float value, int lanes, int line = __builtin_LINE()) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += shim::shuffle_xor(value, mask, line);
  return value;
}

inline unsigned dz_sum_u32(unsigned value, int lanes, int line = __builtin_LINE()) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += shim::shuffle_xor(value, mask, line);
  return value;
}

inline float dz_max_f32(float value, int lanes, int line = __builtin_LINE()) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = std::max(value, shim::shuffle_xor(value, mask, line));
  return value;
}

inline int dz_max_i32(int value, int lanes, int line = __builtin_LINE()) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = std::max(value, shim::shuffle_xor(value, mask, line));
  return value;
}

inline int dz_uniform(int value) { return value; }

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

inline float dz_half(unsigned bits) { return shim::Half::to(uint16_t(bits)); }

inline void dz_mma_bf16(float* sums, const unsigned* a, const unsigned* b, int line = __builtin_LINE()) {
  shim_api->mma_bf16(sums, a, b, line);
}

inline void dz_mma_f16(float* sums, const unsigned* a, const unsigned* b, int line = __builtin_LINE()) {
  shim_api->mma_f16(sums, a, b, line);
}

inline void dz_mma_s8(int* sums, const unsigned* a, const unsigned* b, int line = __builtin_LINE()) {
  shim_api->mma_s8(sums, a, b, line);
}

inline void dz_simd_mma_f32(float* sums, const float* a, const float* b, int line = __builtin_LINE()) {
  shim_api->simd_mma_f32(sums, a, b, line);
}

inline void dz_simd_mma_f16(float* sums, const unsigned* a, const unsigned* b, int line = __builtin_LINE()) {
  shim_api->simd_mma_f16(sums, a, b, line);
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
