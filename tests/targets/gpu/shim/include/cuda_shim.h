// What the CUDA C of TVM's code generator needs beside C++.
#pragma once
#include "common.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

typedef shim::Small<shim::Half> half;
typedef half __half;
typedef shim::Small<shim::Brain> nv_bfloat16;
typedef nv_bfloat16 __nv_bfloat16;

#define CUDART_INF_F __builtin_huge_valf()
#define CUDART_INF __builtin_huge_val()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_NAN __builtin_nan("")

typedef long long longlong;
typedef unsigned long long ulonglong;

#define SHIM_VECTOR(type, name, made)                                    \
  struct alignas(2 * sizeof(type)) name##2 {                             \
    type x, y;                                                           \
  };                                                                     \
  struct name##3 {                                                       \
    type x, y, z;                                                        \
  };                                                                     \
  struct alignas(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 {     \
    type x, y, z, w;                                                     \
  };                                                                     \
  inline name##2 made##2(type x, type y) { return {x, y}; }              \
  inline name##3 made##3(type x, type y, type z) { return {x, y, z}; }   \
  inline name##4 made##4(type x, type y, type z, type w) { return {x, y, z, w}; }
SHIM_VECTOR(float, float, make_float)
SHIM_VECTOR(double, double, make_double)
SHIM_VECTOR(int, int, make_int)
SHIM_VECTOR(uint, uint, make_uint)
SHIM_VECTOR(short, short, make_short)
SHIM_VECTOR(ushort, ushort, make_ushort)
SHIM_VECTOR(signed char, char, make_char)
SHIM_VECTOR(uchar, uchar, make_uchar)
SHIM_VECTOR(long long, longlong, make_longlong)
SHIM_VECTOR(unsigned long long, ulonglong, make_ulonglong)
SHIM_VECTOR(half, half, make_half)
SHIM_VECTOR(nv_bfloat16, nv_bfloat16, make_bfloat16)
#undef SHIM_VECTOR
typedef half2 __half2;
typedef nv_bfloat162 __nv_bfloat162;

#define SHIM_EXTREMES(type)                                       \
  inline type max(type a, type b) { return a < b ? b : a; }       \
  inline type min(type a, type b) { return b < a ? b : a; }
SHIM_EXTREMES(int)
SHIM_EXTREMES(uint)
SHIM_EXTREMES(long)
SHIM_EXTREMES(unsigned long)
SHIM_EXTREMES(long long)
SHIM_EXTREMES(half)
SHIM_EXTREMES(nv_bfloat16)
#undef SHIM_EXTREMES
inline float max(float a, float b) { return fmaxf(a, b); }  // a number, where one of them is one
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }

inline float __half2float(half x) { return x; }
inline half __float2half(float x) { return half(x); }
inline half __float2half_rn(float x) { return half(x); }
inline float __bfloat162float(nv_bfloat16 x) { return x; }
inline nv_bfloat16 __float2bfloat16(float x) { return nv_bfloat16(x); }
inline ushort __half_as_ushort(half x) { return x.word; }
inline half __ushort_as_half(ushort x) { return shim::bits<half>(x); }
inline half2 __halves2half2(half x, half y) { return {x, y}; }
inline uint __pack_half2(half x, half y) { return uint(y.word) << 16 | x.word; }
inline half hexp(half x) { return half(expf(x)); }
inline half hlog(half x) { return half(logf(x)); }
inline half hsqrt(half x) { return half(sqrtf(x)); }
inline half hrsqrt(half x) { return half(rsqrtf(x)); }
inline half htanh(half x) { return half(tanhf(x)); }
inline half hpow(half x, half y) { return half(powf(x, y)); }
inline half __habs(half x) { return shim::bits<half>(uint16_t(x.word & 0x7fff)); }
inline bool __hgt(half x, half y) { return float(x) > float(y); }
inline bool __hlt(half x, half y) { return float(x) < float(y); }

inline uint __float_as_uint(float x) { return shim::bits<uint>(x); }
inline int __float_as_int(float x) { return shim::bits<int>(x); }
inline float __uint_as_float(uint x) { return shim::bits<float>(x); }
inline float __int_as_float(int x) { return shim::bits<float>(x); }
inline int __popc(uint x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(uint(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint __umulhi(uint x, uint y) { return uint(uint64_t(x) * y >> 32); }
inline int __mulhi(int x, int y) { return int(int64_t(x) * y >> 32); }
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; i++) sum += int8_t(uint(a) >> 8 * i) * int8_t(uint(b) >> 8 * i);
  return sum;
}
inline uint __byte_perm(uint x, uint y, uint select) {
  uint64_t both = uint64_t(y) << 32 | x;
  uint result = 0;
  for (int i = 0; i < 4; i++) result |= (uint(both >> 8 * (select >> 4 * i & 7)) & 0xff) << 8 * i;
  return result;
}

template <class T>
inline T __ldg(const T* address) {
  return *address;
}

template <class T>
inline T atomicAdd(T* address, T value) {
  T old = *address, sum;
  do {
    sum = old + value;
  } while (!__atomic_compare_exchange(address, &old, &sum, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}
template <class T>
inline T atomicMax(T* address, T value) {
  T old = *address;
  while (old < value && !__atomic_compare_exchange(address, &old, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return old;
}
template <class T>
inline T atomicMin(T* address, T value) {
  T old = *address;
  while (value < old && !__atomic_compare_exchange(address, &old, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return old;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

inline void __syncthreads(int line = __builtin_LINE()) { shim_api->barrier(line); }
inline void __syncwarp(uint = ~0u, int line = __builtin_LINE()) { shim::publish(0, line); }
inline uint __activemask() { return ~0u; }

template <class T>
inline T __shfl_sync(uint, T value, int lane, int width = 32, int line = __builtin_LINE()) {
  ShimLanes lanes = shim::publish(value, line);
  return shim::lane_of<T>(lanes, lanes.lane / unsigned(width) * unsigned(width) + unsigned(lane) % unsigned(width));
}
template <class T>
inline T __shfl_xor_sync(uint, T value, int mask, int width = 32, int line = __builtin_LINE()) {
  return shim::shuffle_xor(value, mask, line);
}
template <class T>
inline T __shfl_down_sync(uint, T value, uint distance, int width = 32, int line = __builtin_LINE()) {
  return shim::shuffle_relative(value, int(distance), line, unsigned(width));
}
template <class T>
inline T __shfl_up_sync(uint, T value, uint distance, int width = 32, int line = __builtin_LINE()) {
  return shim::shuffle_relative(value, -int(distance), line, unsigned(width));
}
inline uint __ballot_sync(uint, int value, int line = __builtin_LINE()) { return shim::ballot(value, line); }
inline int __any_sync(uint, int value, int line = __builtin_LINE()) { return shim::ballot(value, line) != 0; }
inline int __all_sync(uint, int value, int line = __builtin_LINE()) { return shim::ballot(!value, line) == 0; }
