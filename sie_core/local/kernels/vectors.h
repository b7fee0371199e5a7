/* Vectors of VECTOR_WIDTH floats, and the functions of them that are exact to float32's rounding. */
#ifndef SIE_VECTORS_H
#define SIE_VECTORS_H

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(VECTOR_WIDTH * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(VECTOR_WIDTH * 4), aligned(4), may_alias));

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE vec splat(float f) { return f - (vec){0}; }
INLINE vec choose(ivec mask, vec a, vec b) {
    return (vec)(((ivec)a & mask) | ((ivec)b & ~mask));
}
INLINE vec max2(vec a, vec b) { return choose(a > b, a, b); }
INLINE vec min2(vec a, vec b) { return choose(a < b, a, b); }
INLINE float sum_of(vec v) {
    float s = 0;
    UNROLL for (int i = 0; i < VECTOR_WIDTH; i++) s += v[i];
    return s;
}
INLINE float max_of(vec v) {
    float m = v[0];
    UNROLL for (int i = 1; i < VECTOR_WIDTH; i++) m = v[i] > m ? v[i] : m;
    return m;
}

/* e^x to about 1 ulp for x <= 88; below -87 it is e^-87. x = n ln2 + r, by Cody and Waite's split. */
INLINE vec exp_of(vec x) {
    const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = max2(x, splat(-87.0f));
    vec shifted = x * splat(1.44269504f) + magic;
    vec n = shifted - magic;
    vec r = x - n * splat(0.693359375f);
    r = r - n * splat(-2.12194440e-4f);
    vec p = splat(1.0f / 5040);
    p = p * r + splat(1.0f / 720);
    p = p * r + splat(1.0f / 120);
    p = p * r + splat(1.0f / 24);
    p = p * r + splat(1.0f / 6);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

/* x Phi(x), where the upper tail of the normal distribution is e^(-x^2/2) times a polynomial in
 * 1 / (1 + 0.4 x), fitted to a relative error of 2e-8 over 0..13. */
INLINE vec gelu_of(vec x) {
    static const float c[] = {0.0318014659f, -0.174576312f, 0.377059817f, -0.367066383f, 0.113733873f, -0.0237853546f, 0.0902972817f, 0.133356035f, 0.159602493f, 0.159577116f};
    vec a = max2(x, -x);
    a = min2(a, splat(13.0f));
    vec t = splat(1.0f) / (splat(1.0f) + splat(0.4f) * a);
    vec p = splat(c[0]);
    UNROLL for (unsigned i = 1; i < sizeof c / sizeof *c; i++) p = p * t + splat(c[i]);
    vec tail = p * t * exp_of(splat(-0.5f) * a * a);
    return choose(x < splat(0.0f), x * tail, x - x * tail);
}

INLINE vec gelu_tanh_of(vec x) {
    /* 0.5 (1 + tanh(u)) = 1 / (1 + e^(-2u)) */
    vec u = splat(0.7978845608f) * (x + splat(0.044715f) * x * x * x);
    return x / (splat(1.0f) + exp_of(min2(splat(-2.0f) * u, splat(80.0f))));
}

/* What follows a product, for one vector of its columns. */
INLINE vec finish(vec v, vec bias, enum sie_epilogue epilogue) {
    v += bias;
    switch (epilogue) {
        case SIE_GELU: return gelu_of(v);
        case SIE_GELU_TANH: return gelu_tanh_of(v);
        case SIE_RELU: return choose(v < splat(0.0f), splat(0.0f), v); /* keeps what is no number */
        default: return v;
    }
}

#endif
