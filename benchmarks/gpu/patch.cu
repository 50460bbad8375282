// Another way to add a scan that stays on a device, to compare with `gather` of kernels/stack.cu.
//
// A block takes a patch of ROWS x LANES scan positions and the images of one sub-grid. It adds them in
// shared memory, at most HALO rows and columns beyond the patch, and then what it has to A, where
// patches overlap. So there are atomics for every value, if near ones, and more for every patch.
//
// Launch: block (LANES, WARPS), grid (patches along columns, patches along rows, grids); A is zero.
template <typename Value, int LANES, int WARPS, int ROWS, int HALO>
__global__ void __launch_bounds__(LANES *WARPS)
    patch(const Value *__restrict__ images, // (pixels, rows * columns)
          const int *__restrict__ bounds,   // (grids + 1,) where the images of a sub-grid begin
          const int *__restrict__ pixels,   // (count,) which image
          const int *__restrict__ steps,    // (count, 2) from -HALO to HALO
          int *__restrict__ A,              // (grids, rows * columns) added to
          int rows, int columns)
{
    constexpr int HEIGHT = ROWS + 2 * HALO, WIDTH = LANES + 2 * HALO;
    __shared__ int sums[HEIGHT * WIDTH];

    const int lane = threadIdx.x;
    const int thread = threadIdx.y * LANES + lane;
    const int first_row = blockIdx.y * ROWS, first_column = blockIdx.x * LANES;
    const int grid = blockIdx.z;
    const long long size = static_cast<long long>(rows) * columns;

    for (int i = thread; i < HEIGHT * WIDTH; i += LANES * WARPS)
        sums[i] = 0;
    __syncthreads();

    for (int m = bounds[grid] + threadIdx.y; m < bounds[grid + 1]; m += WARPS)
    {
        const Value *image = images + pixels[m] * size;
        int *begin = sums + (steps[2 * m] + HALO) * WIDTH + steps[2 * m + 1] + HALO + lane;
        for (int r = 0; r < ROWS; r++)
            if (first_row + r < rows && first_column + lane < columns)
                atomicAdd(begin + r * WIDTH,
                          static_cast<int>(image[(first_row + r) * columns + first_column + lane]));
    }
    __syncthreads();

    for (int i = thread; i < HEIGHT * WIDTH; i += LANES * WARPS)
    {
        const int y = (first_row + i / WIDTH - HALO) % rows, x = (first_column + i % WIDTH - HALO) % columns;
        if (sums[i] != 0)
            atomicAdd(A + grid * size + (y < 0 ? y + rows : y) * columns + (x < 0 ? x + columns : x), sums[i]);
    }
}
