/* What the parts of the library share: one table of kernels per instruction set, and the model.
 *
 * Shapes are row-major. An activation is what a matrix product reads: float in the float32 tables,
 * bfloat16 in the others. The residual stream x is always float32.
 */
#ifndef SIE_KERNELS_H
#define SIE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Rows of every buffer are a multiple of this, so that kernels may work on whole blocks of rows. */
#define SIE_ROW_BLOCK 96
/* Columns of every matrix are a multiple of this. */
#define SIE_COLUMN_BLOCK 32

enum sie_epilogue {
    SIE_STORE,     /* out = product + bias */
    SIE_GELU,      /* out = gelu(product + bias), by the error function */
    SIE_GELU_TANH, /* out = gelu(product + bias), by the tanh formula */
    SIE_RELU,      /* out = max(product + bias, 0) */
    SIE_ADD,       /* x += product + bias */
};

/* One product: activations [rows, k] by packed weights [n, k], transposed. */
typedef struct {
    const void *input;
    long input_stride; /* in elements, as all strides */
    int rows;
    const void *weight;
    const float *bias; /* [n] */
    int n, k;
    enum sie_epilogue epilogue;
    void *out; /* activations [rows, n]; for SIE_ADD the float32 [rows, n] added to */
    long out_stride;
} sie_product;

typedef struct {
    size_t activation_bytes;
    int head_size_multiple;
    int row_block; /* rows that a product works on at a time; divides SIE_ROW_BLOCK */
    /* Bytes that a weight [n, k] takes when packed; panels of 32 columns follow each other. */
    size_t (*packed_bytes)(int n, int k);
    void (*pack)(const float *weight, int n, int k, void *out);
    void (*multiply)(const sie_product *product, void *scratch);
    size_t (*multiply_scratch_bytes)(int k);
    /* Self-attention within each sequence: qkv [total, 3 * hidden] to context [total, hidden].
     * window: how far a token sees to either side; 0 means everything. */
    void (*attend)(const void *qkv, long qkv_stride, const int32_t *cu_seqlens, int num_sequences,
                   int num_heads, int head_size, int window, void *context, long context_stride,
                   void *scratch);
    size_t (*attend_scratch_bytes)(int max_seqlen, int head_size);
    /* Normalise rows of x in place and leave them in `activations` too (unless it is x). */
    void (*layer_norm)(float *x, long x_stride, int rows, int hidden, const float *gain,
                       const float *bias, float epsilon, void *activations,
                       long activation_stride);
    void (*to_activations)(const float *x, int n, void *out);
    /* Attention of each sequence's first token, with keys and values never projected:
     * scores are (q W_k) x, the value is W_v (sum p x). x [total, hidden] to context [n, hidden]. */
    void (*attend_first)(const float *x, long x_stride, const int32_t *cu_seqlens,
                         int num_sequences, int num_heads, int head_size, const float *queries,
                         const float *key_weight, const float *value_weight,
                         const float *value_bias, float *context, long context_stride,
                         float *scratch);
    size_t (*attend_first_scratch_bytes)(int max_seqlen, int num_heads, int head_size);
    /* out [rows, n] = input [rows, k] by weight [n, k], transposed, + bias; float32, small. */
    void (*dense)(const float *input, long input_stride, int rows, const float *weight,
                  const float *bias, int n, int k, float *out, long out_stride);
} sie_kernels;

extern const sie_kernels sie_avx2_kernels;
extern const sie_kernels sie_avx512_kernels;
sie_kernels sie_amx_kernels(void);
sie_kernels sie_amx_float32_kernels(void);

/* Ask the kernel for the use of AMX tiles; 0 if it refuses. */
int sie_amx_permitted(void);

#endif
