/* A post-norm encoder (BERT, RoBERTa, XLM-RoBERTa), with or without a classifier: weights, buffers,
 * one run.
 *
 * The order of work in a run is the functions `run_layers` and `run_last_for_firsts` below. Weights are copied when they are
 * set, so that the caller's may go, except for the embeddings, which stay where they are.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels.h"

#define EXPORT __attribute__((visibility("default")))

enum { SIE_FLOAT32, SIE_FLOAT16, SIE_BFLOAT16 };

typedef struct {
    int32_t hidden, layers, heads, intermediate, labels;
    int32_t activation; /* enum sie_epilogue: SIE_GELU, SIE_GELU_TANH or SIE_RELU */
    int32_t word_format; /* of the word embeddings: SIE_FLOAT32, … */
    float epsilon;
    int32_t reads_all; /* whether the last layer is computed for all tokens, not for the first */
} sie_config;

/* The tensors of a layer, float32, row-major [out, in]. */
typedef struct {
    const float *query, *query_bias, *key, *key_bias, *value, *value_bias;
    const float *output, *output_bias, *norm, *norm_bias;
    const float *up, *up_bias, *down, *down_bias, *last_norm, *last_norm_bias;
} sie_layer_weights;

typedef struct {
    const void *words;
    const float *positions, *types, *norm, *norm_bias;
    const float *dense, *dense_bias, *classifier, *classifier_bias;
} sie_outer_weights;

typedef struct {
    void *qkv, *output, *up, *down;
    float *key, *value; /* of the last layer only, as they came */
    float *qkv_bias, *output_bias, *norm, *norm_bias, *up_bias, *down_bias, *last_norm,
        *last_norm_bias;
} layer;

typedef struct {
    sie_config config;
    sie_kernels kernels;
    sie_outer_weights outer;
    layer *layers;
} sie_model;

typedef struct {
    const sie_model *model;
    int max_tokens, max_sequences, max_seqlen;
    int stride, qkv_stride, up_stride;
    float *x;
    char *activations, *qkv, *context, *up;
    float *first, *queries; /* of the last layer: one row per sequence */
    char *first_activations, *first_context;
    float *first_context_float, *scratch;
    void *memory;
    size_t memory_bytes;
} sie_workspace;

/* What is before every allocation: the bytes that were mapped for it, 0 if it is of the heap. */
typedef struct {
    _Alignas(64) size_t mapped_bytes;
} allocation;

/* From here on memory is mapped by itself, so that it goes back when it is released: the heap keeps
 * holes between what is still used, and models that come and go would make it grow. */
#define MAPPED_SIZE (256 << 10)

/* Memory from a multiple of 64 bytes on; NULL if there is none. */
static void *allocate(size_t bytes) {
    const size_t whole = bytes + sizeof(allocation);
    void *memory = NULL;
    if (whole >= MAPPED_SIZE) {
        memory = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return NULL;
    } else if (posix_memalign(&memory, 64, whole)) {
        return NULL;
    }
    allocation *head = memory;
    head->mapped_bytes = whole >= MAPPED_SIZE ? whole : 0;
    return head + 1;
}

static void release(void *memory) {
    if (!memory) return;
    allocation *head = (allocation *)memory - 1;
    if (head->mapped_bytes) munmap(head, head->mapped_bytes);
    else free(head);
}

/* Of the feed-forward's inner activations, computed at a time: they stay in a core's cache. */
#define UP_BLOCK_SIZE (256 << 10)

static float *copy_of(const float *from, size_t count) {
    float *to = allocate(count * sizeof *to);
    if (to) memcpy(to, from, count * sizeof *to);
    return to;
}

static int find_table(const char *name, sie_kernels *table) {
    if (!strcmp(name, "amx")) *table = sie_amx_kernels();
    else if (!strcmp(name, "amx-float32")) *table = sie_amx_float32_kernels();
    else if (!strcmp(name, "avx512")) *table = sie_avx512_kernels;
    else if (!strcmp(name, "avx2")) *table = sie_avx2_kernels;
    else return 0;
    return 1;
}

/* Whether this processor, and the system, let us run a table's kernels. */
EXPORT int sie_supports(const char *name) {
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vl");
    if (!strcmp(name, "avx2")) return avx2;
    if (!strcmp(name, "avx512")) return avx512;
    if (!strcmp(name, "amx") || !strcmp(name, "amx-float32"))
        return avx512 && __builtin_cpu_supports("avx512bf16") &&
               __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
               __builtin_cpu_supports("amx-int8") && sie_amx_permitted();
    return 0;
}

EXPORT void sie_model_free(sie_model *model) {
    if (!model) return;
    for (int i = 0; model->layers && i < model->config.layers; i++) {
        layer *l = &model->layers[i];
        void *owned[] = {l->qkv,  l->output, l->up,      l->down,      l->key,       l->value,
                         l->norm, l->norm_bias, l->qkv_bias, l->output_bias, l->up_bias, l->down_bias,
                         l->last_norm, l->last_norm_bias};
        for (size_t j = 0; j < sizeof owned / sizeof *owned; j++) release(owned[j]);
    }
    free(model->layers);
    free(model);
}

/* Make a model without weights, or NULL if its shape does not suit the kernels. `outer` is kept. */
EXPORT sie_model *sie_model_new(const sie_config *config, const sie_outer_weights *outer,
                                const char *kernels) {
    const int block = SIE_COLUMN_BLOCK;
    sie_kernels table;
    if (!find_table(kernels, &table) || config->hidden % block || config->intermediate % block ||
        config->hidden % config->heads ||
        config->hidden / config->heads % table.head_size_multiple)
        return NULL;
    sie_model *model = calloc(1, sizeof *model);
    if (!model) return NULL;
    *model = (sie_model){.config = *config, .kernels = table, .outer = *outer};
    model->layers = calloc(config->layers, sizeof *model->layers);
    if (!model->layers) {
        free(model);
        return NULL;
    }
    return model;
}

/* Copy one layer's weights in; 0 if memory ran out. */
EXPORT int sie_model_set_layer(sie_model *model, int index, const sie_layer_weights *w) {
    const sie_kernels *kernels = &model->kernels;
    const int hidden = model->config.hidden, intermediate = model->config.intermediate;
    const size_t square = kernels->packed_bytes(hidden, hidden);
    const int is_last = index == model->config.layers - 1 && !model->config.reads_all;
    layer *l = &model->layers[index];
    *l = (layer){
        .qkv = allocate(is_last ? square : 3 * square),
        .output = allocate(square),
        .up = allocate(kernels->packed_bytes(intermediate, hidden)),
        .down = allocate(kernels->packed_bytes(hidden, intermediate)),
        .qkv_bias = allocate(3 * hidden * sizeof(float)),
        .output_bias = copy_of(w->output_bias, hidden),
        .norm = copy_of(w->norm, hidden),
        .norm_bias = copy_of(w->norm_bias, hidden),
        .up_bias = copy_of(w->up_bias, intermediate),
        .down_bias = copy_of(w->down_bias, hidden),
        .last_norm = copy_of(w->last_norm, hidden),
        .last_norm_bias = copy_of(w->last_norm_bias, hidden),
    };
    if (is_last) {
        l->key = copy_of(w->key, (size_t)hidden * hidden);
        l->value = copy_of(w->value, (size_t)hidden * hidden);
        if (!l->key || !l->value) return 0;
    }
    if (!l->qkv || !l->output || !l->up || !l->down || !l->qkv_bias || !l->output_bias ||
        !l->norm || !l->norm_bias || !l->up_bias || !l->down_bias || !l->last_norm ||
        !l->last_norm_bias)
        return 0;
    memcpy(l->qkv_bias, w->query_bias, hidden * sizeof(float));
    memcpy(l->qkv_bias + hidden, w->key_bias, hidden * sizeof(float));
    memcpy(l->qkv_bias + 2 * hidden, w->value_bias, hidden * sizeof(float));
    kernels->pack(w->query, hidden, hidden, l->qkv);
    if (!is_last) {
        kernels->pack(w->key, hidden, hidden, (char *)l->qkv + square);
        kernels->pack(w->value, hidden, hidden, (char *)l->qkv + 2 * square);
    }
    kernels->pack(w->output, hidden, hidden, l->output);
    kernels->pack(w->up, intermediate, hidden, l->up);
    kernels->pack(w->down, hidden, intermediate, l->down);
    return 1;
}

/* What the layers of a model hold; see sie_model_set_layer. */
EXPORT size_t sie_model_num_bytes(const sie_model *model) {
    const sie_kernels *kernels = &model->kernels;
    const size_t hidden = model->config.hidden, intermediate = model->config.intermediate;
    const size_t square = kernels->packed_bytes(hidden, hidden);
    const size_t each = 4 * square + kernels->packed_bytes(intermediate, hidden) +
                        kernels->packed_bytes(hidden, intermediate) +
                        (9 * hidden + intermediate) * sizeof(float);
    /* Where first tokens alone are read, the last layer has its keys' and values' weights as they
     * were. */
    const size_t more = model->config.reads_all ? 0 : hidden * hidden * sizeof(float) - square;
    return model->config.layers * each + 2 * more;
}

EXPORT void sie_workspace_free(sie_workspace *workspace) {
    if (!workspace) return;
    release(workspace->memory);
    free(workspace);
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Room for batches of so many tokens in so many sequences; NULL if memory ran out. */
EXPORT sie_workspace *sie_workspace_new(const sie_model *model, int max_tokens, int max_sequences,
                                        int max_seqlen) {
    const sie_config *c = &model->config;
    const sie_kernels *kernels = &model->kernels;
    const size_t size = kernels->activation_bytes;
    const int gap = 32; /* between rows: those of a power of two would share a set of the cache */
    /* One block more than asked: attention reads whole blocks of rows from any sequence's start. */
    const size_t rows =
        (size_t)((max_tokens + SIE_ROW_BLOCK - 1) / SIE_ROW_BLOCK + 1) * SIE_ROW_BLOCK;
    const size_t firsts =
        (size_t)((max_sequences + SIE_ROW_BLOCK - 1) / SIE_ROW_BLOCK) * SIE_ROW_BLOCK;
    sie_workspace *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    w->model = model;
    w->max_tokens = max_tokens;
    w->max_sequences = max_sequences;
    w->max_seqlen = max_seqlen;
    w->stride = c->hidden + gap;
    w->qkv_stride = 3 * c->hidden + gap;
    w->up_stride = c->intermediate + gap;
    const size_t scratch =
        larger(kernels->attend_scratch_bytes(max_seqlen, c->hidden / c->heads),
               larger(kernels->attend_first_scratch_bytes(max_seqlen, c->heads,
                                                          c->hidden / c->heads),
                      larger((c->hidden + max_seqlen) * sizeof(float), /* attend_across */
                             larger(kernels->multiply_scratch_bytes(c->intermediate),
                                    kernels->multiply_scratch_bytes(c->hidden)))));
    const int is_shared = size == sizeof(float); /* float32 activations are x itself */
    const struct {
        void *at;
        size_t bytes;
    } parts[] = {
        {&w->x, rows * w->stride * sizeof(float)},
        {&w->activations, is_shared ? 0 : rows * w->stride * size},
        {&w->qkv, rows * w->qkv_stride * size},
        {&w->context, rows * w->stride * size},
        {&w->up, rows * w->up_stride * size},
        {&w->first, firsts * w->stride * sizeof(float)},
        {&w->queries, firsts * w->stride * sizeof(float)},
        {&w->first_context_float, firsts * w->stride * sizeof(float)},
        {&w->first_activations, is_shared ? 0 : firsts * w->stride * size},
        {&w->first_context, is_shared ? 0 : firsts * w->stride * size},
        {&w->scratch, scratch},
    };
    const size_t count = sizeof parts / sizeof *parts;
    for (size_t i = 0; i < count; i++) w->memory_bytes += (parts[i].bytes + 127) & ~(size_t)63;
    w->memory = allocate(w->memory_bytes);
    if (!w->memory) {
        free(w);
        return NULL;
    }
    memset(w->memory, 0, w->memory_bytes);
    char *at = w->memory;
    for (size_t i = 0; i < count; i++) {
        *(void **)parts[i].at = at;
        at += (parts[i].bytes + 127) & ~(size_t)63;
    }
    if (is_shared) {
        w->activations = (char *)w->x;
        w->first_activations = (char *)w->first;
        w->first_context = (char *)w->first_context_float;
    }
    return w;
}

EXPORT size_t sie_workspace_bytes(const sie_workspace *workspace) {
    return workspace->memory_bytes;
}

static float from_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)mantissa * 0x1p-24f;
    uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static void embed(const sie_workspace *w, const int32_t *ids, const int32_t *types,
                  const int32_t *positions, int total) {
    const sie_model *model = w->model;
    const int hidden = model->config.hidden;
    for (int token = 0; token < total; token++) {
        float *x = w->x + (size_t)token * w->stride;
        const size_t at = (size_t)ids[token] * hidden;
        const float *position = model->outer.positions + (size_t)positions[token] * hidden;
        const float *type = model->outer.types + (size_t)(types ? types[token] : 0) * hidden;
        if (model->config.word_format == SIE_FLOAT32) {
            memcpy(x, (const float *)model->outer.words + at, hidden * sizeof(float));
        } else if (model->config.word_format == SIE_FLOAT16) {
            const uint16_t *word = (const uint16_t *)model->outer.words + at;
            for (int i = 0; i < hidden; i++) x[i] = from_half(word[i]);
        } else {
            const uint16_t *word = (const uint16_t *)model->outer.words + at;
            for (int i = 0; i < hidden; i++) {
                uint32_t bits = (uint32_t)word[i] << 16;
                memcpy(x + i, &bits, 4);
            }
        }
        /* In the order that transformers adds them. */
        for (int i = 0; i < hidden; i++) x[i] += type[i];
        for (int i = 0; i < hidden; i++) x[i] += position[i];
    }
}

static int padded_rows(const sie_kernels *kernels, int rows) {
    return (rows + kernels->row_block - 1) / kernels->row_block * kernels->row_block;
}

/* What follows attention in a layer, on all rows or on those of the first tokens. */
static void finish_layer(const sie_workspace *w, const layer *l, int rows, const void *context,
                         float *x, void *activations) {
    const sie_model *model = w->model;
    const sie_kernels *kernels = &model->kernels;
    const int hidden = model->config.hidden, intermediate = model->config.intermediate;
    kernels->multiply(&(sie_product){.input = context, .input_stride = w->stride, .rows = rows,
                                     .weight = l->output, .bias = l->output_bias, .n = hidden,
                                     .k = hidden, .epilogue = SIE_ADD, .out = x,
                                     .out_stride = w->stride},
                      w->scratch);
    kernels->layer_norm(x, w->stride, rows, hidden, l->norm, l->norm_bias, model->config.epsilon,
                        activations, w->stride);
    /* A few rows at a time: what the first product writes is still in the cache for the second. */
    const int block = padded_rows(kernels, UP_BLOCK_SIZE / intermediate + 1);
    for (int row = 0; row < rows; row += block) {
        const int count = rows - row < block ? rows - row : block;
        const size_t at = (size_t)row * w->stride;
        kernels->multiply(&(sie_product){.input = (const char *)activations +
                                                  at * kernels->activation_bytes,
                                         .input_stride = w->stride, .rows = count,
                                         .weight = l->up, .bias = l->up_bias, .n = intermediate,
                                         .k = hidden, .epilogue = model->config.activation,
                                         .out = w->up, .out_stride = w->up_stride},
                          w->scratch);
        kernels->multiply(&(sie_product){.input = w->up, .input_stride = w->up_stride,
                                         .rows = count, .weight = l->down, .bias = l->down_bias,
                                         .n = hidden, .k = intermediate, .epilogue = SIE_ADD,
                                         .out = x + at, .out_stride = w->stride},
                          w->scratch);
    }
    kernels->layer_norm(x, w->stride, rows, hidden, l->last_norm, l->last_norm_bias,
                        model->config.epsilon, activations, w->stride);
}

static float read_activation(const void *row, int bytes, size_t at) {
    if (bytes == sizeof(float)) return ((const float *)row)[at];
    const uint32_t bits = (uint32_t)((const uint16_t *)row)[at] << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* Attention of a span's tokens to another span's, for the few that no token sees: a query's masks.
 * In plain C: there are about 30 of them in a call. `scratch` holds a row and a span of floats. */
static void attend_across(const sie_workspace *w, int begin, int end, int key_begin, int key_end) {
    const sie_config *c = &w->model->config;
    const sie_kernels *kernels = &w->model->kernels;
    const int bytes = (int)kernels->activation_bytes, head_size = c->hidden / c->heads;
    const float scale = 1.0f / sqrtf((float)head_size);
    float *row = w->scratch, *weights = row + c->hidden;
    for (int token = begin; token < end; token++) {
        const char *query = w->qkv + (size_t)token * w->qkv_stride * bytes;
        for (int head = 0; head < c->heads; head++) {
            const int at = head * head_size;
            float largest = -INFINITY, sum = 0;
            for (int key = key_begin; key < key_end; key++) {
                const char *other = w->qkv + (size_t)key * w->qkv_stride * bytes;
                float score = 0;
                for (int i = at; i < at + head_size; i++)
                    score += read_activation(query, bytes, i) *
                             read_activation(other, bytes, c->hidden + i);
                weights[key - key_begin] = score * scale;
                largest = fmaxf(largest, score * scale);
            }
            for (int key = 0; key < key_end - key_begin; key++)
                sum += weights[key] = expf(weights[key] - largest);
            memset(row + at, 0, head_size * sizeof(float));
            for (int key = key_begin; key < key_end; key++) {
                const char *other = w->qkv + (size_t)key * w->qkv_stride * bytes;
                const float weight = weights[key - key_begin] / sum;
                for (int i = at; i < at + head_size; i++)
                    row[i] += weight * read_activation(other, bytes, 2 * c->hidden + i);
            }
        }
        kernels->to_activations(row, c->hidden, w->context + (size_t)token * w->stride * bytes);
    }
}

typedef struct {
    const int32_t *ids, *types, *positions; /* [total]; no types: every token is of the first */
    const int32_t *cu_seqlens; /* [count + 1] */
    /* For every span the one whose tokens it sees; NULL where each sees its own. */
    const int32_t *sees;
    int count;
} sie_batch;

/* Embeddings, and the first `count` layers for all tokens: x, and what the next layer reads. */
static void run_layers(sie_workspace *w, const sie_batch *b, int count) {
    const sie_model *model = w->model;
    const sie_config *c = &model->config;
    const sie_kernels *kernels = &model->kernels;
    const int total = b->cu_seqlens[b->count], rows = padded_rows(kernels, total);
    const int head_size = c->hidden / c->heads;

    embed(w, b->ids, b->types, b->positions, total);
    kernels->layer_norm(w->x, w->stride, rows, c->hidden, model->outer.norm,
                        model->outer.norm_bias, c->epsilon, w->activations, w->stride);
    for (int i = 0; i < count; i++) {
        const layer *l = &model->layers[i];
        kernels->multiply(&(sie_product){.input = w->activations, .input_stride = w->stride,
                                         .rows = rows, .weight = l->qkv, .bias = l->qkv_bias,
                                         .n = 3 * c->hidden, .k = c->hidden,
                                         .epilogue = SIE_STORE, .out = w->qkv,
                                         .out_stride = w->qkv_stride},
                          w->scratch);
        kernels->attend(w->qkv, w->qkv_stride, b->cu_seqlens, b->count, c->heads, head_size, 0,
                        w->context, w->stride, w->scratch);
        for (int s = 0; b->sees && s < b->count; s++)
            if (b->sees[s] != s)
                attend_across(w, b->cu_seqlens[s], b->cu_seqlens[s + 1],
                              b->cu_seqlens[b->sees[s]], b->cu_seqlens[b->sees[s] + 1]);
        finish_layer(w, l, rows, w->context, w->x, w->activations);
    }
}

/* The last layer for each sequence's first token alone: w->first. */
static void run_last_for_firsts(sie_workspace *w, const sie_batch *b) {
    const sie_config *c = &w->model->config;
    const sie_kernels *kernels = &w->model->kernels;
    const layer *last = &w->model->layers[c->layers - 1];
    const int num_sequences = b->count, firsts = padded_rows(kernels, num_sequences);
    for (int s = 0; s < num_sequences; s++) {
        float *first = w->first + (size_t)s * w->stride;
        memcpy(first, w->x + (size_t)b->cu_seqlens[s] * w->stride, c->hidden * sizeof(float));
        kernels->to_activations(first, c->hidden,
                                w->first_activations +
                                    (size_t)s * w->stride * kernels->activation_bytes);
    }
    memset(w->queries, 0, (size_t)firsts * w->stride * sizeof(float));
    kernels->multiply(&(sie_product){.input = w->first_activations, .input_stride = w->stride,
                                     .rows = firsts, .weight = last->qkv, .bias = last->qkv_bias,
                                     .n = c->hidden, .k = c->hidden, .epilogue = SIE_ADD,
                                     .out = w->queries, .out_stride = w->stride},
                      w->scratch);
    kernels->attend_first(w->x, w->stride, b->cu_seqlens, num_sequences, c->heads,
                          c->hidden / c->heads, w->queries, last->key, last->value,
                          last->qkv_bias + 2 * c->hidden, w->first_context_float, w->stride,
                          w->scratch);
    for (int s = 0; s < num_sequences; s++)
        kernels->to_activations(
            w->first_context_float + (size_t)s * w->stride, c->hidden,
            w->first_context + (size_t)s * w->stride * kernels->activation_bytes);
    finish_layer(w, last, firsts, w->first_context, w->first, w->first_activations);
}

/* The last hidden states of a batch: of all tokens [total, hidden] if the model reads all, else of
 * each sequence's first [count, hidden]. */
EXPORT void sie_hidden(sie_workspace *w, const sie_batch *b, float *out) {
    const sie_config *c = &w->model->config;
    const float *from = w->x;
    int rows = b->cu_seqlens[b->count];
    if (c->reads_all) {
        run_layers(w, b, c->layers);
    } else {
        run_layers(w, b, c->layers - 1);
        run_last_for_firsts(w, b);
        from = w->first;
        rows = b->count;
    }
    for (int row = 0; row < rows; row++)
        memcpy(out + (size_t)row * c->hidden, from + (size_t)row * w->stride,
               c->hidden * sizeof(float));
}

/* One packed batch to logits [count, labels]: the score needs the first tokens alone. */
EXPORT void sie_score(sie_workspace *w, const sie_batch *b, float *logits) {
    const sie_model *model = w->model;
    const sie_config *c = &model->config;
    const sie_kernels *kernels = &model->kernels;
    run_layers(w, b, c->layers - 1);
    run_last_for_firsts(w, b);

    /* The head: dense, tanh, classifier; the queries' buffer has done its work. */
    kernels->dense(w->first, w->stride, b->count, model->outer.dense, model->outer.dense_bias,
                   c->hidden, c->hidden, w->queries, w->stride);
    for (int s = 0; s < b->count; s++)
        for (int i = 0; i < c->hidden; i++)
            w->queries[(size_t)s * w->stride + i] = tanhf(w->queries[(size_t)s * w->stride + i]);
    kernels->dense(w->queries, w->stride, b->count, model->outer.classifier,
                   model->outer.classifier_bias, c->labels, c->hidden, logits, c->labels);
}
