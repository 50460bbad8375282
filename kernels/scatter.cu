// scatter: adds frames to the accumulator with global atomics.
//
// For every frame t of n and every bright-field pixel m of count
//
//     A[targets[m] + positions[t]] += frames[t * size + pixels[m]]
//     S[t]                         += the same value
//
// Successive frames of a scan row go to successive elements of A, but lie `size` elements apart in
// memory. So a block reads PIXELS pixels of FRAMES frames along the pixels, turns them in shared
// memory, and adds them along the frames: both the reads and the atomics of a warp are contiguous.
// Nothing is returned from the atomics, so they compile to reductions (RED), which do not wait.
//
// Launch contract
//
//     block   (FRAMES, WARPS), FRAMES being the size of a warp
//     grid    (ceil(count / PIXELS), ceil(n / FRAMES)), neither zero
//     shared  static
//     Value   any integer or floating point type; Sum: int, long long or double, see accumulator_dtype
//
// Every target plus every position must lie within A; no two frames have the same position. Integer
// sums are exact, so the order of the blocks does not show; double precision sums are rounded in
// whatever order they come.

template <typename Sum> __device__ __forceinline__ void add(Sum *sum, Sum value)
{
    atomicAdd(sum, value);
}

// CUDA has no atomicAdd for signed 64-bit integers; in two's complement the unsigned one is the same.
template <> __device__ __forceinline__ void add(long long *sum, long long value)
{
    atomicAdd(reinterpret_cast<unsigned long long *>(sum), static_cast<unsigned long long>(value));
}

template <typename Value, typename Sum, int FRAMES, int WARPS, int PIXELS>
__global__ void __launch_bounds__(FRAMES *WARPS)
    scatter(const Value *__restrict__ frames,        // (n, size) the frames' bright-field box
            const long long *__restrict__ positions, // (n,) where in a sub-grid of A a frame begins
            const int *__restrict__ pixels,          // (count,) where in the box a pixel is
            const long long *__restrict__ targets,   // (count,) where in A it goes, from positions on
            Sum *__restrict__ A,                     // flat; added to
            Sum *__restrict__ S,                     // (n,) added to
            int n, int size, int count)
{
    // One column more, so that the threads of a warp write to different banks, too.
    __shared__ Sum values[PIXELS][FRAMES + 1];
    __shared__ Sum sums[WARPS][FRAMES];

    const int lane = threadIdx.x;
    const int warp = threadIdx.y;
    const int first_pixel = blockIdx.x * PIXELS;
    const int first_frame = blockIdx.y * FRAMES;
    const int frames_here = min(FRAMES, n - first_frame);
    const int pixels_here = min(PIXELS, count - first_pixel);

    for (int p = lane; p < pixels_here; p += FRAMES)
    {
        const Value *pixel = frames + pixels[first_pixel + p];
        for (int t = warp; t < frames_here; t += WARPS)
            values[p][t] = static_cast<Sum>(pixel[static_cast<long long>(first_frame + t) * size]);
    }
    __syncthreads();

    Sum sum = 0;
    if (lane < frames_here)
    {
        Sum *begin = A + positions[first_frame + lane];
        for (int p = warp; p < pixels_here; p += WARPS)
        {
            const Sum value = values[p][lane];
            sum += value;
            // At low dose most pixels are empty, and what is not sent costs nothing.
            if (value != 0)
                add(begin + targets[first_pixel + p], value);
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();

    if (warp == 0 && lane < frames_here)
    {
        for (int w = 1; w < WARPS; w++)
            sum += sums[w][lane];
        if (sum != 0)
            add(S + first_frame + lane, sum);
    }
}
