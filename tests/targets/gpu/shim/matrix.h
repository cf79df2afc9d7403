// Products of small matrices by the lanes of a subgroup, each of which has its own registers with parts of them.
#pragma once

namespace shim {

// sums [16, 8] += A [16, 8 words] B [8 words, 8]: mma.sync.aligned.m16n8k16 (s8: m16n8k32) .row.col
void mma_bf16(float* sums, const unsigned* a, const unsigned* b, int line);
void mma_f16(float* sums, const unsigned* a, const unsigned* b, int line);
void mma_s8(int* sums, const unsigned* a, const unsigned* b, int line);

// sums [8, 8] += A [8, 8] B [8, 8]: simdgroup_multiply_accumulate
void simd_mma_f32(float* sums, const float* a, const float* b, int line);
void simd_mma_f16(float* sums, const unsigned* a, const unsigned* b, int line);

}  // namespace shim
