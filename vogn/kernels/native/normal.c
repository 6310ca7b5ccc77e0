/* Counter-based normal numbers: Philox 4x32-10 (Salmon et al. 2011) and Box-Muller (1958).

   A tile is 4 x LANES numbers from LANES consecutive counters: the first two words of every counter give the numbers
   of lines 0 and 1 of the tile, the other two those of lines 2 and 3. All arithmetic is that of single IEEE operations
   in the order that is written here (compile with -ffp-contract=off), so that every machine draws the same bits.
   Polynomials: Chebyshev fits of sin(y)/y, cos(y) in y^2 on [0, (pi/4)^2] and of (log(1+f) - f + f^2/2)/f^3 on
   [sqrt(1/2) - 1, sqrt(2) - 1], errors below 2e-9 before rounding. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 64
#define TILE (4 * LANES)

#if defined(__AVX512F__) || defined(__AVX2__)

/* Words in the lower halves of 64 bits, as many counters at a time as fit: products need no shuffles. */
#ifdef __AVX512F__
typedef __m512i wide;
#define WIDE_SET(x) _mm512_set1_epi64((long long)(x))
#define WIDE_FIRST _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0)
#define WIDE_ADD _mm512_add_epi64
#define WIDE_PRODUCT _mm512_mul_epu32
#define WIDE_HIGH(x) _mm512_srli_epi64(x, 32)
#define WIDE_XOR _mm512_xor_si512
#define WIDE_STORE(to, x) _mm256_storeu_si256((__m256i *)(to), _mm512_cvtepi64_epi32(x))
#else
typedef __m256i wide;
#define WIDE_SET(x) _mm256_set1_epi64x((long long)(x))
#define WIDE_FIRST _mm256_set_epi64x(3, 2, 1, 0)
#define WIDE_ADD _mm256_add_epi64
#define WIDE_PRODUCT _mm256_mul_epu32
#define WIDE_HIGH(x) _mm256_srli_epi64(x, 32)
#define WIDE_XOR _mm256_xor_si256
#define WIDE_LOWER _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6)
#define WIDE_STORE(to, x)                                                                                              \
    _mm_storeu_si128((__m128i *)(to), _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(x, WIDE_LOWER)))
#endif
enum { TOGETHER = sizeof(wide) / sizeof(uint64_t) };

static inline void philox_words(uint64_t counter, uint64_t seed, uint32_t words[4][LANES])
{
    wide n = WIDE_ADD(WIDE_SET(counter), WIDE_FIRST);
    for (int i = 0; i < LANES; i += TOGETHER) {
        wide a = n, b = WIDE_HIGH(n), c = WIDE_SET(0), d = c;
        uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
        for (int round = 0; round < 10; round++) {
            wide p = WIDE_PRODUCT(a, WIDE_SET(0xD2511F53u)), q = WIDE_PRODUCT(c, WIDE_SET(0xCD9E8D57u));
            a = WIDE_XOR(WIDE_XOR(WIDE_HIGH(q), b), WIDE_SET(key0));
            c = WIDE_XOR(WIDE_XOR(WIDE_HIGH(p), d), WIDE_SET(key1));
            b = q;
            d = p;
            key0 += 0x9E3779B9u;
            key1 += 0xBB67AE85u;
        }
        WIDE_STORE(words[0] + i, a);
        WIDE_STORE(words[1] + i, b);
        WIDE_STORE(words[2] + i, c);
        WIDE_STORE(words[3] + i, d);
        n = WIDE_ADD(n, WIDE_SET(TOGETHER));
    }
}

#else

static inline void philox_words(uint64_t counter, uint64_t seed, uint32_t words[4][LANES])
{
    uint32_t low[LANES], high[LANES];
    for (int i = 0; i < LANES; i++) {
        uint64_t c = counter + (uint64_t)i;
        low[i] = (uint32_t)c;
        high[i] = (uint32_t)(c >> 32);
    }
    for (int i = 0; i < LANES; i++) {
        uint32_t a = low[i], b = high[i], c = 0, d = 0;
        uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
        for (int round = 0; round < 10; round++) {
            uint64_t p = (uint64_t)a * 0xD2511F53u, q = (uint64_t)c * 0xCD9E8D57u;
            a = (uint32_t)(q >> 32) ^ b ^ key0;
            c = (uint32_t)(p >> 32) ^ d ^ key1;
            b = (uint32_t)q;
            d = (uint32_t)p;
            key0 += 0x9E3779B9u;
            key1 += 0xBB67AE85u;
        }
        words[0][i] = a;
        words[1][i] = b;
        words[2][i] = c;
        words[3][i] = d;
    }
}

#endif

typedef union {
    float value;
    uint32_t bits;
} number;

/* log(u) of u in (0, 1]. */
static inline float logarithm(float u)
{
    number x = {u};
    uint32_t shifted = x.bits + (0x3F800000u - 0x3F3504F3u);
    int exponent = (int)(shifted >> 23) - 127;
    x.bits = (shifted & 0x007FFFFFu) + 0x3F3504F3u;
    float f = x.value - 1.0f;
    float p = 0.07149753f;
    p = p * f - 0.11571201f;
    p = p * f + 0.11661511f;
    p = p * f - 0.12411051f;
    p = p * f + 0.14249936f;
    p = p * f - 0.1666848f;
    p = p * f + 0.20000707f;
    p = p * f - 0.24999989f;
    p = p * f + 0.33333331f;
    float square = f * f;
    float rest = square * (f * p - 0.5f);
    return (float)exponent * 0.69314718f + (f + rest);
}

/* Two lines of normal numbers from two words of every counter. */
static inline void box_muller(const uint32_t *restrict radii, const uint32_t *restrict angles, float *restrict first,
                              float *restrict second)
{
    for (int i = 0; i < LANES; i++) {
        float u = (float)(int32_t)(radii[i] >> 1) * 0x1p-31f + 0x1p-33f;
        float radius = sqrtf(-2.0f * logarithm(u));
        uint32_t word = angles[i], quadrant = (word + 0x20000000u) >> 30;
        float y = (float)(int32_t)(word - (quadrant << 30)) * 1.4629180792671596e-09f; /* pi / 2^31 */
        float z = y * y;
        float s = 2.71734950e-06f;
        s = s * z - 1.98392027e-04f;
        s = s * z + 8.33332878e-03f;
        s = s * z - 1.66666666e-01f;
        s = y + y * (z * s);
        float c = 2.43798804e-05f;
        c = c * z - 1.38866186e-03f;
        c = c * z + 4.16666167e-02f;
        c = c * z - 0.5f;
        c = 1.0f + z * c;
        number cosine = {((quadrant & 1u) ? s : c) * radius}, sine = {((quadrant & 1u) ? c : s) * radius};
        cosine.bits ^= ((quadrant + 1u) & 2u) << 30;
        sine.bits ^= (quadrant & 2u) << 30;
        first[i] = cosine.value;
        second[i] = sine.value;
    }
}

/* The numbers of tile `tile` of the stream `seed`. */
static inline void normal_tile(uint64_t seed, uint64_t tile, float *out)
{
    uint32_t words[4][LANES];
    philox_words(tile * LANES, seed, words);
    box_muller(words[0], words[1], out, out + LANES);
    box_muller(words[2], words[3], out + 2 * LANES, out + 3 * LANES);
}

/* The numbers first .. first + count - 1 of the stream `seed`; `first` is a multiple of TILE. */
void vogn_fill_normal(float *out, int64_t count, uint64_t seed, uint64_t first)
{
    float last[TILE];
    uint64_t tile = first / TILE;
    int64_t done = 0;
    for (; done + TILE <= count; done += TILE)
        normal_tile(seed, tile++, out + done);
    if (done < count) {
        normal_tile(seed, tile, last);
        memcpy(out + done, last, (size_t)(count - done) * sizeof(float));
    }
}

/* Copy what nobody will read soon: past the caches, where that is known how. */
static inline void put_away(float *restrict to, const float *restrict from, int64_t count)
{
    int64_t i = 0;
#ifdef __AVX512F__
    if ((uintptr_t)to % 64 == 0)
        for (; i + 16 <= count; i += 16)
            _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
#endif
    for (; i < count; i++)
        to[i] = from[i];
}

/* kept = weight; weight += offset. Without kept: weight = mean + offset. */
INLINE void move(float *restrict weight, const float *restrict mean, const float *restrict offset,
                 float *restrict kept, int64_t count)
{
    if (kept)
        put_away(kept, weight, count);
    for (int64_t i = 0; i < count; i++)
        weight[i] = (kept ? weight[i] : mean[i]) + offset[i];
}

/* The numbers first .. last - 1 of a block: displacement = noise / sqrt(curvature + shift) * scale, with the noise of
   the stream `seed`, is added to the weights, which are kept, or to the mean, and then nothing is kept. Rows of the block
   are `width` long; if there is a bias, it is their last column, and the weight has the others. `first` is a multiple of
   TILE. */
INLINE void drawn(const float *restrict curvature, float *restrict displacement, float *restrict kept,
                  const float *mean, const float *mean_bias, float *weight, float *bias, int64_t width, int64_t first,
                  int64_t last, uint64_t seed, float shift, float scale)
{
    float noise[TILE];
    int64_t row = first / width, column = first % width, inner = width - 1;
    for (int64_t start = first; start < last; start += TILE) {
        int64_t count = last - start < TILE ? last - start : TILE;
        normal_tile(seed, (uint64_t)(start / TILE), noise);
        for (int64_t i = 0; i < count; i++)
            noise[i] = noise[i] * (1.0f / sqrtf(curvature[start + i] + shift)) * scale;
        if (displacement)
            put_away(displacement + start, noise, count);
        if (!bias) {
            move(weight + start, mean ? mean + start : 0, noise, kept ? kept + start : 0, count);
            continue;
        }
        for (int64_t i = 0; i < count;) {
            float *kept_here = kept ? kept + start + i : 0;
            if (column == inner) {
                move(bias + row, mean ? mean_bias + row : 0, noise + i, kept_here, 1);
                i++;
                row++;
                column = 0;
                continue;
            }
            int64_t piece = inner - column < count - i ? inner - column : count - i, place = row * inner + column;
            move(weight + place, mean ? mean + place : 0, noise + i, kept_here, piece);
            i += piece;
            column += piece;
        }
    }
}

/* The weights of a block move to a sample; displacement and what they were are kept as block vectors. */
void vogn_draw(const float *curvature, float *displacement, float *kept, float *weight, float *bias, int64_t width,
               int64_t first, int64_t last, uint64_t seed, float shift, float scale)
{
    drawn(curvature, displacement, kept, 0, 0, weight, bias, width, first, last, seed, shift, scale);
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

/* A sample of the weights about a mean. */
void vogn_sample(const float *curvature, const float *mean, const float *mean_bias, float *weight, float *bias,
                 int64_t width, int64_t first, int64_t last, uint64_t seed, float shift, float scale)
{
    drawn(curvature, 0, 0, mean, mean_bias, weight, bias, width, first, last, seed, shift, scale);
}
