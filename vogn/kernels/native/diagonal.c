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
    float lr, decay, forgotten, weight, momentum_rate, weight_decay, shift, correction, radius, least;
} step_numbers;

INLINE int step(const float *restrict mean, const float *restrict curvature, const float *restrict momentum,
                const float *restrict gradient, const float *restrict evidence, float *restrict new_mean,
                float *restrict new_curvature, float *restrict new_momentum, int64_t count, const step_numbers *given,
                const int kind)
{
    const step_numbers n = *given;
    int infinite = 0;
    INDEPENDENT
    for (int64_t i = 0; i < count; i++) {
        float m = mean[i], c = curvature[i], u = momentum[i], h = evidence[i];
        if (kind & RETRACT) {
            float delta = n.weight * h - n.forgotten * c;
            float moved = c + delta + 0.5f * (delta * delta) / (c + n.weight_decay);
            c = moved < n.least ? n.least : moved;
        } else {
            c = n.decay * c + n.weight * h;
        }
        float prior = n.weight_decay * m;
        float target = (kind & PRIOR_IN_MOMENTUM) ? gradient[i] + prior : gradient[i];
        u = u + n.momentum_rate * (target - u);
        float metric = n.correction * c;
        if (kind & ROOT)
            metric = sqrtf(metric < 0.0f ? 0.0f : metric);
        float update = ((kind & PRIOR_IN_MOMENTUM) ? u : u + prior) / (metric + n.shift);
        update = update > n.radius ? n.radius : update;
        update = update < -n.radius ? -n.radius : update;
        m = m - n.lr * update;
        new_mean[i] = m;
        new_curvature[i] = c;
        new_momentum[i] = u;
        infinite |= !(fabsf(m) <= FLT_MAX) | !(fabsf(c) <= FLT_MAX) | !(fabsf(u) <= FLT_MAX);
    }
    return !infinite;
}

/* Whether everything that was written is finite. */
int vogn_diagonal_step(const float *mean, const float *curvature, const float *momentum, const float *gradient,
                       const float *evidence, float *new_mean, float *new_curvature, float *new_momentum,
                       int64_t count, const step_numbers *given, int kind)
{
#define CASE(k)                                                                                                        \
    case k:                                                                                                            \
        return step(mean, curvature, momentum, gradient, evidence, new_mean, new_curvature, new_momentum, count,       \
                    given, k);
    switch (kind) {
        CASE(0)
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
        CASE(5)
        CASE(6)
    default:
        CASE(7)
    }
}

typedef struct {
    float lr, rate, entering_gradient, entering_mean, leaving_average, leaving_mean;
} linear_numbers;

enum { NO_AVERAGE = 0, SMALL_RATE = 1, LARGE_RATE = 2 };

INLINE int linear(const float *restrict mean, const float *restrict gradient, const float *restrict momentum,
                  float *restrict new_mean, float *restrict new_momentum, int64_t count, const linear_numbers *given,
                  const int kind)
{
    const linear_numbers n = *given;
    int infinite = 0;
    INDEPENDENT
    for (int64_t i = 0; i < count; i++) {
        float m = mean[i], u = n.entering_gradient * gradient[i] + n.entering_mean * m;
        if (kind != NO_AVERAGE) {
            float old = momentum[i], change = u - old;
            u = kind == SMALL_RATE ? old + n.rate * change : u - (1.0f - n.rate) * change;
            new_momentum[i] = u;
        }
        m = m - n.lr * (n.leaving_average * u + n.leaving_mean * m);
        new_mean[i] = m;
        infinite |= !(fabsf(m) <= FLT_MAX) | !(fabsf(u) <= FLT_MAX);
    }
    return infinite;
}

/* One parameter of a block. In the momentum its numbers begin at `start`, and its rows are `stride` apart. */
typedef struct {
    const float *mean, *gradient;
    float *new_mean;
    int64_t count, start, columns, stride;
} linear_part;

/* The numbers first .. last - 1 of a parameter. */
INLINE int linear_rows(const linear_part *part, const float *momentum, float *new_momentum, int64_t first, int64_t last,
                       const linear_numbers *given, const int kind)
{
    int infinite = 0;
    int64_t row = first / part->columns, column = first % part->columns;
    while (first < last) {
        int64_t place = part->start + row * part->stride + column, count = part->columns - column;
        count = count < last - first ? count : last - first;
        infinite |= linear(part->mean + first, part->gradient + first, kind ? momentum + place : 0,
                           part->new_mean + first, kind ? new_momentum + place : 0, count, given, kind);
        first += count;
        row += 1;
        column = 0;
    }
    return infinite;
}

/* The numbers first .. last - 1 of a block, parameter after parameter: whether all that was written is finite. */
int vogn_linear_step(const linear_part *parts, int64_t parameters, const float *momentum, float *new_momentum,
                     int64_t first, int64_t last, const linear_numbers *given)
{
    int infinite = 0;
    for (int64_t k = 0; k < parameters; k++) {
        int64_t from = first > 0 ? first : 0, to = last < parts[k].count ? last : parts[k].count;
#define ROWS(kind) linear_rows(parts + k, momentum, new_momentum, from, to, given, kind)
        infinite |= momentum == 0 ? ROWS(NO_AVERAGE) : given->rate < 0.5f ? ROWS(SMALL_RATE) : ROWS(LARGE_RATE);
        first -= parts[k].count;
        last -= parts[k].count;
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

/* product = displacement (curvature + shift) scale response. */
void vogn_price(const float *restrict displacement, const float *restrict curvature, const float *restrict response,
                float *restrict product, int64_t count, float shift, float scale)
{
    INDEPENDENT
    for (int64_t i = 0; i < count; i++)
        product[i] = displacement[i] * (curvature[i] + shift) * scale * response[i];
}
