// How many operations a second the units for multiply-adds do, operands in registers.
//
//     peak FAMILY THREADS SECONDS
//
// FAMILY is the name of an instruction set in /proc/cpuinfo, one of those in the table below.

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

static volatile signed char one = 1;
static volatile float sink;

// Of __m512i GCC would keep the sums in memory.
typedef int words __attribute__((vector_size(64)));

// Sums are as many as hide the latency of two units and leave registers for the operands.
#define VECTORS(name, features, vector, count, operations, multiply)                         \
    __attribute__((target(features))) static double name(void) {                             \
        vector sums[count], a = (vector){0} + one, b = (vector){0} + one;                    \
        for (int i = 0; i < count; i++) sums[i] = (vector){0};                               \
        for (int n = 0; n < ITERATIONS; n++)                                                 \
            _Pragma("GCC unroll 24") for (int i = 0; i < count; i++) sums[i] = multiply;     \
        for (int i = 1; i < count; i++) sums[0] += sums[i];                                  \
        sink = sums[0][0];                                                                   \
        return (double)(operations) * count * ITERATIONS;                                    \
    }

VECTORS(fma_block, "avx2,fma", __m256, 12, 2 * 8, _mm256_fmadd_ps(a, b, sums[i]))
VECTORS(avx512_block, "avx512f", __m512, 24, 2 * 16, _mm512_fmadd_ps(a, b, sums[i]))
VECTORS(bf16_block, "avx512f,avx512bf16", __m512, 24, 2 * 32, _mm512_dpbf16_ps(sums[i], (__m512bh)a, (__m512bh)b))
VECTORS(vnni_block, "avx512f,avx512vnni", words, 24, 2 * 64,
        (words)_mm512_dpbusd_epi32((__m512i)sums[i], (__m512i)a, (__m512i)b))

#define TILES(name, features, multiply, operations)                                          \
    __attribute__((target(features))) static double name(void) {                             \
        struct {                                                                             \
            unsigned char palette, start, reserved[14];                                      \
            unsigned short bytes[16];                                                        \
            unsigned char rows[16];                                                          \
        } config = {1};                                                                      \
        for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;               \
        _tile_loadconfig(&config);                                                           \
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);                          \
        _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);                          \
        for (int n = 0; n < ITERATIONS; n++) {                                               \
            multiply(0, 4, 6);                                                               \
            multiply(1, 4, 7);                                                               \
            multiply(2, 5, 6);                                                               \
            multiply(3, 5, 7);                                                               \
        }                                                                                    \
        _tile_release();                                                                     \
        return 4.0 * (operations) * ITERATIONS;                                              \
    }

TILES(amx_bf16_block, "amx-tile,amx-bf16", _tile_dpbf16ps, 2 * 16 * 16 * 32)
TILES(amx_int8_block, "amx-tile,amx-int8", _tile_dpbssd, 2 * 16 * 16 * 64)

static const struct {
    const char *name;
    double (*block)(void);
    int tiles;
} families[] = {
    {"amx_int8", amx_int8_block, 1}, {"amx_bf16", amx_bf16_block, 1}, {"avx512_vnni", vnni_block},
    {"avx512_bf16", bf16_block},     {"avx512f", avx512_block},       {"fma", fma_block},
};

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
    int threads = atoi(arguments[2]), known = sizeof families / sizeof *families, f = 0;
    seconds = atof(arguments[3]);
    while (f < known && strcmp(arguments[1], families[f].name)) f++;
    if (f == known) return 2;
    block = families[f].block;
    if (families[f].tiles && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return 3;
    if (threads < 1 || pthread_barrier_init(&ready, NULL, threads)) return 2;
    pthread_t *handles = calloc(threads, sizeof *handles);
    double *rates = calloc(threads, sizeof *rates), sum = 0;
    for (int i = 0; i < threads; i++) pthread_create(&handles[i], NULL, work, &rates[i]);
    for (int i = 0; i < threads; i++) pthread_join(handles[i], NULL), sum += rates[i];
    printf("%.6g\n", sum);
    return 0;
}
