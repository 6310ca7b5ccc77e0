/* One pass over the numbers of diagonal blocks, and of blocks without curvature. The arithmetic is that of
   vogn/kernels/reference.py, for diagonal blocks operation by operation; comparisons are written so that NaN stays NaN. */

#include <float.h>
#include <math.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

enum { RETRACT = 1, PRIOR_IN_MOMENTUM = 2, ROOT = 4 };

typedef struct {
    float lr, decay, forgotten, weight, momentum_rate, weight_decay, shift, correction, radius, least, factor;
} step_numbers;

/* One number of every vector: whether something is not finite. Counts it if the radius cuts it. */
INLINE int one(float *mean, float *curvature, float *momentum, float gradient, float h, const step_numbers n,
               const int kind, int64_t *clipped)
{
    float m = *mean, c = *curvature, u = *momentum;
    h = h * n.factor;
    if (kind & RETRACT) {
        float delta = n.weight * h - n.forgotten * c;
        float moved = c + delta + 0.5f * (delta * delta) / (c + n.weight_decay);
        c = moved < n.least ? n.least : moved;
    } else {
        c = n.decay * c + n.weight * h;
    }
    float prior = n.weight_decay * m;
    float target = (kind & PRIOR_IN_MOMENTUM) ? gradient + prior : gradient;
    u = u + n.momentum_rate * (target - u);
    float metric = n.correction * c;
    if (kind & ROOT)
        metric = sqrtf(metric < 0.0f ? 0.0f : metric);
    float update = ((kind & PRIOR_IN_MOMENTUM) ? u : u + prior) / (metric + n.shift);
    *clipped += fabsf(update) > n.radius;
    update = update > n.radius ? n.radius : update;
    update = update < -n.radius ? -n.radius : update;
    m = m - n.lr * update;
    *mean = m;
    *curvature = c;
    *momentum = u;
    return !(fabsf(m) <= FLT_MAX) | !(fabsf(c) <= FLT_MAX) | !(fabsf(u) <= FLT_MAX);
}

/* What a pass has found: how many elements the radius has cut, k; -1 - k if something is not finite. */
INLINE int64_t found(int infinite, int64_t clipped)
{
    return infinite ? -1 - clipped : clipped;
}

INLINE int64_t elsewhere(const float *restrict mean, const float *restrict curvature, const float *restrict momentum,
                         const float *restrict gradient, const float *restrict evidence, float *restrict new_mean,
                         float *restrict new_curvature, float *restrict new_momentum, int64_t count,
                         const step_numbers *given, const int kind)
{
    const step_numbers n = *given;
    int infinite = 0;
    int64_t clipped = 0;
    INDEPENDENT
    for (int64_t i = 0; i < count; i++) {
        float m = mean[i], c = curvature[i], u = momentum[i];
        infinite |= one(&m, &c, &u, gradient[i], evidence[i], n, kind, &clipped);
        new_mean[i] = m;
        new_curvature[i] = c;
        new_momentum[i] = u;
    }
    return found(infinite, clipped);
}

/* Over what it is computed from, or nowhere: then only what is found counts. Who writes has looked before. */
INLINE int64_t here(float *restrict mean, float *restrict curvature, float *restrict momentum,
                    const float *restrict gradient, const float *restrict evidence, int64_t count,
                    const step_numbers *given, const int write, const int kind)
{
    const step_numbers n = *given;
    int infinite = 0;
    int64_t clipped = 0;
    INDEPENDENT
    for (int64_t i = 0; i < count; i++) {
        float m = mean[i], c = curvature[i], u = momentum[i];
        infinite |= one(&m, &c, &u, gradient[i], evidence[i], n, kind, &clipped);
        if (write) {
            mean[i] = m;
            curvature[i] = c;
            momentum[i] = u;
        }
    }
    return write ? 0 : found(infinite, clipped);
}

/* Blocks whose rows are a row of a weight and an element of a bias; the other vectors have them side by side. */
typedef struct {
    float *weight, *bias, *curvature, *momentum;
    const float *weight_gradient, *bias_gradient, *evidence;
    int64_t columns; /* of the weight */
} block;

INLINE int64_t in_columns(const block *given, int64_t first, int64_t last, const step_numbers *numbers,
                          const int write, const int kind)
{
    const block b = *given;
    const step_numbers n = *numbers;
    int infinite = 0;
    int64_t clipped = 0;
    for (int64_t row = first; row < last; row++) {
        int64_t own = row * b.columns, place = row * (b.columns + 1), end = place + b.columns;
        int64_t of_row = here(b.weight + own, b.curvature + place, b.momentum + place, b.weight_gradient + own,
                              b.evidence + place, b.columns, numbers, write, kind);
        float m = b.bias[row], c = b.curvature[end], u = b.momentum[end];
        infinite |= one(&m, &c, &u, b.bias_gradient[row], b.evidence[end], n, kind, &clipped) | (of_row < 0);
        clipped += of_row < 0 ? -1 - of_row : of_row;
        if (write) {
            b.bias[row] = m;
            b.curvature[end] = c;
            b.momentum[end] = u;
        }
    }
    return write ? 0 : found(infinite, clipped);
}

#define OF_KIND(function, ...)                                                                                         \
    switch (kind) {                                                                                                    \
    case 0: return function(__VA_ARGS__, 0);                                                                           \
    case 1: return function(__VA_ARGS__, 1);                                                                           \
    case 2: return function(__VA_ARGS__, 2);                                                                           \
    case 3: return function(__VA_ARGS__, 3);                                                                           \
    case 4: return function(__VA_ARGS__, 4);                                                                           \
    case 5: return function(__VA_ARGS__, 5);                                                                           \
    case 6: return function(__VA_ARGS__, 6);                                                                           \
    default: return function(__VA_ARGS__, 7);                                                                          \
    }

/* The three ways to take a step; the first two return what they have found. */
int64_t vogn_diagonal_step(const float *mean, const float *curvature, const float *momentum, const float *gradient,
                           const float *evidence, float *new_mean, float *new_curvature, float *new_momentum,
                           int64_t count, const step_numbers *given, int kind)
{
    OF_KIND(elsewhere, mean, curvature, momentum, gradient, evidence, new_mean, new_curvature, new_momentum, count,
            given)
}

/* Nothing is written. */
int64_t vogn_diagonal_look(float *mean, float *curvature, float *momentum, const float *gradient,
                           const float *evidence, int64_t count, const step_numbers *given, int kind)
{
    OF_KIND(here, mean, curvature, momentum, gradient, evidence, count, given, 0)
}

/* Written over what it was computed from. */
int64_t vogn_diagonal_write(float *mean, float *curvature, float *momentum, const float *gradient,
                            const float *evidence, int64_t count, const step_numbers *given, int kind)
{
    OF_KIND(here, mean, curvature, momentum, gradient, evidence, count, given, 1)
}

/* The same for rows first .. last - 1 of a block. */
int64_t vogn_diagonal_look_columns(const block *given, int64_t first, int64_t last, const step_numbers *numbers,
                                   int kind)
{
    OF_KIND(in_columns, given, first, last, numbers, 0)
}

int64_t vogn_diagonal_write_columns(const block *given, int64_t first, int64_t last, const step_numbers *numbers,
                                    int kind)
{
    OF_KIND(in_columns, given, first, last, numbers, 1)
}

typedef struct {
    double lr, rate, entering_gradient, entering_mean, leaving_average, leaving_mean;
} linear_numbers;

enum { NO_AVERAGE = 0, SMALL_RATE = 1, LARGE_RATE = 2 };

/* As `here`, of a step without curvature: whether something is not finite. */
INLINE int linear(float *restrict mean, const float *restrict gradient, float *restrict momentum, int64_t count,
                  const linear_numbers *given, const int write, const int kind)
{
    const float lr = given->lr, rate = given->rate, kept = 1.0 - given->rate;
    const float of_gradient = given->entering_gradient, of_mean = given->entering_mean;
    const float of_average = given->leaving_average, of_mean_after = given->leaving_mean;
    int infinite = 0;
    INDEPENDENT
    for (int64_t i = 0; i < count; i++) {
        float m = mean[i], u = of_gradient * gradient[i] + of_mean * m;
        if (kind != NO_AVERAGE) {
            float old = momentum[i], change = u - old;
            u = kind == SMALL_RATE ? old + rate * change : u - kept * change;
            if (write)
                momentum[i] = u;
        }
        m = m - lr * (of_average * u + of_mean_after * m);
        if (write)
            mean[i] = m;
        infinite |= !(fabsf(m) <= FLT_MAX) | !(fabsf(u) <= FLT_MAX);
    }
    return infinite;
}

/* One parameter. In its block's momentum its numbers begin at `start`, and its rows are `stride` apart. */
typedef struct {
    float *mean;
    const float *gradient;
    float *momentum;
    int64_t count, start, columns, stride;
    linear_numbers numbers;
} linear_part;

/* The numbers first .. last - 1 of a parameter. */
INLINE int linear_rows(const linear_part *part, int64_t first, int64_t last, const int write, const int kind)
{
    int infinite = 0;
    int64_t row = first / part->columns, column = first % part->columns;
    while (first < last) {
        int64_t place = part->start + row * part->stride + column, count = part->columns - column;
        count = count < last - first ? count : last - first;
        infinite |= linear(part->mean + first, part->gradient + first, kind ? part->momentum + place : 0, count,
                           &part->numbers, write, kind);
        first += count;
        row += 1;
        column = 0;
    }
    return infinite;
}

/* The numbers first .. last - 1 of all parameters, one after the other: whether all of the result is finite. It is
   written over what it is computed from, or nowhere. */
int vogn_linear_step(const linear_part *parts, int64_t parameters, int64_t first, int64_t last, int write)
{
    int infinite = 0;
    for (int64_t k = 0; k < parameters && last > 0; k++) {
        const linear_part *part = parts + k;
        int64_t from = first > 0 ? first : 0, to = last < part->count ? last : part->count;
        int small = part->numbers.rate < 0.5;
#define ROWS(write, kind) linear_rows(part, from, to, write, kind)
#define OF_RATE(write)                                                                                                 \
    (!part->momentum ? ROWS(write, NO_AVERAGE) : small ? ROWS(write, SMALL_RATE) : ROWS(write, LARGE_RATE))
        infinite |= write ? OF_RATE(1) : OF_RATE(0);
        first -= part->count;
        last -= part->count;
    }
    return !infinite;
}

/* displacement = noise / sqrt(curvature + shift) * scale; may be written over the noise. */
void vogn_displace(const float *noise, const float *curvature, float *displacement, int64_t count, float shift,
                   float scale)
{
    INDEPENDENT
    for (int64_t i = 0; i < count; i++)
        displacement[i] = noise[i] * (1.0f / sqrtf(curvature[i] + shift)) * scale;
}

/* product = displacement (curvature + shift) scale response; may be written over one of them. */
void vogn_price(const float *displacement, const float *curvature, const float *response, float *product,
                int64_t count, float shift, float scale)
{
    INDEPENDENT
    for (int64_t i = 0; i < count; i++)
        product[i] = displacement[i] * (curvature[i] + shift) * scale * response[i];
}
