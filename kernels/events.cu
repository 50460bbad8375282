// events: adds frames that are lists of events to the accumulator with global atomics.
//
// For every frame t of n and every event e of it, from bounds[t] to before bounds[t + 1]: where
// lookup[columns[e]] is not negative
//
//     A[lookup[columns[e]] + positions[t]] += values[e]
//     S[t]                                 += values[e]
//
// A warp reads the events of a frame, side by side. At low dose they are few: many frames are under
// way at once, and lanes without an event cost little, as the memory is what takes the time.
//
// Launch contract
//
//     block   (LANES, WARPS), LANES being the size of a warp
//     grid    (ceil(n / WARPS)), not zero
//     shared  static
//     Value   any integer or floating point type; Sum: long long or double, see accumulator_dtype
//
// Every entry of lookup that is not negative plus every position must lie within A; bounds must
// ascend. Nothing else is taken on trust: an event off the tile is not followed, and one out of the
// range of values not added; trouble then says in which frame.

__device__ __forceinline__ void add(double *sum, double value)
{
    atomicAdd(sum, value);
}

// CUDA has no atomicAdd for signed 64-bit integers; in two's complement the unsigned one is the same.
__device__ __forceinline__ void add(long long *sum, long long value)
{
    atomicAdd(reinterpret_cast<unsigned long long *>(sum), static_cast<unsigned long long>(value));
}

template <typename Value, typename Sum, int LANES, int WARPS>
__global__ void __launch_bounds__(LANES *WARPS)
    events(const Value *__restrict__ values,        // of all events
           const int *__restrict__ columns,         // of all events: pixel of the tile
           const long long *__restrict__ bounds,    // (n + 1,) where the events of a frame begin
           const long long *__restrict__ positions, // (n,) where in a sub-grid of A a frame begins
           const long long *__restrict__ lookup,    // (size,) where in A a pixel goes, or negative
           Sum *__restrict__ A,                     // flat; added to
           Sum *__restrict__ S,                     // (n,) added to
           int *__restrict__ trouble,               // (2,) first frame with an event off the tile, or
                                                    // out of the range of values; larger if none
           int n, int size, int first,              // frames before the first one, for trouble
           Value low, Value high)                   // range of values
{
    __shared__ Sum sums[WARPS][LANES];

    const int lane = threadIdx.x;
    const int warp = threadIdx.y;
    const int t = blockIdx.x * WARPS + warp;

    Sum sum = 0;
    if (t < n)
    {
        Sum *begin = A + positions[t];
        const long long end = bounds[t + 1];
        for (long long e = bounds[t] + lane; e < end; e += LANES)
        {
            const int column = columns[e];
            if (column < 0 || column >= size)
            {
                atomicMin(trouble, first + t);
                continue;
            }
            const long long target = lookup[column];
            if (target < 0)
                continue;
            const Value value = values[e];
            // Not the other way round: nothing compares with what is not a number.
            if (!(value >= low && value <= high))
            {
                atomicMin(trouble + 1, first + t);
                continue;
            }
            add(begin + target, static_cast<Sum>(value));
            sum += static_cast<Sum>(value);
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();

    if (lane == 0 && t < n)
    {
        for (int l = 1; l < LANES; l++)
            sum += sums[warp][l];
        if (sum != 0)
            add(S + t, sum);
    }
}
