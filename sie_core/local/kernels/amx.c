/* bfloat16 kernels on AMX tiles (Intel, Sapphire Rapids and later), with AVX-512 around them.
 *
 * Products take bfloat16 and sum in float32; the residual stream, layer norms and softmax are
 * float32 throughout. A 32 x 32 block of a product is four tiles; the vector work on a finished
 * block (bias, activation, rounding) is done between the tile instructions of the next one, since
 * the two use different units.
 */
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define VECTOR_WIDTH 16
#include "kernels.h"
#include "vectors.h"

#define BLOCK 32 /* rows and columns of four tiles; values of k that a tile instruction takes */
#define TILE_BYTES 1024

typedef uint16_t bf16;

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

int sie_amx_permitted(void) {
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* All eight tiles: 16 rows of 64 bytes. A thread's tiles are its own; set at every entry. */
INLINE void configure_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
}

INLINE __m512i to_bf16(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* x Phi(x): Phi - 1/2 as an odd polynomial within |x| <= 4, off by at most 4e-5; beyond, by 1e-4. */
INLINE __m512 gelu(__m512 x) {
    const __m512 bound = _mm512_set1_ps(4.0f);
    __m512 c = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-4.0f)), bound);
    __m512 t = _mm512_mul_ps(c, c);
    __m512 p = _mm512_set1_ps(-1.30126765e-09f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.04194363e-07f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-3.65709002e-06f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(7.48544844e-05f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.00100648636f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.00950538274f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.0658878163f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.398673385f));
    return _mm512_mul_ps(x, _mm512_fmadd_ps(p, c, _mm512_set1_ps(0.5f)));
}

/* 2^y for -126 <= y < 128, off by at most 1e-4 of itself: below what bfloat16 resolves. */
INLINE __m512 exp2_of(__m512 y) {
    const __m512 magic = _mm512_set1_ps(12582912.0f); /* 1.5 * 2^23: rounds to an integer */
    __m512 shifted = _mm512_add_ps(y, magic);
    __m512 f = _mm512_sub_ps(y, _mm512_sub_ps(shifted, magic));
    __m512 p = _mm512_set1_ps(0.0551700551f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.242608513f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693261f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.999928246f));
    return _mm512_castsi512_ps(_mm512_add_epi32(
        _mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}

INLINE __m512 gelu_tanh(__m512 x) {
    /* 0.5 (1 + tanh(u)) = 1 / (1 + e^(-2u)) */
    __m512 u = _mm512_mul_ps(
        x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-2.3022082f * 0.044715f),
                           _mm512_set1_ps(-2.3022082f))); /* -2 log2(e) sqrt(2/pi) */
    u = _mm512_min_ps(_mm512_max_ps(u, _mm512_set1_ps(-120.0f)), _mm512_set1_ps(120.0f));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exp2_of(u)));
}

/* A weight [n, k] as tiles: for each 32 columns of n, for each 32 of k, two tiles of 16 columns,
 * whose rows hold pairs of k side by side. */
static size_t packed_bytes(int n, int k) { return (size_t)n * k * sizeof(bf16); }

INLINE bf16 round_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

static void pack(const float *weight, int n, int k, void *out) {
    bf16 *to = out;
    for (int column = 0; column < n; column += 16 * 2)
        for (int i = 0; i < k; i += BLOCK)
            for (int half = 0; half < 2; half++)
                for (int pair = 0; pair < 16; pair++)
                    for (int j = 0; j < 16; j++) {
                        const float *from =
                            weight + (size_t)(column + half * 16 + j) * k + i + 2 * pair;
                        *to++ = round_to_bf16(from[0]);
                        *to++ = round_to_bf16(from[1]);
                    }
}

/* Finish one row of a 32-wide block that lies in `sums`. */
INLINE void finish_row(const float *sums, __m512 bias0, __m512 bias1, enum sie_epilogue epilogue,
                       void *out) {
    __m512 v0 = _mm512_add_ps(_mm512_load_ps(sums), bias0);
    __m512 v1 = _mm512_add_ps(_mm512_load_ps(sums + 16), bias1);
    switch (epilogue) {
        case SIE_GELU: v0 = gelu(v0), v1 = gelu(v1); break;
        case SIE_GELU_TANH: v0 = gelu_tanh(v0), v1 = gelu_tanh(v1); break;
        case SIE_RELU:
            v0 = _mm512_max_ps(_mm512_setzero_ps(), v0); /* the second is what it returns */
            v1 = _mm512_max_ps(_mm512_setzero_ps(), v1); /* where one is no number */
            break;
        default: break;
    }
    if (epilogue == SIE_ADD) {
        float *x = out;
        _mm512_storeu_ps(x, _mm512_add_ps(_mm512_loadu_ps(x), v0));
        _mm512_storeu_ps(x + 16, _mm512_add_ps(_mm512_loadu_ps(x + 16), v1));
    } else {
        _mm512_storeu_si512(out, to_bf16(v0, v1));
    }
}

typedef struct {
    const float *sums;
    __m512 bias0, bias1;
    char *out;
    long out_bytes;
    int row;
} pending_block;

INLINE void finish_some(pending_block *p, int rows, enum sie_epilogue epilogue) {
    for (int i = 0; i < rows && p->row < BLOCK; i++, p->row++)
        finish_row(p->sums + p->row * BLOCK, p->bias0, p->bias1, epilogue,
                   p->out + p->row * p->out_bytes);
}

INLINE void multiply_as(const sie_product *p, enum sie_epilogue epilogue) {
    float sums[2][BLOCK * BLOCK] __attribute__((aligned(64)));
    const size_t out_size = epilogue == SIE_ADD ? sizeof(float) : sizeof(bf16);
    const long a_bytes = p->input_stride * sizeof(bf16);
    const int steps = p->k / BLOCK, rows_a_step = (BLOCK + steps - 1) / steps;
    pending_block pending = {.row = BLOCK};
    int turn = 0;
    for (int column = 0; column < p->n; column += BLOCK) {
        const char *panel = (const char *)p->weight + (size_t)column * p->k * sizeof(bf16);
        for (int row = 0; row < p->rows; row += BLOCK, turn ^= 1) {
            const char *a = (const char *)p->input + row * a_bytes, *b = panel;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int step = 0; step < steps; step++, a += 64, b += 2 * TILE_BYTES) {
                _tile_loadd(4, a, a_bytes);
                _tile_loadd(6, b, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, b + TILE_BYTES, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a + 16 * a_bytes, a_bytes);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
                finish_some(&pending, rows_a_step, epilogue);
            }
            float *to = sums[turn];
            _tile_stored(0, to, BLOCK * sizeof(float));
            _tile_stored(1, to + 16, BLOCK * sizeof(float));
            _tile_stored(2, to + 16 * BLOCK, BLOCK * sizeof(float));
            _tile_stored(3, to + 16 * BLOCK + 16, BLOCK * sizeof(float));
            pending = (pending_block){
                .sums = to,
                .bias0 = _mm512_loadu_ps(p->bias + column),
                .bias1 = _mm512_loadu_ps(p->bias + column + 16),
                .out = (char *)p->out + ((size_t)row * p->out_stride + column) * out_size,
                .out_bytes = p->out_stride * out_size,
                .row = 0,
            };
        }
    }
    finish_some(&pending, BLOCK, epilogue);
}

static void multiply(const sie_product *p, void *scratch) {
    (void)scratch;
    configure_tiles();
    switch (p->epilogue) {
        case SIE_STORE: multiply_as(p, SIE_STORE); break;
        case SIE_GELU: multiply_as(p, SIE_GELU); break;
        case SIE_GELU_TANH: multiply_as(p, SIE_GELU_TANH); break;
        case SIE_RELU: multiply_as(p, SIE_RELU); break;
        case SIE_ADD: multiply_as(p, SIE_ADD); break;
    }
    _tile_release();
}

/* rows[i] holds 16 dwords; afterwards rows[i][j] is what rows[j][i] was. */
INLINE void transpose_16x16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Between rows, so that rows of a power of two do not share a set of the cache. */
#define ROW_GAP 32

static int padded_to(int length, int multiple) {
    return (length + multiple - 1) / multiple * multiple;
}

static size_t attend_scratch_bytes(int max_seqlen, int head_size) {
    size_t padded = padded_to(max_seqlen, BLOCK);
    return padded * head_size * 2 * sizeof(bf16) +
           16 * (padded + ROW_GAP) * (sizeof(float) + sizeof(bf16)) + 4 * TILE_BYTES + 256;
}

/* Keys as tiles: for each 16 keys, for each 32 of the head's size, a tile whose rows hold pairs of
 * the head's values side by side. Keys behind the end are zero. */
INLINE void pack_keys(const bf16 *k, long stride, int length, int head_size, char *to) {
    for (int key = 0; key < length; key += 16)
        for (int i = 0; i < head_size; i += BLOCK, to += TILE_BYTES) {
            __m512i rows[16];
            for (int r = 0; r < 16; r++)
                rows[r] = key + r < length ? _mm512_loadu_si512(k + (key + r) * stride + i)
                                           : _mm512_setzero_si512();
            transpose_16x16(rows);
            for (int r = 0; r < 16; r++) _mm512_store_si512(to + r * 64, rows[r]);
        }
}

/* Which 16-bit values of two vectors stand side by side in the lower half of their pairs. */
static const uint16_t pairs_low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};

/* Values as tiles: for each 32 keys, for each 16 of the head's size, a tile whose rows hold pairs
 * of keys side by side. Keys behind the end are zero. */
INLINE void pack_values(const bf16 *v, long stride, int length, int head_size, char *to) {
    const __m512i take_low = _mm512_loadu_si512(pairs_low);
    const __m512i take_high = _mm512_add_epi16(take_low, _mm512_set1_epi16(16));
    for (int key = 0; key < length; key += BLOCK)
        for (int i = 0; i < head_size; i += BLOCK, to += 2 * TILE_BYTES)
            for (int pair = 0; pair < 16; pair++) {
                int at = key + 2 * pair;
                __m512i a = at < length ? _mm512_loadu_si512(v + at * stride + i)
                                        : _mm512_setzero_si512();
                __m512i b = at + 1 < length ? _mm512_loadu_si512(v + (at + 1) * stride + i)
                                            : _mm512_setzero_si512();
                _mm512_store_si512(to + pair * 64, _mm512_permutex2var_epi16(a, take_low, b));
                _mm512_store_si512(to + TILE_BYTES + pair * 64,
                                   _mm512_permutex2var_epi16(a, take_high, b));
            }
}

/* Weights e^(s - top) of one row over keys first..last-1, as bfloat16, zero elsewhere in low..high
 * (multiples of 32); returns their sum. */
INLINE float weigh_row(const float *scores, bf16 *weights, int first, int last, int low, int high,
                       __m512 scale) {
    __m512 top = _mm512_set1_ps(-INFINITY);
    const int full_from = (first + 15) & ~15, full_to = last & ~15;
    const __mmask16 head = 0xffff << (first & 15), tail = (1u << (last & 15)) - 1;
    if (full_to < full_from) { /* all within one vector */
        __mmask16 both = head & tail;
        top = _mm512_mask_loadu_ps(top, both, scores + full_to);
    } else {
        if (full_from != first)
            top = _mm512_mask_loadu_ps(top, head, scores + full_from - 16);
        for (int j = full_from; j < full_to; j += 16)
            top = _mm512_max_ps(top, _mm512_load_ps(scores + j));
        if (tail) {
            __m512 rest = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), tail, scores + full_to);
            top = _mm512_max_ps(top, rest);
        }
    }
    const __m512 shift =
        _mm512_mul_ps(_mm512_set1_ps(-_mm512_reduce_max_ps(top)), scale);
    const __m512 floor = _mm512_set1_ps(-126.0f);
    __m512 total = _mm512_setzero_ps();
    for (int j = low; j < high; j += 32) {
        __m512 e[2];
        for (int half = 0; half < 2; half++) {
            int at = j + half * 16;
            __m512 y = _mm512_fmadd_ps(_mm512_load_ps(scores + at), scale, shift);
            e[half] = exp2_of(_mm512_max_ps(y, floor));
            if (at < first || at + 16 > last) {
                __mmask16 keep = 0xffff;
                if (at < first) keep &= at + 16 <= first ? 0 : 0xffff << (first - at);
                if (at + 16 > last) keep &= at >= last ? 0 : (1u << (last - at)) - 1;
                e[half] = _mm512_maskz_mov_ps(keep, e[half]);
            }
            total = _mm512_add_ps(total, e[half]);
        }
        _mm512_store_si512(weights + j, to_bf16(e[0], e[1]));
    }
    return _mm512_reduce_add_ps(total);
}

static void attend(const void *qkv_, long stride, const int32_t *cu_seqlens, int num_sequences,
                   int num_heads, int head_size, int window, void *context_, long context_stride,
                   void *scratch) {
    const bf16 *qkv = qkv_;
    bf16 *context = context_;
    const int hidden = num_heads * head_size, steps = head_size / BLOCK;
    const long q_bytes = stride * sizeof(bf16);
    const __m512 scale = _mm512_set1_ps(1.44269504f / sqrtf((float)head_size)); /* log2(e) */
    configure_tiles();
    for (int s = 0; s < num_sequences; s++) {
        const int length = cu_seqlens[s + 1] - cu_seqlens[s];
        const int padded = padded_to(length, BLOCK), row_stride = padded + ROW_GAP;
        char *keys = (char *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
        char *values = keys + (size_t)padded * head_size * sizeof(bf16);
        float *scores = (float *)(values + (size_t)padded * head_size * sizeof(bf16));
        bf16 *weights = (bf16 *)(scores + (size_t)row_stride * 16);
        float *sums = (float *)(weights + (size_t)row_stride * 16);
        for (int head = 0; head < num_heads; head++) {
            const bf16 *q = qkv + cu_seqlens[s] * stride + head * head_size;
            pack_keys(q + hidden, stride, length, head_size, keys);
            pack_values(q + 2 * hidden, stride, length, head_size, values);
            for (int row = 0; row < length; row += 16) {
                const int rows = length - row < 16 ? length - row : 16;
                int low = 0, high = padded;
                if (window) {
                    low = row > window ? (row - window) / BLOCK * BLOCK : 0;
                    int end = row + rows + window;
                    high = padded_to(end < length ? end : length, BLOCK);
                }
                const bf16 *queries = q + row * stride;
                const int key_end = high < length ? high : padded_to(length, 16);
                _tile_loadd(4, queries, q_bytes);
                if (steps > 1) _tile_loadd(5, queries + BLOCK, q_bytes);
                for (int key = low; key < key_end; key += 16) {
                    const char *tile = keys + (size_t)key / 16 * steps * TILE_BYTES;
                    _tile_zero(0);
                    _tile_loadd(6, tile, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    if (steps > 1) {
                        _tile_loadd(7, tile + TILE_BYTES, 64);
                        _tile_dpbf16ps(0, 5, 7);
                        for (int i = 2; i < steps; i++) {
                            _tile_loadd(1, queries + i * BLOCK, q_bytes);
                            _tile_loadd(6, tile + i * TILE_BYTES, 64);
                            _tile_dpbf16ps(0, 1, 6);
                        }
                    }
                    _tile_stored(0, scores + key, row_stride * sizeof(float));
                }
                float share[16];
                for (int r = 0; r < rows; r++) {
                    int first = 0, last = length;
                    if (window) {
                        first = row + r > window ? row + r - window : 0;
                        last = row + r + window + 1 < length ? row + r + window + 1 : length;
                    }
                    share[r] = 1.0f / weigh_row(scores + (size_t)r * row_stride,
                                                weights + (size_t)r * row_stride, first, last, low,
                                                high, scale);
                }
                for (int i = 0; i < head_size; i += BLOCK) {
                    _tile_zero(0);
                    _tile_zero(1);
                    const char *tile =
                        values + ((size_t)low / BLOCK * steps + i / BLOCK) * 2 * TILE_BYTES;
                    for (int key = low; key < high; key += BLOCK, tile += 2 * steps * TILE_BYTES) {
                        _tile_loadd(6, weights + key, row_stride * sizeof(bf16));
                        _tile_loadd(2, tile, 64);
                        _tile_dpbf16ps(0, 6, 2);
                        _tile_loadd(3, tile + TILE_BYTES, 64);
                        _tile_dpbf16ps(1, 6, 3);
                    }
                    _tile_stored(0, sums, BLOCK * sizeof(float));
                    _tile_stored(1, sums + 16, BLOCK * sizeof(float));
                    bf16 *out = context + (cu_seqlens[s] + row) * context_stride +
                                head * head_size + i;
                    for (int r = 0; r < rows; r++, out += context_stride) {
                        __m512 by = _mm512_set1_ps(share[r]);
                        _mm512_storeu_si512(
                            out,
                            to_bf16(_mm512_mul_ps(_mm512_load_ps(sums + r * BLOCK), by),
                                    _mm512_mul_ps(_mm512_load_ps(sums + r * BLOCK + 16), by)));
                    }
                }
            }
        }
    }
    _tile_release();
}

static void layer_norm(float *x, long x_stride, int rows, int hidden, const float *gain,
                       const float *bias, float epsilon, void *activations,
                       long activation_stride) {
    bf16 *out = activations;
    for (int r = 0; r < rows; r++, x += x_stride, out += activation_stride) {
        __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (int i = 0; i < hidden; i += 16) total = _mm512_add_ps(total, _mm512_loadu_ps(x + i));
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / hidden);
        for (int i = 0; i < hidden; i += 16) {
            __m512 d = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
            squares = _mm512_fmadd_ps(d, d, squares);
        }
        const __m512 inverse =
            _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / hidden + epsilon));
        for (int i = 0; i < hidden; i += 32) {
            __m512 v[2];
            for (int half = 0; half < 2; half++) {
                int at = i + half * 16;
                __m512 d = _mm512_sub_ps(_mm512_loadu_ps(x + at), mean);
                v[half] = _mm512_fmadd_ps(_mm512_mul_ps(d, inverse), _mm512_loadu_ps(gain + at),
                                          _mm512_loadu_ps(bias + at));
                _mm512_storeu_ps(x + at, v[half]);
            }
            _mm512_storeu_si512(out + i, to_bf16(v[0], v[1]));
        }
    }
}

static void to_activations(const float *x, int n, void *out) {
    bf16 *to = out;
    for (int i = 0; i < n; i += 32)
        _mm512_storeu_si512(to + i, to_bf16(_mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i + 16)));
}

/* Float32 by tiles of bytes. A row of either factor is written as integers of 24 bits, in units of
 * its largest value / LARGEST, and each integer as three signed digits: d0 2^16 + d1 2^8 + d2.
 * Of the nine products of two such rows the six largest are summed, in exact integers: what is
 * left out is below 2^-24 of the largest terms. Row by row, so no token depends on another.
 * Everything but products is the AVX-512 table's.
 */
#define DIGITS 3
#define DEPTH 64 /* values of k that a tile instruction takes */
#define WIDTH 16 /* columns of a tile */
#define LARGEST 8355584.0f /* 0x7f7f00: the largest three digits, and room for rounding */
#define SMALLEST 0x1p-100f /* rows whose largest value is below are as good as zero */

static int steps_of(int k) { return (k + DEPTH - 1) / DEPTH; }

/* For each 16 columns: the tiles, three per 64 of k, and the columns' units. */
static size_t panel_bytes(int k) {
    return (size_t)steps_of(k) * DIGITS * TILE_BYTES + WIDTH * sizeof(float);
}

static size_t packed_bytes_float32(int n, int k) { return n / WIDTH * panel_bytes(k); }

/* What a row's first digits count, for a largest magnitude of `most`, and by what to multiply it to
 * get integers. Not a number where the row is not finite, so that no product of it is. */
INLINE float unit_of(float most, float *inverse) {
    if (!(most < INFINITY)) {
        *inverse = 0.0f;
        return NAN;
    }
    if (most < SMALLEST) most = SMALLEST;
    *inverse = LARGEST / most;
    return most * (0x1p16f / LARGEST);
}

/* As three bytes, the highest first. Adding 0x80 to each byte borrows what signed digits need. */
INLINE void digits_of(int32_t number, int8_t digits[DIGITS]) {
    const uint32_t bytes = ((uint32_t)number + 0x808080) ^ 0x808080;
    for (int i = 0; i < DIGITS; i++) digits[i] = (int8_t)(bytes >> (16 - 8 * i));
}

/* Where in 64 values of k the byte at `place` comes from; `split_row` leaves them so. */
INLINE int source_of(int place) { return place / 4 % 4 * 16 + place / 16 * 4 + place % 4; }

static void pack_float32(const float *weight, int n, int k, void *out) {
    char *panel = out;
    for (int column = 0; column < n; column += WIDTH, panel += panel_bytes(k)) {
        float *units = (float *)(panel + panel_bytes(k)) - WIDTH;
        for (int j = 0; j < WIDTH; j++) {
            const float *row = weight + (size_t)(column + j) * k;
            float most = 0.0f, inverse;
            for (int i = 0; i < k; i++)
                if (most < INFINITY && !(fabsf(row[i]) <= most)) most = fabsf(row[i]);
            units[j] = unit_of(most, &inverse);
            for (int i = 0; i < steps_of(k) * DEPTH; i++) {
                const int at = i / DEPTH * DEPTH + source_of(i % DEPTH);
                int8_t digits[DIGITS] = {0};
                if (at < k && inverse > 0.0f) digits_of((int32_t)rintf(row[at] * inverse), digits);
                char *tile = panel + i / DEPTH * DIGITS * TILE_BYTES;
                for (int d = 0; d < DIGITS; d++)
                    tile[d * TILE_BYTES + i % DEPTH / 4 * 64 + j * 4 + i % 4] = digits[d];
            }
        }
    }
}

/* 64 floats to 64 bytes of each digit, a tile apart. */
INLINE void split_64(const __m512 v[4], __m512 inverse, char *to) {
    const __m512i shift = _mm512_set1_epi32(0x808080);
    const __m512i by_digit = _mm512_broadcast_i32x4(
        _mm_setr_epi8(2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12, 3, 7, 11, 15));
    __m512i b[4];
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));
        b[i] = _mm512_xor_si512(_mm512_add_epi32(b[i], shift), shift);
        b[i] = _mm512_shuffle_epi8(b[i], by_digit);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(b[0], b[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(b[2], b[3]);
    const __m512i high01 = _mm512_unpackhi_epi32(b[0], b[1]);
    const __m512i high23 = _mm512_unpackhi_epi32(b[2], b[3]);
    _mm512_store_si512(to, _mm512_unpacklo_epi64(low01, low23));
    _mm512_store_si512(to + TILE_BYTES, _mm512_unpackhi_epi64(low01, low23));
    _mm512_store_si512(to + 2 * TILE_BYTES, _mm512_unpacklo_epi64(high01, high23));
}

/* Rows of float as tiles: for each 16 rows, for each 64 of k, one tile per digit. */
INLINE void split_rows(const float *input, long stride, int rows, int k, char *tiles,
                       float *units) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const size_t group_bytes = (size_t)steps_of(k) * DIGITS * TILE_BYTES;
    for (int r = 0; r < rows; r++, input += stride) {
        /* As integers magnitudes have the same order, with what is not a number on top. */
        __m512i top[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int i = 0; i < k; i += 32)
            for (int j = 0; j < 2; j++)
                top[j] = _mm512_max_epi32(
                    top[j],
                    _mm512_and_si512(_mm512_loadu_si512(input + i + 16 * j), magnitude));
        const int32_t bits = _mm512_reduce_max_epi32(_mm512_max_epi32(top[0], top[1]));
        float most, inverse;
        memcpy(&most, &bits, sizeof most);
        units[r] = unit_of(most, &inverse);
        const __m512 by = _mm512_set1_ps(inverse);
        char *to = tiles + r / 16 * group_bytes + r % 16 * 64;
        for (int i = 0; i < k; i += DEPTH, to += DIGITS * TILE_BYTES) {
            __m512 v[4];
            for (int j = 0; j < 4; j++)
                v[j] = i + 16 * j < k ? _mm512_loadu_ps(input + i + 16 * j) : _mm512_setzero_ps();
            split_64(v, by, to);
        }
    }
}

/* Rows that are split at a time: their tiles stay in the core's cache for all columns. */
#define SPLIT_BYTES (1024 << 10)

INLINE int split_rows_at_once(int k) {
    int rows = SPLIT_BYTES / (DIGITS * steps_of(k) * DEPTH) / BLOCK * BLOCK;
    return rows < BLOCK ? BLOCK : rows;
}

INLINE vec to_floats(const int32_t *p) {
    return (vec)_mm512_cvtepi32_ps(_mm512_load_si512(p));
}

/* A finished block of 32 x 16: the sums of equal digits' places, of two tiles of rows. */
typedef struct {
    const int32_t *sums; /* [2, 3, 16, 16] */
    const float *row_units;
    vec column_units, bias;
    float *out;
    long out_stride;
    int row;
} pending_sums;

INLINE void finish_sums(pending_sums *p, int rows, enum sie_epilogue epilogue) {
    const vec byte = splat(0x1p-8f);
    for (int i = 0; i < rows && p->row < BLOCK; i++, p->row++) {
        const int32_t *at = p->sums + p->row / 16 * DIGITS * 256 + p->row % 16 * WIDTH;
        vec v = to_floats(at + 2 * 256) * byte + to_floats(at + 256);
        v = v * byte + to_floats(at);
        v = finish(v * p->column_units * splat(p->row_units[p->row]), p->bias, epilogue);
        float *out = p->out + p->row * p->out_stride;
        if (epilogue == SIE_ADD) v += load(out);
        store(out, v);
    }
}

/* Tiles 0 to 2 sum the places of the first 16 rows, 3 to 5 those of the second. */
#define LOAD_A(group, digit) _tile_loadd(6, a + (group) * group_bytes + (digit) * TILE_BYTES, 64)
#define LOAD_B(digit) _tile_loadd(7, b + (digit) * TILE_BYTES, 64)

INLINE void multiply_float32_as(const sie_product *p, void *scratch, enum sie_epilogue epilogue) {
    int32_t sums[2][2 * DIGITS * 256] __attribute__((aligned(64)));
    const int at_once = split_rows_at_once(p->k), steps = steps_of(p->k);
    const size_t group_bytes = (size_t)steps * DIGITS * TILE_BYTES;
    char *tiles = (char *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    float *units = (float *)(tiles + at_once / 16 * group_bytes);
    const int rows_a_step = (BLOCK + steps - 1) / steps;
    configure_tiles();
    for (int block = 0; block < p->rows; block += at_once) {
        const int rows = p->rows - block < at_once ? p->rows - block : at_once;
        split_rows((const float *)p->input + block * p->input_stride, p->input_stride, rows, p->k,
                   tiles, units);
        pending_sums pending = {.row = BLOCK};
        int turn = 0;
        for (int column = 0; column < p->n; column += WIDTH) {
            const char *panel = (const char *)p->weight + column / WIDTH * panel_bytes(p->k);
            for (int row = 0; row < rows; row += BLOCK, turn ^= 1) {
                const char *a = tiles + row / 16 * group_bytes, *b = panel;
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
                _tile_zero(4);
                _tile_zero(5);
                float *out = (float *)p->out + (block + row) * p->out_stride + column;
                for (int step = 0; step < steps;
                     step++, a += DIGITS * TILE_BYTES, b += DIGITS * TILE_BYTES) {
                    LOAD_A(0, 0);
                    LOAD_B(0);
                    _tile_dpbssd(0, 6, 7);
                    LOAD_B(1);
                    _tile_dpbssd(1, 6, 7);
                    LOAD_A(0, 1);
                    _tile_dpbssd(2, 6, 7);
                    LOAD_B(0);
                    _tile_dpbssd(1, 6, 7);
                    LOAD_A(1, 0);
                    _tile_dpbssd(3, 6, 7);
                    LOAD_B(2);
                    _tile_dpbssd(5, 6, 7);
                    LOAD_A(0, 0);
                    _tile_dpbssd(2, 6, 7);
                    LOAD_A(0, 2);
                    LOAD_B(0);
                    _tile_dpbssd(2, 6, 7);
                    LOAD_A(1, 2);
                    _tile_dpbssd(5, 6, 7);
                    LOAD_A(1, 1);
                    _tile_dpbssd(4, 6, 7);
                    LOAD_B(1);
                    _tile_dpbssd(5, 6, 7);
                    LOAD_A(1, 0);
                    _tile_dpbssd(4, 6, 7);
                    for (int r = step * rows_a_step; r < (step + 1) * rows_a_step && r < BLOCK; r++)
                        __builtin_prefetch(out + r * p->out_stride, 1);
                    finish_sums(&pending, rows_a_step, epilogue);
                }
                int32_t *to = sums[turn];
                _tile_stored(0, to, 64);
                _tile_stored(1, to + 256, 64);
                _tile_stored(2, to + 2 * 256, 64);
                _tile_stored(3, to + 3 * 256, 64);
                _tile_stored(4, to + 4 * 256, 64);
                _tile_stored(5, to + 5 * 256, 64);
                pending = (pending_sums){
                    .sums = to,
                    .row_units = units + row,
                    .column_units = load((const float *)(panel + group_bytes)),
                    .bias = load(p->bias + column),
                    .out = out,
                    .out_stride = p->out_stride,
                    .row = 0,
                };
            }
        }
        finish_sums(&pending, BLOCK, epilogue);
    }
    _tile_release();
}

static void multiply_float32(const sie_product *p, void *scratch) {
    switch (p->epilogue) {
        case SIE_STORE: multiply_float32_as(p, scratch, SIE_STORE); break;
        case SIE_GELU: multiply_float32_as(p, scratch, SIE_GELU); break;
        case SIE_GELU_TANH: multiply_float32_as(p, scratch, SIE_GELU_TANH); break;
        case SIE_RELU: multiply_float32_as(p, scratch, SIE_RELU); break;
        case SIE_ADD: multiply_float32_as(p, scratch, SIE_ADD); break;
    }
}

static size_t multiply_scratch_bytes_float32(int k) {
    const size_t rows = split_rows_at_once(k);
    return rows * ((size_t)DIGITS * steps_of(k) * DEPTH + sizeof(float)) + 64;
}

/* Attention in float32 by bfloat16 tiles: a float is the sum of three bfloat16 of 8 bits each, to
 * its last bit, and again the six largest of nine products are summed. Heads are too narrow, and
 * weights of too many sizes, for one unit per row.
 */
#define PARTS 3

INLINE void split_32(__m512 low, __m512 high, __m512i parts[PARTS]) {
    for (int part = 0; part < PARTS; part++) {
        parts[part] = to_bf16(low, high);
        if (part == PARTS - 1) break;
        __m512i a = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(parts[part]));
        __m512i b = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(parts[part], 1));
        low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)));
        high = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)));
    }
}

/* The parts of 32 floats of row `row`; zero from `length` on. */
INLINE void split_row_of(const float *x, long stride, int row, int length, __m512i parts[PARTS]) {
    if (row < length) {
        split_32(_mm512_loadu_ps(x + row * stride), _mm512_loadu_ps(x + row * stride + 16), parts);
    } else {
        for (int part = 0; part < PARTS; part++) parts[part] = _mm512_setzero_si512();
    }
}

/* A 32 x 32 product: rows of `a` in planes of a part each, columns in tiles, for each 32 of k two
 * of the first part, two of the second, two of the third. */
#define BLOCK_TILES (2 * PARTS)
#define LOAD_ROWS(part)                          \
    _tile_loadd(4, a + (part) * plane, a_bytes); \
    _tile_loadd(5, a + (part) * plane + 16 * a_bytes, a_bytes)
#define LOAD_COLUMNS(part)                           \
    _tile_loadd(6, b + 2 * (part) * TILE_BYTES, 64); \
    _tile_loadd(7, b + (2 * (part) + 1) * TILE_BYTES, 64)
#define MULTIPLY             \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    _tile_dpbf16ps(2, 5, 6); \
    _tile_dpbf16ps(3, 5, 7)

INLINE void multiply_parts(const char *a, long a_bytes, long plane, const char *b, int steps,
                           float *to, long to_stride) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < steps; i++, a += 64, b += BLOCK_TILES * TILE_BYTES) {
        LOAD_ROWS(0);
        LOAD_COLUMNS(2);
        MULTIPLY;
        LOAD_COLUMNS(1);
        MULTIPLY;
        LOAD_COLUMNS(0);
        MULTIPLY;
        LOAD_ROWS(2);
        MULTIPLY;
        LOAD_ROWS(1);
        MULTIPLY;
        LOAD_COLUMNS(1);
        MULTIPLY;
    }
    _tile_stored(0, to, to_stride * sizeof(float));
    _tile_stored(1, to + 16, to_stride * sizeof(float));
    _tile_stored(2, to + 16 * to_stride, to_stride * sizeof(float));
    _tile_stored(3, to + 16 * to_stride + 16, to_stride * sizeof(float));
}

/* As `pack_keys`, in blocks of 32 keys. */
INLINE void pack_keys_float32(const float *k, long stride, int length, int head_size, char *to) {
    for (int key = 0; key < length; key += BLOCK)
        for (int i = 0; i < head_size; i += BLOCK, to += BLOCK_TILES * TILE_BYTES)
            for (int half = 0; half < 2; half++) {
                __m512i rows[PARTS][16];
                for (int r = 0; r < 16; r++) {
                    __m512i parts[PARTS];
                    split_row_of(k + i, stride, key + half * 16 + r, length, parts);
                    for (int part = 0; part < PARTS; part++) rows[part][r] = parts[part];
                }
                for (int part = 0; part < PARTS; part++) {
                    char *tile = to + (2 * part + half) * TILE_BYTES;
                    transpose_16x16(rows[part]);
                    for (int r = 0; r < 16; r++) _mm512_store_si512(tile + r * 64, rows[part][r]);
                }
            }
}

/* As `pack_values`, with what one block of 32 columns needs in a row. */
INLINE void pack_values_float32(const float *v, long stride, int length, int head_size, char *to) {
    const __m512i take_low = _mm512_loadu_si512(pairs_low);
    const __m512i take_high = _mm512_add_epi16(take_low, _mm512_set1_epi16(16));
    for (int i = 0; i < head_size; i += BLOCK)
        for (int key = 0; key < length; key += BLOCK, to += BLOCK_TILES * TILE_BYTES)
            for (int pair = 0; pair < 16; pair++) {
                __m512i a[PARTS], b[PARTS];
                split_row_of(v + i, stride, key + 2 * pair, length, a);
                split_row_of(v + i, stride, key + 2 * pair + 1, length, b);
                for (int part = 0; part < PARTS; part++) {
                    char *tile = to + 2 * part * TILE_BYTES + pair * 64;
                    _mm512_store_si512(tile, _mm512_permutex2var_epi16(a[part], take_low, b[part]));
                    _mm512_store_si512(tile + TILE_BYTES,
                                       _mm512_permutex2var_epi16(a[part], take_high, b[part]));
                }
            }
}

/* Weights e^(s - top) of one row over all keys, in planes, zero up to the next 32; returns their
 * sum. Writes behind the row's end, within `padded`. */
INLINE float weigh_row_float32(float *scores, bf16 *weights, long plane, int length, int padded,
                               vec scale) {
    for (int j = length; j < padded; j++) scores[j] = -INFINITY;
    vec top = load(scores), total = {0};
    for (int j = 16; j < padded; j += 16) top = max2(load(scores + j), top);
    const vec shift = splat(max_of(top)) * scale;
    for (int j = 0; j < padded; j += 32) {
        vec e[2];
        for (int half = 0; half < 2; half++) {
            const vec s = load(scores + j + 16 * half);
            e[half] = exp_of(s * scale - shift);
            if (j + BLOCK > length) e[half] = choose(s == splat(-INFINITY), splat(0.0f), e[half]);
            total += e[half];
        }
        __m512i parts[PARTS];
        split_32((__m512)e[0], (__m512)e[1], parts);
        for (int part = 0; part < PARTS; part++)
            _mm512_store_si512(weights + part * plane + j, parts[part]);
    }
    return sum_of(total);
}

/* Scratch of `attend_float32`; rows are gapped so that they do not share sets of the cache. */
typedef struct {
    size_t keys, values, queries, scores, weights, sums, all;
} attend_layout;

static attend_layout layout_of(int padded, int head_size) {
    const size_t packed = (size_t)padded * head_size * PARTS * sizeof(bf16);
    attend_layout at = {.keys = 0};
    at.values = packed;
    at.queries = at.values + packed;
    at.scores = at.queries + BLOCK * (PARTS * head_size + ROW_GAP) * sizeof(bf16);
    at.weights = at.scores + BLOCK * ((size_t)padded + ROW_GAP) * sizeof(float);
    at.sums = at.weights + BLOCK * ((size_t)PARTS * padded + ROW_GAP) * sizeof(bf16);
    at.all = at.sums + BLOCK * BLOCK * sizeof(float);
    return at;
}

static size_t attend_scratch_bytes_float32(int max_seqlen, int head_size) {
    return layout_of(padded_to(max_seqlen, BLOCK), head_size).all + 64;
}

static void attend_float32(const void *qkv_, long stride, const int32_t *cu_seqlens,
                           int num_sequences, int num_heads, int head_size, int window,
                           void *context, long context_stride, void *scratch) {
    const int hidden = num_heads * head_size, steps = head_size / BLOCK;
    const vec scale = splat(1.0f / sqrtf((float)head_size));
    if (window) {
        sie_avx512_kernels.attend(qkv_, stride, cu_seqlens, num_sequences, num_heads, head_size,
                                  window, context, context_stride, scratch);
        return;
    }
    char *base = (char *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    configure_tiles();
    for (int s = 0; s < num_sequences; s++) {
        const int length = cu_seqlens[s + 1] - cu_seqlens[s], padded = padded_to(length, BLOCK);
        const attend_layout at = layout_of(padded, head_size);
        const long score_stride = padded + ROW_GAP, weight_stride = PARTS * padded + ROW_GAP;
        const long query_stride = PARTS * head_size + ROW_GAP;
        char *keys = base + at.keys, *values = base + at.values;
        bf16 *queries = (bf16 *)(base + at.queries), *weights = (bf16 *)(base + at.weights);
        float *scores = (float *)(base + at.scores), *sums = (float *)(base + at.sums);
        for (int head = 0; head < num_heads; head++) {
            const float *q = (const float *)qkv_ + cu_seqlens[s] * stride + head * head_size;
            pack_keys_float32(q + hidden, stride, length, head_size, keys);
            pack_values_float32(q + 2 * hidden, stride, length, head_size, values);
            for (int row = 0; row < length; row += BLOCK) {
                const int rows = length - row < BLOCK ? length - row : BLOCK;
                for (int r = 0; r < BLOCK; r++)
                    for (int i = 0; i < head_size; i += BLOCK) {
                        __m512i parts[PARTS];
                        split_row_of(q + i, stride, row + r, length, parts);
                        for (int part = 0; part < PARTS; part++)
                            _mm512_storeu_si512(queries + r * query_stride + part * head_size + i,
                                                parts[part]);
                    }
                for (int key = 0; key < padded; key += BLOCK)
                    multiply_parts((const char *)queries, query_stride * sizeof(bf16),
                                   head_size * sizeof(bf16),
                                   keys + (size_t)key / BLOCK * steps * BLOCK_TILES * TILE_BYTES,
                                   steps, scores + key, score_stride);
                float share[BLOCK];
                for (int r = 0; r < rows; r++)
                    share[r] = 1.0f / weigh_row_float32(scores + r * score_stride,
                                                        weights + r * weight_stride, padded,
                                                        length, padded, scale);
                for (int i = 0; i < head_size; i += BLOCK) {
                    multiply_parts((const char *)weights, weight_stride * sizeof(bf16),
                                   padded * sizeof(bf16),
                                   values + (size_t)i * padded * PARTS * sizeof(bf16),
                                   padded / BLOCK, sums, BLOCK);
                    float *out = (float *)context + (cu_seqlens[s] + row) * context_stride +
                                 head * head_size + i;
                    for (int r = 0; r < rows; r++, out += context_stride) {
                        store(out, load(sums + r * BLOCK) * splat(share[r]));
                        store(out + 16, load(sums + r * BLOCK + 16) * splat(share[r]));
                    }
                }
            }
        }
    }
    _tile_release();
}

sie_kernels sie_amx_kernels(void) {
    sie_kernels table = sie_avx512_kernels;
    table.activation_bytes = sizeof(bf16);
    table.row_block = BLOCK;
    table.packed_bytes = packed_bytes;
    table.pack = pack;
    table.multiply = multiply;
    table.attend = attend;
    table.attend_scratch_bytes = attend_scratch_bytes;
    table.layer_norm = layer_norm;
    table.to_activations = to_activations;
    return table;
}

sie_kernels sie_amx_float32_kernels(void) {
    sie_kernels table = sie_avx512_kernels;
    table.row_block = BLOCK;
    table.packed_bytes = packed_bytes_float32;
    table.pack = pack_float32;
    table.multiply = multiply_float32;
    table.multiply_scratch_bytes = multiply_scratch_bytes_float32;
    table.attend = attend_float32;
    table.attend_scratch_bytes = attend_scratch_bytes_float32;
    return table;
}
