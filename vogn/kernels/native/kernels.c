#include <string.h>

#include "normal.h"

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
