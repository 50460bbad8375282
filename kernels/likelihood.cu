// likelihood: how well the images of all pixels agree with the interference of three beams.
//
// For every frequency q of count, with the pixels at p = (y, x)
//
//     g = a(p - c) exp(2 pi i minus(p)) - a(p + c) exp(2 pi i plus(p))
//     N = sum of conj(g) G over all pixels        D = sum of |g|^2 over all pixels
//
// a(p) = min(max((1 - |p|) / edge + 1/2, 0), 1); minus and plus are polynomials of DEGREE in y and x,
// the center c a pair of numbers. If they are wanted, so are the derivatives of |N|^2 / D by all of
// these numbers. See libertem_parallax/likelihood/engine.py.
//
// A warp has a frequency to itself: its lanes read G side by side, g never leaves the registers, and
// nothing is kept for a pixel. Derivatives need N and D first, so g is worked out twice, which takes
// less than to keep it would. Every number is written by one lane, once: the same bits every time.
//
// Launch contract
//
//     block   (32, WARPS), 32 being the size of a warp
//     grid    (ceil(count / WARPS)), not zero
//     shared  none

__device__ __forceinline__ float sum_of_warp(float value)
{
    for (int other = 16; other > 0; other /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, other);
    return value;
}

// One of the two beams at a pixel: its disk, how steep that is there, and its wave.
struct Beam
{
    float a, slope_y, slope_x, cos, sin;
};

template <int TERMS>
__device__ __forceinline__ Beam beam(const float *phase, const float (&terms)[TERMS], float y, float x, float steep)
{
    Beam b;
    // Of the radius: one instruction, where a root and its quotients would take dozens.
    const float square = y * y + x * x, inverse = rsqrtf(max(square, 1e-24f));
    const float inside = (1.0f - square * inverse) * steep + 0.5f;
    b.a = min(max(inside, 0.0f), 1.0f);
    const float slope = inside > 0.0f && inside < 1.0f ? -steep * inverse : 0.0f;
    b.slope_y = slope * y;
    b.slope_x = slope * x;
    float turns = 0.0f;
    for (int j = 0; j < TERMS; j++)
        turns += phase[j] * terms[j];
    sincospif(2.0f * turns, &b.sin, &b.cos);
    return b;
}

// 1, y, x, y^2, y x, x^2, ...
template <int DEGREE, int TERMS> __device__ __forceinline__ void monomials(float y, float x, float (&terms)[TERMS])
{
    terms[0] = 1.0f;
    int last = 0; // first term of the degree before
    for (int n = 1; n <= DEGREE; n++)
    {
        for (int j = 0; j < n; j++)
            terms[last + n + j] = y * terms[last + j];
        terms[last + 2 * n] = x * terms[last + n - 1];
        last += n;
    }
}

template <int DEGREE, bool DERIVATIVES, int LANES, int WARPS>
__global__ void __launch_bounds__(LANES *WARPS, 1)
    likelihood(const float2 *__restrict__ images,   // (count, pixels) G
               const float *__restrict__ positions, // (2, pixels) y, then x
               const float *__restrict__ beams,     // (count, 2 T + 2) minus, plus and c; T terms each
               float *__restrict__ sums,            // (count, 3) written: N, its real part first, and D
               float *__restrict__ derivatives,     // (count, 2 T + 2) written, if wanted; 0 where D is
               float edge, int count, int pixels)
{
    constexpr int TERMS = (DEGREE + 1) * (DEGREE + 2) / 2;
    constexpr int NUMBERS = 2 * TERMS + 2;

    const int lane = threadIdx.x;
    const int number = blockIdx.x * WARPS + threadIdx.y;
    const int q = min(number, count - 1); // warps beyond take part, and write nothing
    const float2 *G = images + static_cast<long long>(q) * pixels;
    const float *minus = beams + static_cast<long long>(q) * NUMBERS;
    const float *plus = minus + TERMS;
    const float c_y = plus[TERMS], c_x = plus[TERMS + 1];
    const float steep = 1.0f / edge;

    float terms[TERMS];
    float n_re = 0.0f, n_im = 0.0f, d = 0.0f;
    for (int m = lane; m < pixels; m += LANES)
    {
        const float y = positions[m], x = positions[pixels + m];
        monomials<DEGREE>(y, x, terms);
        const Beam first = beam(minus, terms, y - c_y, x - c_x, steep);
        const Beam second = beam(plus, terms, y + c_y, x + c_x, steep);
        const float re = first.a * first.cos - second.a * second.cos;
        const float im = first.a * first.sin - second.a * second.sin;
        const float2 value = G[m];
        n_re += re * value.x + im * value.y;
        n_im += re * value.y - im * value.x;
        d += re * re + im * im;
    }
    n_re = sum_of_warp(n_re);
    n_im = sum_of_warp(n_im);
    d = sum_of_warp(d);
    if (lane == 0 && number < count)
    {
        float *sum = sums + static_cast<long long>(q) * 3;
        sum[0] = n_re;
        sum[1] = n_im;
        sum[2] = d;
    }

    if constexpr (DERIVATIVES)
    {
        const float factor = d > 0.0f ? 2.0f / d : 0.0f;
        const float explained = (n_re * n_re + n_im * n_im) * (0.5f * factor);
        float total[NUMBERS] = {};
        for (int m = lane; m < pixels; m += LANES)
        {
            const float y = positions[m], x = positions[pixels + m];
            monomials<DEGREE>(y, x, terms);
            const Beam first = beam(minus, terms, y - c_y, x - c_x, steep);
            const Beam second = beam(plus, terms, y + c_y, x + c_x, steep);
            const float re = first.a * first.cos - second.a * second.cos;
            const float im = first.a * first.sin - second.a * second.sin;
            const float2 value = G[m];
            // What the change of g is to be multiplied with, for the change of |N|^2 / D.
            const float h_re = n_re * value.x + n_im * value.y - explained * re;
            const float h_im = n_re * value.y - n_im * value.x - explained * im;
            const float by_minus = first.a * (first.cos * h_im - first.sin * h_re);
            const float by_plus = second.a * (second.cos * h_im - second.sin * h_re);
            for (int j = 0; j < TERMS; j++)
            {
                total[j] += by_minus * terms[j];
                total[TERMS + j] -= by_plus * terms[j];
            }
            const float along_first = first.cos * h_re + first.sin * h_im;
            const float along_second = second.cos * h_re + second.sin * h_im;
            total[2 * TERMS] -= along_first * first.slope_y + along_second * second.slope_y;
            total[2 * TERMS + 1] -= along_first * first.slope_x + along_second * second.slope_x;
        }
        for (int j = 0; j < NUMBERS; j++)
        {
            const float all = sum_of_warp(total[j]);
            if (lane == 0 && number < count)
                derivatives[static_cast<long long>(q) * NUMBERS + j] =
                    (j < 2 * TERMS ? 6.28318531f : 1.0f) * factor * all;
        }
    }
}
