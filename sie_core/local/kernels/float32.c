/* Float32 kernels, written once in vectors of VECTOR_WIDTH floats and compiled per instruction set.
 *
 * The product keeps TILE_ROWS x 2 vectors in registers over the whole of k and reads weights packed
 * into panels two vectors wide, so every load serves several multiplications.
 */
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "vectors.h"

#if VECTOR_WIDTH == 16
#define TILE_ROWS 12
#define TABLE sie_avx512_kernels
#elif VECTOR_WIDTH == 8
#define TILE_ROWS 6
#define TABLE sie_avx2_kernels
#endif

#define PANEL (2 * VECTOR_WIDTH)
typedef vec tile[TILE_ROWS][2];

/* acc = a [TILE_ROWS, k] by b [k, PANEL] */
INLINE void multiply_tile(const float *a, long a_stride, const float *b, long b_stride, int k,
                          tile acc) {
    UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[r][0] = acc[r][1] = (vec){0};
    for (int i = 0; i < k; i++) {
        vec b0 = load(b), b1 = load(b + VECTOR_WIDTH);
        b += b_stride;
        UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            vec left = splat(a[r * a_stride + i]);
            acc[r][0] += left * b0;
            acc[r][1] += left * b1;
        }
    }
}

static size_t packed_bytes(int n, int k) { return (size_t)n * k * sizeof(float); }

static void pack(const float *weight, int n, int k, void *out) {
    float *to = out;
    for (int panel = 0; panel < n; panel += PANEL)
        for (int i = 0; i < k; i++)
            for (int j = 0; j < PANEL; j++) *to++ = weight[(size_t)(panel + j) * k + i];
}

INLINE void multiply_as(const sie_product *p, enum sie_epilogue epilogue) {
    for (int column = 0; column < p->n; column += PANEL) {
        const float *panel = (const float *)p->weight + (size_t)column * p->k;
        vec bias0 = load(p->bias + column), bias1 = load(p->bias + column + VECTOR_WIDTH);
        for (int row = 0; row < p->rows; row += TILE_ROWS) {
            tile acc;
            multiply_tile((const float *)p->input + row * p->input_stride, p->input_stride, panel,
                          PANEL, p->k, acc);
            float *out = (float *)p->out + row * p->out_stride + column;
            UNROLL for (int r = 0; r < TILE_ROWS; r++, out += p->out_stride) {
                vec v0 = finish(acc[r][0], bias0, epilogue);
                vec v1 = finish(acc[r][1], bias1, epilogue);
                if (epilogue == SIE_ADD) v0 += load(out), v1 += load(out + VECTOR_WIDTH);
                store(out, v0);
                store(out + VECTOR_WIDTH, v1);
            }
        }
    }
}

static size_t multiply_scratch_bytes(int k) {
    (void)k;
    return 0;
}

static void multiply(const sie_product *p, void *scratch) {
    (void)scratch;
    switch (p->epilogue) {
        case SIE_STORE: multiply_as(p, SIE_STORE); break;
        case SIE_GELU: multiply_as(p, SIE_GELU); break;
        case SIE_GELU_TANH: multiply_as(p, SIE_GELU_TANH); break;
        case SIE_RELU: multiply_as(p, SIE_RELU); break;
        case SIE_ADD: multiply_as(p, SIE_ADD); break;
    }
}

static int padded_keys(int length) { return (length + PANEL - 1) / PANEL * PANEL; }

static size_t attend_scratch_bytes(int max_seqlen, int head_size) {
    return sizeof(float) * padded_keys(max_seqlen) * (size_t)(head_size + TILE_ROWS) + 64;
}

/* Turn a row of scores into probabilities over keys first..last-1, zero elsewhere. */
INLINE void softmax_row(float *row, int first, int last, int padded, float scale) {
    for (int j = 0; j < first; j++) row[j] = -INFINITY;
    for (int j = last; j < padded; j++) row[j] = -INFINITY;
    int from = first / VECTOR_WIDTH * VECTOR_WIDTH;
    vec top = load(row + from);
    for (int j = from; j < last; j += VECTOR_WIDTH) top = max2(load(row + j), top);
    float highest = max_of(top);
    vec shift = splat(highest * scale), total = {0};
    for (int j = 0; j < padded; j += VECTOR_WIDTH) {
        vec s = load(row + j);
        vec e = exp_of(s * splat(scale) - shift);
        e = choose(s == splat(-INFINITY), splat(0.0f), e);
        total += e;
        store(row + j, e);
    }
    vec share = splat(1.0f / sum_of(total));
    for (int j = from; j < last; j += VECTOR_WIDTH) store(row + j, load(row + j) * share);
}

static void attend(const void *qkv_, long stride, const int32_t *cu_seqlens, int num_sequences,
                   int num_heads, int head_size, int window, void *context_, long context_stride,
                   void *scratch) {
    const float *qkv = qkv_;
    const int hidden = num_heads * head_size;
    const float scale = 1.0f / sqrtf((float)head_size);
    float *keys = scratch;
    for (int s = 0; s < num_sequences; s++) {
        const int length = cu_seqlens[s + 1] - cu_seqlens[s], padded = padded_keys(length);
        float *scores = keys + (size_t)padded * head_size;
        for (int head = 0; head < num_heads; head++) {
            const float *q = qkv + cu_seqlens[s] * stride + head * head_size;
            const float *k = q + hidden, *v = k + hidden;
            float *to = keys;
            for (int panel = 0; panel < padded; panel += PANEL)
                for (int i = 0; i < head_size; i++)
                    for (int j = 0; j < PANEL; j++)
                        *to++ = panel + j < length ? k[(panel + j) * stride + i] : 0.0f;
            for (int row = 0; row < length; row += TILE_ROWS) {
                int rows = length - row < TILE_ROWS ? length - row : TILE_ROWS;
                int low = 0, high = length;
                if (window) {
                    low = row > window ? row - window : 0;
                    high = row + rows + window < length ? row + rows + window : length;
                }
                for (int panel = low / PANEL * PANEL; panel < high; panel += PANEL) {
                    tile acc;
                    multiply_tile(q + row * stride, stride, keys + (size_t)panel * head_size, PANEL,
                                  head_size, acc);
                    UNROLL for (int r = 0; r < TILE_ROWS; r++) {
                        store(scores + (size_t)r * padded + panel, acc[r][0]);
                        store(scores + (size_t)r * padded + panel + VECTOR_WIDTH, acc[r][1]);
                    }
                }
                for (int r = 0; r < rows; r++) {
                    int first = low, last = high;
                    if (window) {
                        first = row + r > window ? row + r - window : 0;
                        last = row + r + window + 1 < length ? row + r + window + 1 : length;
                    }
                    softmax_row(scores + (size_t)r * padded, first, last, padded, scale);
                }
                for (int column = 0; column < head_size; column += PANEL) {
                    tile acc;
                    multiply_tile(scores + low, padded, v + low * stride + column, stride,
                                  high - low, acc);
                    float *out = (float *)context_ + (cu_seqlens[s] + row) * context_stride +
                                 head * head_size + column;
                    for (int r = 0; r < rows; r++, out += context_stride) {
                        store(out, acc[r][0]);
                        store(out + VECTOR_WIDTH, acc[r][1]);
                    }
                }
            }
        }
    }
}

static void layer_norm(float *x, long x_stride, int rows, int hidden, const float *gain,
                       const float *bias, float epsilon, void *activations,
                       long activation_stride) {
    (void)activations, (void)activation_stride; /* they are x itself */
    for (int r = 0; r < rows; r++, x += x_stride) {
        vec total = {0}, squares = {0};
        for (int i = 0; i < hidden; i += VECTOR_WIDTH) total += load(x + i);
        vec mean = splat(sum_of(total) / hidden);
        for (int i = 0; i < hidden; i += VECTOR_WIDTH) {
            vec d = load(x + i) - mean;
            squares += d * d;
        }
        vec inverse = splat(1.0f / sqrtf(sum_of(squares) / hidden + epsilon));
        for (int i = 0; i < hidden; i += VECTOR_WIDTH)
            store(x + i, (load(x + i) - mean) * inverse * load(gain + i) + load(bias + i));
    }
}

static void to_activations(const float *x, int n, void *out) {
    if (out != x) memcpy(out, x, n * sizeof *x);
}

static size_t attend_first_scratch_bytes(int max_seqlen, int num_heads, int head_size) {
    return sizeof(float) *
               ((size_t)num_heads * num_heads * head_size * 2 + (size_t)num_heads * (max_seqlen + 64)) +
           64;
}

static void attend_first(const float *x, long x_stride, const int32_t *cu_seqlens,
                         int num_sequences, int num_heads, int head_size, const float *queries,
                         const float *key_weight, const float *value_weight,
                         const float *value_bias, float *context, long context_stride,
                         float *scratch) {
    const int hidden = num_heads * head_size;
    const float scale = 1.0f / sqrtf((float)head_size);
    float *directions = scratch;                               /* [heads, hidden]: q W_k */
    float *sums = directions + (size_t)num_heads * hidden;     /* [heads, hidden]: sum p x */
    float *weights = sums + (size_t)num_heads * hidden;        /* [heads, padded] */
    for (int s = 0; s < num_sequences; s++) {
        const int length = cu_seqlens[s + 1] - cu_seqlens[s];
        const int padded = (length + VECTOR_WIDTH - 1) / VECTOR_WIDTH * VECTOR_WIDTH;
        const float *tokens = x + cu_seqlens[s] * x_stride;
        const float *q = queries + (size_t)s * context_stride;
        for (int head = 0; head < num_heads; head++) {
            const float *rows = key_weight + (size_t)head * head_size * hidden;
            for (int i = 0; i < hidden; i += VECTOR_WIDTH) {
                vec a = {0}, b = {0};
                for (int r = 0; r < head_size; r += 2) {
                    a += splat(q[head * head_size + r]) * load(rows + (size_t)r * hidden + i);
                    b += splat(q[head * head_size + r + 1]) *
                         load(rows + (size_t)(r + 1) * hidden + i);
                }
                store(directions + (size_t)head * hidden + i, a + b);
            }
        }
        for (int token = 0; token < length; token++) {
            for (int head = 0; head < num_heads; head++) {
                const float *direction = directions + (size_t)head * hidden;
                const float *row = tokens + token * x_stride;
                vec a = {0}, b = {0};
                for (int i = 0; i < hidden; i += PANEL) {
                    a += load(row + i) * load(direction + i);
                    b += load(row + i + VECTOR_WIDTH) * load(direction + i + VECTOR_WIDTH);
                }
                weights[(size_t)head * padded + token] = sum_of(a + b);
            }
        }
        for (int head = 0; head < num_heads; head++)
            softmax_row(weights + (size_t)head * padded, 0, length, padded, scale);
        memset(sums, 0, sizeof(float) * num_heads * hidden);
        for (int token = 0; token < length; token++) {
            const float *row = tokens + token * x_stride;
            for (int head = 0; head < num_heads; head++) {
                vec p = splat(weights[(size_t)head * padded + token]);
                float *sum = sums + (size_t)head * hidden;
                for (int i = 0; i < hidden; i += VECTOR_WIDTH)
                    store(sum + i, load(sum + i) + p * load(row + i));
            }
        }
        float *out = context + (size_t)s * context_stride;
        for (int c = 0; c < hidden; c++) {
            const float *row = value_weight + (size_t)c * hidden;
            const float *sum = sums + (size_t)(c / head_size) * hidden;
            vec a = {0}, b = {0};
            for (int i = 0; i < hidden; i += PANEL) {
                a += load(row + i) * load(sum + i);
                b += load(row + i + VECTOR_WIDTH) * load(sum + i + VECTOR_WIDTH);
            }
            out[c] = sum_of(a + b) + value_bias[c];
        }
    }
}

static void dense(const float *input, long input_stride, int rows, const float *weight,
                  const float *bias, int n, int k, float *out, long out_stride) {
    for (int c = 0; c < n; c++)
        for (int r = 0; r < rows; r++) {
            const float *a = input + r * input_stride, *b = weight + (size_t)c * k;
            vec total = {0};
            for (int i = 0; i < k; i += VECTOR_WIDTH) total += load(a + i) * load(b + i);
            out[r * out_stride + c] = sum_of(total) + bias[c];
        }
}

const sie_kernels TABLE = {
    .activation_bytes = sizeof(float),
    .head_size_multiple = PANEL,
    .row_block = TILE_ROWS,
    .packed_bytes = packed_bytes,
    .pack = pack,
    .multiply = multiply,
    .multiply_scratch_bytes = multiply_scratch_bytes,
    .attend = attend,
    .attend_scratch_bytes = attend_scratch_bytes,
    .layer_norm = layer_norm,
    .to_activations = to_activations,
    .attend_first = attend_first,
    .attend_first_scratch_bytes = attend_first_scratch_bytes,
    .dense = dense,
};
