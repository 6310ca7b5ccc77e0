/* Threads of the runtime that PyTorch uses: others would wait for its own, which spin for a while after their work. */

#include <stdint.h>

/* part(k) for k in 0 .. parts - 1, each in a thread; one after the other where there is no OpenMP. */
void vogn_in_parts(void (*part)(int64_t), int64_t parts)
{
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)parts) schedule(static, 1)
#endif
    for (int64_t k = 0; k < parts; k++)
        part(k);
}
