// deepzig device functions
// What kernels call and TVM's code generator has no words for. Pointers point to registers of the calling thread.

static __device__ __forceinline__ int dz_shuffle_xor(int value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Over each `lanes` consecutive threads: a power of two. a + b and b + a have the same bits, so all of them agree.

static __device__ __forceinline__ float dz_sum_f32(float value, int lanes) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}

static __device__ __forceinline__ unsigned dz_sum_u32(unsigned value, int lanes) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}

static __device__ __forceinline__ float dz_max_f32(float value, int lanes) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, mask));
  return value;
}

static __device__ __forceinline__ int dz_max_i32(int value, int lanes) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, mask));
  return value;
}

static __device__ __forceinline__ int dz_uniform(int value) { return value; }

static __device__ __forceinline__ float dz_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// To the nearest integer, ties to even.
static __device__ __forceinline__ int dz_round(float value) { return __float2int_rn(value); }

// c and the products of four signed bytes.
static __device__ __forceinline__ int dz_dot4(int a, int b, int c) { return __dp4a(a, b, c); }

// The value of the f16 in the low half of a word.
static __device__ __forceinline__ float dz_half(unsigned bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
  return value;
}

// the high word of a product
static __device__ __forceinline__ unsigned dz_multiply_high(unsigned a, unsigned b) { return __umulhi(a, b); }

// correctly rounded
static __device__ __forceinline__ float dz_divide(float a, float b) { return __fdiv_rn(a, b); }

// for any angle
static __device__ __forceinline__ float dz_sin(float angle) { return sinf(angle); }

static __device__ __forceinline__ float dz_cos(float angle) { return cosf(angle); }

// PTX ISA, "Matrix multiply-accumulate operation using mma instruction": sums [16, 8] += A [16, 8 words] B [8, 8 words]^T

static __device__ __forceinline__ void dz_mma_bf16(float* sums, const unsigned* a, const unsigned* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void dz_mma_f16(float* sums, const unsigned* a, const unsigned* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void dz_mma_s8(int* sums, const unsigned* a, const unsigned* b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// PTX ISA, "cp.async": words go to shared memory while the thread goes on; what it committed as one group has arrived
// when no more than `pending` later groups are on their way.

static __device__ __forceinline__ void dz_cp_async_16(void* shared, const void* global) {
  unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global));
}

static __device__ __forceinline__ void dz_cp_async_4(void* shared, const void* global) {
  unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(global));
}

static __device__ __forceinline__ void dz_cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

static __device__ __forceinline__ void dz_cp_async_wait(int pending) {
  if (pending == 0) asm volatile("cp.async.wait_group 0;" ::: "memory");
  if (pending == 1) asm volatile("cp.async.wait_group 1;" ::: "memory");
}

// Codes 2 pair and 2 pair + 1 of four e4m3 codes as a pair of bf16. In the place of a bf16 number a code is 2^-120 times
// as large, which the multiplication mends, of subnormal numbers too.
static __device__ __forceinline__ unsigned dz_bf16_of_e4m3(unsigned codes, int pair) {
  unsigned high = __byte_perm(codes, 0, pair ? 0x3424 : 0x1404), result;
  unsigned small = (high & 0x80008000u) | ((high >> 4) & 0x07f007f0u);
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(small), "r"(0x7b807b80u), "r"(0x80008000u));
  return result;
}
// end of device functions
