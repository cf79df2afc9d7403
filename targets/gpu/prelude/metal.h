// deepzig device functions
// What kernels call and TVM's code generator has no words for. Pointers point to registers of the calling thread.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// TVM has kernels compiled with fast math, which takes it for granted that nothing is infinite or no number, and reorders
// sums. Not here (specification, "Math modes"; compilers of before macOS 15 don't know the line, and skip it).
#pragma METAL fp math_mode(safe)

static inline float dz_shuffle_xor(float value, int mask) { return simd_shuffle_xor(value, ushort(mask)); }

static inline int dz_shuffle_xor(int value, int mask) { return simd_shuffle_xor(value, ushort(mask)); }

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
