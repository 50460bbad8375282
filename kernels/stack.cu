// stack: adds a scan that stays on the device, again and again, under any plan.
//
// It is kept as one image per detector pixel, (pixels, positions): successive scan positions of a
// pixel lie side by side, and so do their targets. What is read and what is written by a warp is
// contiguous then, and `gather` needs neither a turn in shared memory nor atomics: every element of
// a sub-grid of A is the sum of one element of each image that is added there,
//
//     A[g, p] = sum of images[pixels[m], p - steps[m]] over m from bounds[g] to before bounds[g + 1]
//
// p and steps[m] being row and column of the scan, and the difference taken modulo the scan. So it
// is computed by one block, written once, and the same bits every time, for floating point numbers,
// too: the order of its summands is fixed.
//
// `turn` brings frames as they come, (positions, pixels), into that order, once.
//
// Launch contract of gather
//
//     block   (LANES, WARPS), LANES being the size of a warp
//     grid    (grids * tiles), tiles = ceil(rows * columns / (LANES * POSITIONS)), not zero
//     shared  static
//     Value   any integer or floating point type; Sum: int, long long or double, see accumulator_dtype
//
// Steps must lie from 0 to before the scan's size, pixels within images, bounds ascend from 0.
//
// Launch contract of turn
//
//     block   (LANES, WARPS), LANES being the size of a warp and a multiple of WARPS
//     grid    (ceil(n / LANES) * tiles), tiles = ceil(count / LANES), not zero
//     shared  static
//     Value   any type of 1, 2, 4 or 8 bytes

template <typename Value, typename Sum, int LANES, int WARPS, int POSITIONS>
__global__ void __launch_bounds__(LANES *WARPS)
    gather(const Value *__restrict__ images, // (pixels, rows * columns)
           const int *__restrict__ bounds,   // (grids + 1,) where the images of a sub-grid begin
           const int *__restrict__ pixels,   // (count,) which image
           const int *__restrict__ steps,    // (count, 2) rows and columns by which it is moved
           Sum *__restrict__ A,              // (grids, rows * columns) written
           int rows, int columns, int tiles)
{
    __shared__ Sum sums[WARPS][LANES * POSITIONS];

    const int lane = threadIdx.x;
    const int warp = threadIdx.y;
    const int grid = blockIdx.x / tiles;
    const int first = blockIdx.x % tiles * (LANES * POSITIONS);
    const int size = rows * columns;

    int row[POSITIONS], column[POSITIONS];
    Sum sum[POSITIONS];
    for (int i = 0; i < POSITIONS; i++)
    {
        const int position = min(first + i * LANES + lane, size - 1); // those beyond are not written
        row[i] = position / columns;
        column[i] = position % columns;
        sum[i] = 0;
    }
    for (int m = bounds[grid] + warp; m < bounds[grid + 1]; m += WARPS)
    {
        const Value *image = images + static_cast<long long>(pixels[m]) * size;
        const int down = steps[2 * m], right = steps[2 * m + 1];
        for (int i = 0; i < POSITIONS; i++)
        {
            const int y = row[i] - down, x = column[i] - right;
            sum[i] += static_cast<Sum>(image[(y < 0 ? y + rows : y) * columns + (x < 0 ? x + columns : x)]);
        }
    }
    for (int i = 0; i < POSITIONS; i++)
        sums[warp][i * LANES + lane] = sum[i];
    __syncthreads();

    for (int i = warp * LANES + lane; i < LANES * POSITIONS && first + i < size; i += LANES * WARPS)
    {
        Sum total = 0;
        for (int w = 0; w < WARPS; w++)
            total += sums[w][i];
        A[static_cast<long long>(grid) * size + first + i] = total;
    }
}

template <typename Value, int LANES, int WARPS>
__global__ void __launch_bounds__(LANES *WARPS)
    turn(const Value *__restrict__ frames, // (n, count)
         Value *__restrict__ images,       // (count, size) written from column `first` on
         int n, int count, int size, int first, int tiles)
{
    // One column more, so that the threads of a warp write to different banks, too.
    __shared__ Value values[LANES][LANES + 1];

    const int lane = threadIdx.x;
    const int warp = threadIdx.y;
    const int first_frame = blockIdx.x / tiles * LANES;
    const int first_pixel = blockIdx.x % tiles * LANES;

    for (int t = warp; t < LANES; t += WARPS)
        if (first_frame + t < n && first_pixel + lane < count)
            values[t][lane] = frames[static_cast<long long>(first_frame + t) * count + first_pixel + lane];
    __syncthreads();

    for (int p = warp; p < LANES; p += WARPS)
        if (first_frame + lane < n && first_pixel + p < count)
            images[static_cast<long long>(first_pixel + p) * size + first + first_frame + lane] = values[lane][p];
}
