// deepzig device functions
// What kernels call and TVM's code generator has no words for. Pointers point to registers of the calling thread.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// TVM has kernels compiled with fast math, which takes it for granted that nothing is infinite or no number, and reorders
// sums. Not here (specification, "Math modes"; compilers of before macOS 15 don't know the line, and skip it).
#pragma METAL fp math_mode(safe)

static inline int dz_shuffle_xor(int value, int mask) { return simd_shuffle_xor(value, ushort(mask)); }

// Over each `lanes` consecutive threads: a power of two. a + b and b + a have the same bits, so all of them agree.

static inline float dz_sum_f32(float value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += simd_shuffle_xor(value, ushort(mask));
  return value;
}

static inline uint dz_sum_u32(uint value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += simd_shuffle_xor(value, ushort(mask));
  return value;
}

static inline float dz_max_f32(float value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = max(value, simd_shuffle_xor(value, ushort(mask)));
  return value;
}

static inline int dz_max_i32(int value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = max(value, simd_shuffle_xor(value, ushort(mask)));
  return value;
}

static inline int dz_uniform(int value) { return value; }

static inline float dz_fma(float a, float b, float c) { return fma(a, b, c); }

// To the nearest integer, ties to even.
static inline int dz_round(float value) { return int(rint(value)); }

// c and the products of four signed bytes.
static inline int dz_dot4(int a, int b, int c) {
  char4 x = as_type<char4>(a), y = as_type<char4>(b);
  return c + x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
}

// The value of the f16 in the low half of a word.
static inline float dz_half(uint bits) { return float(as_type<half>(ushort(bits))); }

// the high word of a product
static inline uint dz_multiply_high(uint a, uint b) { return mulhi(a, b); }

// Metal code is compiled with fast math: what has to be right says so.

// correctly rounded
static inline float dz_divide(float a, float b) { return precise::divide(a, b); }

// for any angle
static inline float dz_sin(float angle) { return precise::sin(angle); }

static inline float dz_cos(float angle) { return precise::cos(angle); }

// Metal Shading Language Specification, "SIMD-group matrix": sums [8, 8] += A [8, 8] B [8, 8]
static inline void dz_simd_mma_f32(thread float* sums, thread const float* a, thread const float* b) {
  simdgroup_float8x8 ma, mb, mc;
  ma.thread_elements()[0] = a[0];
  ma.thread_elements()[1] = a[1];
  mb.thread_elements()[0] = b[0];
  mb.thread_elements()[1] = b[1];
  mc.thread_elements()[0] = sums[0];
  mc.thread_elements()[1] = sums[1];
  simdgroup_multiply_accumulate(mc, ma, mb, mc);
  sums[0] = mc.thread_elements()[0];
  sums[1] = mc.thread_elements()[1];
}

// Fast math has functions of its own too: the error of its exp, in last bits, grows with |2 x|.
#define exp(x) precise::exp(x)
#define exp2(x) precise::exp2(x)
#define log(x) precise::log(x)
#define log2(x) precise::log2(x)
#define pow(x, y) precise::pow(x, y)
#define rsqrt(x) precise::rsqrt(x)
#define sqrt(x) precise::sqrt(x)
#define tanh(x) precise::tanh(x)
// end of device functions
