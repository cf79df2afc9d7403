// What the Metal Shading Language of TVM's code generator needs beside C++.
#pragma once
#include "common.h"

#define device
#define constant const
#define thread
#define threadgroup
#define simdgroup_barrier(flags) shim::publish(0, __LINE__)
#define threadgroup_barrier(flags) shim_api->barrier(__LINE__)

namespace shim {

template <class T>
struct Position;

}  // namespace shim

namespace metal {

typedef shim::Small<shim::Half> half;
typedef shim::Small<shim::Brain> bfloat;

#pragma GCC diagnostic ignored "-Wliteral-suffix"  // MSL's own
inline half operator""h(long double value) { return half(double(value)); }

template <class T, int N>
struct Lanes;
template <class T>
struct alignas(2 * sizeof(T)) Lanes<T, 2> {
  T x, y;
};
template <class T>
struct alignas(4 * sizeof(T)) Lanes<T, 3> {
  T x, y, z;
};
template <class T>
struct alignas(4 * sizeof(T)) Lanes<T, 4> {
  T x, y, z, w;
};

template <class T, int N>
struct vec : Lanes<T, N> {
  vec() = default;
  vec(T value) {
    for (int i = 0; i < N; i++) (*this)[i] = value;
  }
  vec(T x, T y) : Lanes<T, N>{x, y} {}
  vec(T x, T y, T z) : Lanes<T, N>{x, y, z} {}
  vec(T x, T y, T z, T w) : Lanes<T, N>{x, y, z, w} {}
  template <class U>
  explicit vec(const vec<U, N>& other) {
    for (int i = 0; i < N; i++) (*this)[i] = T(other[i]);
  }
  T& operator[](int i) { return (&this->x)[i]; }
  const T& operator[](int i) const { return (&this->x)[i]; }
};

#define SHIM_OPERATOR(op)                                                       \
  template <class T, int N>                                                     \
  inline vec<T, N> operator op(const vec<T, N>& a, const vec<T, N>& b) {        \
    vec<T, N> result;                                                           \
    for (int i = 0; i < N; i++) result[i] = T(a[i] op b[i]);                    \
    return result;                                                              \
  }
SHIM_OPERATOR(+)
SHIM_OPERATOR(-)
SHIM_OPERATOR(*)
SHIM_OPERATOR(/)
SHIM_OPERATOR(&)
SHIM_OPERATOR(|)
SHIM_OPERATOR(^)
SHIM_OPERATOR(<<)
SHIM_OPERATOR(>>)
#undef SHIM_OPERATOR

#define SHIM_VECTOR(type, name) \
  typedef vec<type, 2> name##2; \
  typedef vec<type, 3> name##3; \
  typedef vec<type, 4> name##4;
SHIM_VECTOR(float, float)
SHIM_VECTOR(half, half)
SHIM_VECTOR(bfloat, bfloat)
SHIM_VECTOR(int, int)
SHIM_VECTOR(uint, uint)
SHIM_VECTOR(short, short)
SHIM_VECTOR(ushort, ushort)
SHIM_VECTOR(signed char, char)
SHIM_VECTOR(uchar, uchar)
SHIM_VECTOR(long, long)
SHIM_VECTOR(unsigned long, ulong)
#undef SHIM_VECTOR

template <class To, class From>
inline To as_type(const From& value) {
  return shim::bits<To>(value);
}

template <class T>
inline T select(T otherwise, T value, bool condition) {
  return condition ? value : otherwise;
}
template <class T, int N, class B>
inline vec<T, N> select(const vec<T, N>& otherwise, const vec<T, N>& value, const vec<B, N>& condition) {
  vec<T, N> result;
  for (int i = 0; i < N; i++) result[i] = condition[i] ? value[i] : otherwise[i];
  return result;
}

#define SHIM_UNARY(name, function)                           \
  inline float name(float x) { return function(x); }         \
  inline half name(half x) { return half(function(float(x))); }
SHIM_UNARY(exp, ::expf)
SHIM_UNARY(exp2, ::exp2f)
SHIM_UNARY(log, ::logf)
SHIM_UNARY(log2, ::log2f)
SHIM_UNARY(sqrt, ::sqrtf)
SHIM_UNARY(rsqrt, 1.0f / ::sqrtf)
SHIM_UNARY(sin, ::sinf)
SHIM_UNARY(cos, ::cosf)
SHIM_UNARY(tan, ::tanf)
SHIM_UNARY(tanh, ::tanhf)
SHIM_UNARY(fabs, ::fabsf)
SHIM_UNARY(floor, ::floorf)
SHIM_UNARY(ceil, ::ceilf)
SHIM_UNARY(trunc, ::truncf)
SHIM_UNARY(round, ::roundf)
SHIM_UNARY(rint, ::rintf)
#undef SHIM_UNARY
inline float pow(float x, float y) { return ::powf(x, y); }
inline float fma(float x, float y, float z) { return ::fmaf(x, y, z); }
inline float fmod(float x, float y) { return ::fmodf(x, y); }
inline float fmax(float x, float y) { return ::fmaxf(x, y); }
inline float fmin(float x, float y) { return ::fminf(x, y); }
inline bool isnan(float x) { return x != x; }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline int abs(int x) { return x < 0 ? -x : x; }
inline float abs(float x) { return ::fabsf(x); }
inline int popcount(int x) { return __builtin_popcount(uint(x)); }
inline uint popcount(uint x) { return uint(__builtin_popcount(x)); }
inline uint clz(uint x) { return x ? uint(__builtin_clz(x)) : 32u; }
inline uint ctz(uint x) { return x ? uint(__builtin_ctz(x)) : 32u; }
inline uint mulhi(uint x, uint y) { return uint(uint64_t(x) * y >> 32); }
inline int mulhi(int x, int y) { return int(int64_t(x) * y >> 32); }

#define SHIM_EXTREMES(type)                                 \
  inline type max(type a, type b) { return a < b ? b : a; } \
  inline type min(type a, type b) { return b < a ? b : a; }
SHIM_EXTREMES(int)
SHIM_EXTREMES(uint)
SHIM_EXTREMES(long)
SHIM_EXTREMES(unsigned long)
SHIM_EXTREMES(short)
SHIM_EXTREMES(ushort)
SHIM_EXTREMES(half)
#undef SHIM_EXTREMES
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline float min(float a, float b) { return ::fminf(a, b); }
template <class T>
inline T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}

template <class T>
inline T simd_shuffle(T value, ushort lane, int line = __builtin_LINE()) {
  return shim::shuffle(value, lane, line);
}
template <class T>
inline T simd_broadcast(T value, ushort lane, int line = __builtin_LINE()) {
  return shim::shuffle(value, lane, line);
}
template <class T>
inline T simd_shuffle_xor(T value, ushort mask, int line = __builtin_LINE()) {
  return shim::shuffle_xor(value, mask, line);
}
template <class T>
inline T simd_shuffle_down(T value, ushort distance, int line = __builtin_LINE()) {
  return shim::shuffle_relative(value, distance, line);
}
template <class T>
inline T simd_shuffle_up(T value, ushort distance, int line = __builtin_LINE()) {
  return shim::shuffle_relative(value, -int(distance), line);
}
template <class T>
inline T simd_sum(T value, int line = __builtin_LINE()) {
  return shim::reduce(value, [](T a, T b) { return T(a + b); }, line);
}
template <class T>
inline T simd_max(T value, int line = __builtin_LINE()) {
  return shim::reduce(value, [](T a, T b) { return max(a, b); }, line);
}
template <class T>
inline T simd_min(T value, int line = __builtin_LINE()) {
  return shim::reduce(value, [](T a, T b) { return min(a, b); }, line);
}
inline bool simd_any(bool value, int line = __builtin_LINE()) { return shim::ballot(value, line) != 0; }
inline bool simd_all(bool value, int line = __builtin_LINE()) { return shim::ballot(!value, line) == 0; }

}  // namespace metal

namespace shim {

template <>
struct Position<uint> {
  static uint of(const ShimDim& dim) { return dim.x; }
};
template <>
struct Position<metal::uint2> {
  static metal::uint2 of(const ShimDim& dim) { return {dim.x, dim.y}; }
};
template <>
struct Position<metal::uint3> {
  static metal::uint3 of(const ShimDim& dim) { return {dim.x, dim.y, dim.z}; }
};

}  // namespace shim
