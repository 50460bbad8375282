// What a GPU can do at best, against which kernels/ is measured.

// Adds to global memory and does nothing else: every warp adds `rounds` times to 32 successive
// elements of A, a different place each time, as `scatter` does with the frames of a scan row.
//
// Launch: block (32, 8), any grid; A holds `size` elements, a power of two and at least 64.
template <typename Sum> __global__ void additions(Sum *__restrict__ A, unsigned size, int rounds)
{
    unsigned place = (blockIdx.x * 8u + threadIdx.y) * 2654435761u;
    for (int i = 0; i < rounds; i++)
    {
        place = place * 1664525u + 1013904223u;
        atomicAdd(A + ((place >> 7) % (size - 32u) + threadIdx.x), static_cast<Sum>(1));
    }
}
