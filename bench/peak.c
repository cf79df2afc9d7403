// How many floating-point operations a second the multiply-add units do, operands in registers.
//
//     peak FAMILY THREADS SECONDS
//
// FAMILY is amx_bf16 (Intel's tiles: 16 x 16 sums of 32 products), avx512f or fma (f32 vectors), as /proc/cpuinfo has it.

#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ITERATIONS 20000
#define REQUEST_PERMISSION 0x1023  // arch_prctl, ARCH_REQ_XCOMP_PERM
#define TILE_DATA 18

static volatile float one = 1.0f, sink;

// Sums are as many as hide the latency of two units and leave registers for the operands.

__attribute__((target("avx2,fma"))) static double fma_block(void) {
    __m256 sums[12], a = _mm256_set1_ps(one), b = _mm256_set1_ps(one);
    for (int i = 0; i < 12; i++) sums[i] = _mm256_setzero_ps();
    for (int n = 0; n < ITERATIONS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) sums[i] = _mm256_fmadd_ps(a, b, sums[i]);
    for (int i = 1; i < 12; i++) sums[0] = _mm256_add_ps(sums[0], sums[i]);
    sink = _mm256_cvtss_f32(sums[0]);
    return 12.0 * 8 * 2 * ITERATIONS;
}

__attribute__((target("avx512f"))) static double avx512_block(void) {
    __m512 sums[24], a = _mm512_set1_ps(one), b = _mm512_set1_ps(one);
    for (int i = 0; i < 24; i++) sums[i] = _mm512_setzero_ps();
    for (int n = 0; n < ITERATIONS; n++)
#pragma GCC unroll 24
        for (int i = 0; i < 24; i++) sums[i] = _mm512_fmadd_ps(a, b, sums[i]);
    for (int i = 1; i < 24; i++) sums[0] = _mm512_add_ps(sums[0], sums[i]);
    sink = _mm512_cvtss_f32(sums[0]);
    return 24.0 * 16 * 2 * ITERATIONS;
}

__attribute__((target("amx-tile,amx-bf16"))) static double amx_block(void) {
    struct {
        unsigned char palette, start, reserved[14];
        unsigned short bytes[16];
        unsigned char rows[16];
    } config = {1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int n = 0; n < ITERATIONS; n++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 4.0 * 16 * 16 * 32 * 2 * ITERATIONS;
}

static double (*block)(void);
static double seconds;
static pthread_barrier_t ready;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void *work(void *rate) {
    block();  // clocks settle
    pthread_barrier_wait(&ready);
    double begin = now(), done = 0, end;
    do done += block(), end = now();
    while (end - begin < seconds);
    *(double *)rate = done / (end - begin);
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    const char *family = arguments[1];
    int threads = atoi(arguments[2]);
    seconds = atof(arguments[3]);
    block = !strcmp(family, "amx_bf16") ? amx_block : !strcmp(family, "avx512f") ? avx512_block : fma_block;
    if (block == amx_block && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return 3;
    if (threads < 1 || pthread_barrier_init(&ready, NULL, threads)) return 2;
    pthread_t *handles = calloc(threads, sizeof *handles);
    double *rates = calloc(threads, sizeof *rates), sum = 0;
    for (int i = 0; i < threads; i++) pthread_create(&handles[i], NULL, work, &rates[i]);
    for (int i = 0; i < threads; i++) pthread_join(handles[i], NULL), sum += rates[i];
    printf("%.6g\n", sum);
    return 0;
}
