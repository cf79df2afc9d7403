/* Instructions that a machine may lack, in C, as the pseudocode of Intel's Software Developer's Manual (volume 2) has them.
 *
 * Vectors come by address. Tiles are the thread's own, as they are the processor's. What would be an exception there is
 * told by `emulated_fault`, and so is what a processor would forgive: a configuration that is never released.
 */
#include <stddef.h>
#include <stdint.h>

/* The process has a C library, but its headers are not at hand. */
int snprintf(char *to, size_t size, const char *format, ...);
void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);

enum { TILES = 8, ROWS = 16, BYTES = 64 };

typedef struct {
    uint8_t rows, bytes, data[ROWS][BYTES];
} Tile;

static _Thread_local Tile tiles[TILES];
static _Thread_local int configured;
static int held;
static long counts[2];
static char fault[200];
static struct {
    uintptr_t begin, end;
} known[16];

static void fail(const char *what, long value) {
    if (!fault[0]) snprintf(fault, sizeof fault, "%s (%ld)", what, value);
}

/* The first thing that went wrong, or nothing; then all is forgotten. */
const char *emulated_fault(void) {
    static char told[sizeof fault];
    if (held) fail("threads that did not release their tiles", held);
    memcpy(told, fault, sizeof fault);
    fault[0] = 0, held = 0;
    memset(known, 0, sizeof known);
    return told;
}

/* How many products of tiles there were: of bf16, of int8. */
long emulated_count(int kind) {
    long count = counts[kind];
    counts[kind] = 0;
    return count;
}

/* An array of which nothing beyond the end may be read. */
void emulated_array(int number, uintptr_t begin, uintptr_t end) {
    known[number].begin = begin, known[number].end = end;
}

static void check_range(uintptr_t first, uintptr_t last) {
    for (int i = 0; i < 16; i++)
        if (first >= known[i].begin && first < known[i].end && last > known[i].end)
            fail("a tile reaches beyond the end of an array by bytes", (long)(last - known[i].end));
}

static Tile *tile(unsigned char number) {
    if (!configured) fail("no tiles are configured", number);
    if (number >= TILES) fail("no such tile", number);
    Tile *t = &tiles[number % TILES];
    if (!t->rows) fail("a tile that is not configured", number);
    return t;
}

void emulated_ldtilecfg(const uint8_t *c) {
    if (c[0] != 1) fail("palette", c[0]);
    for (int i = 1; i < 16; i++)
        if (c[i]) fail("a reserved byte or a start row is set", i);
    for (int i = 32; i < 48; i++)
        if (c[i]) fail("a reserved byte is set", i);
    for (int i = 56; i < 64; i++)
        if (c[i]) fail("a reserved byte is set", i);
    memset(tiles, 0, sizeof tiles);
    for (int i = 0; i < TILES; i++) {
        int bytes = c[16 + 2 * i] | c[17 + 2 * i] << 8, rows = c[48 + i];
        if (bytes > BYTES || rows > ROWS) fail("a tile is too large", i);
        if (!bytes != !rows) fail("a tile has only one size", i);
        if (bytes % 4) fail("a row is no multiple of four bytes", i);
        tiles[i].rows = rows, tiles[i].bytes = bytes;
    }
    if (!configured) __atomic_add_fetch(&held, 1, __ATOMIC_SEQ_CST);
    configured = 1;
}

void emulated_tilerelease(void) {
    if (configured) __atomic_sub_fetch(&held, 1, __ATOMIC_SEQ_CST);
    configured = 0;
}

void emulated_tilezero(unsigned char number) { memset(tile(number)->data, 0, sizeof tiles->data); }

void emulated_tileloadd64(unsigned char number, const uint8_t *base, int64_t stride) {
    Tile *t = tile(number);
    memset(t->data, 0, sizeof t->data);
    for (int i = 0; i < t->rows; i++) {
        uintptr_t first = (uintptr_t)base + i * stride;
        check_range((uintptr_t)base, first + t->bytes);
        memcpy(t->data[i], (const void *)first, t->bytes);
    }
}

void emulated_tilestored64(unsigned char number, uint8_t *base, int64_t stride) {
    Tile *t = tile(number);
    for (int i = 0; i < t->rows; i++) {
        check_range((uintptr_t)base, (uintptr_t)base + i * stride + t->bytes);
        memcpy(base + i * stride, t->data[i], t->bytes);
    }
}

static int shapes(const Tile *c, const Tile *a, const Tile *b) {
    int fit = c != a && c != b && a != b && a->rows == c->rows && b->bytes == c->bytes && a->bytes / 4 == b->rows;
    if (!fit) fail("tiles do not fit each other", a->bytes);
    return fit;
}

/* Subnormal numbers count as zeros, and become zeros. */
static float flushed(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (!(bits & 0x7F800000)) bits &= 0x80000000;
    memcpy(&x, &bits, 4);
    return x;
}

static float widened(const uint8_t *bf16) {
    uint32_t bits = (uint32_t)bf16[0] << 16 | (uint32_t)bf16[1] << 24;
    float x;
    memcpy(&x, &bits, 4);
    return flushed(x);
}

/* Even and odd elements have chains of fused multiply-adds of their own, whose sum is added to the tile. */
void emulated_tdpbf16ps(unsigned char dst, unsigned char left, unsigned char right) {
    Tile *c = tile(dst), *a = tile(left), *b = tile(right);
    if (!shapes(c, a, b)) return;
    __atomic_add_fetch(&counts[0], 1, __ATOMIC_SEQ_CST);
    for (int m = 0; m < c->rows; m++)
        for (int n = 0; n < c->bytes / 4; n++) {
            float sums[2] = {0, 0}, total;
            for (int k = 0; k < a->bytes / 4; k++)
                for (int odd = 0; odd < 2; odd++) {
                    float x = widened(a->data[m] + 4 * k + 2 * odd), w = widened(b->data[k] + 4 * n + 2 * odd);
                    sums[odd] = flushed(__builtin_fmaf(x, w, sums[odd]));
                }
            memcpy(&total, c->data[m] + 4 * n, 4);
            total = flushed(flushed(total) + flushed(sums[0] + sums[1]));
            memcpy(c->data[m] + 4 * n, &total, 4);
        }
}

/* Odd elements are added before even ones, each by a fused multiply-add. */
void emulated_dpbf16ps_512(float *out, const float *sums, const uint8_t *a, const uint8_t *b) {
    for (int i = 0; i < 16; i++) {
        float sum = flushed(sums[i]);
        for (int at = 4 * i + 2; at >= 4 * i; at -= 2)
            sum = flushed(__builtin_fmaf(widened(a + at), widened(b + at), sum));
        out[i] = sum;
    }
}

void emulated_permvar_hi_512(uint16_t *out, const uint16_t *from, const uint16_t *index) {
    for (int i = 0; i < 32; i++) out[i] = from[index[i] & 31];
}

void emulated_tdpbssd(unsigned char dst, unsigned char left, unsigned char right) {
    Tile *c = tile(dst), *a = tile(left), *b = tile(right);
    if (!shapes(c, a, b)) return;
    __atomic_add_fetch(&counts[1], 1, __ATOMIC_SEQ_CST);
    for (int m = 0; m < c->rows; m++)
        for (int n = 0; n < c->bytes / 4; n++) {
            int32_t total;
            memcpy(&total, c->data[m] + 4 * n, 4);
            for (int k = 0; k < a->bytes; k++)
                total += (int8_t)a->data[m][k] * (int8_t)b->data[k / 4][4 * n + k % 4];
            memcpy(c->data[m] + 4 * n, &total, 4);
        }
}

void emulated_vpdpbusd_512(int32_t *out, const int32_t *sums, const uint8_t *a, const int8_t *b) {
    for (int i = 0; i < 16; i++) {
        out[i] = sums[i];
        for (int k = 4 * i; k < 4 * i + 4; k++) out[i] += a[k] * b[k];
    }
}

static int16_t saturated(int x) { return x > 32767 ? 32767 : x < -32768 ? -32768 : x; }

void emulated_pmaddubsw_512(int16_t *out, const uint8_t *a, const int8_t *b) {
    for (int i = 0; i < 32; i++) out[i] = saturated(a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1]);
}

void emulated_pmaddwd_512(int32_t *out, const int16_t *a, const int16_t *b) {
    for (int i = 0; i < 16; i++) out[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
}
