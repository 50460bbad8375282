// Enough of CUDA to run the kernels of this project on a CPU, compiled by g++.
//
// The threads of a block are fibers that take turns: each runs until it ends or reaches a barrier.
// They are started in forward, reverse or shuffled order, so a missing barrier shows as a wrong sum.
// Blocks run one after the other. Atomics are plain additions: that they are atomic on a device is
// for the PTX to show.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <numeric>
#include <random>
#include <setjmp.h>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
// One block at a time runs in a thread of the host, and several of these may launch kernels.
#define __shared__ static thread_local

using std::max;
using std::min;

namespace standin
{
struct Index
{
    unsigned x, y, z;
};

// Where to go on. Once it has run, a jump will do, which unlike `swapcontext` asks nothing of the system;
// AddressSanitizer, though, has to be told of every change of the stack.
struct Place
{
    ucontext_t context;
    jmp_buf jump;
    bool ran = false;
};

inline void go_on(Place &from, Place &to)
{
#ifdef __SANITIZE_ADDRESS__
    swapcontext(&from.context, &to.context);
#else
    from.ran = true;
    if (_setjmp(from.jump) != 0)
        return;
    if (to.ran)
        _longjmp(to.jump, 1);
    setcontext(&to.context);
#endif
}

struct Fiber
{
    Place place;
    std::vector<char> stack = std::vector<char>(1 << 16);
    Index index;
    bool done;
    unsigned shuffles = 0;
    float shuffled[2];
};

struct Block
{
    Place scheduler;
    std::deque<Fiber> fibers; // which stay where they are, to be used by all blocks
    Fiber *current;
    void (*kernel)(void *);
    void *arguments;
};

inline thread_local Block block;
inline thread_local Index block_index, block_shape, grid_shape;

inline void barrier()
{
    go_on(block.current->place, block.scheduler);
}

inline void run_fiber()
{
    for (;;)
    {
        block.kernel(block.arguments);
        block.current->done = true;
        barrier(); // until the next block begins
    }
}

// Order in which the threads of a block take their turns.
enum Order
{
    FORWARD,
    REVERSE,
    SHUFFLED
};

inline void run_block(Order order, std::mt19937 &random)
{
    const unsigned count = block_shape.x * block_shape.y * block_shape.z;
    while (block.fibers.size() < count)
    {
        Fiber &fiber = block.fibers.emplace_back();
        ucontext_t &context = fiber.place.context;
        getcontext(&context);
        context.uc_stack.ss_sp = fiber.stack.data();
        context.uc_stack.ss_size = fiber.stack.size();
        context.uc_link = nullptr;
        makecontext(&context, run_fiber, 0);
    }
    for (unsigned i = 0; i < count; i++)
    {
        Fiber &fiber = block.fibers[i];
        fiber.index = {i % block_shape.x, i / block_shape.x % block_shape.y, i / block_shape.x / block_shape.y};
        fiber.done = false;
    }
    std::vector<unsigned> turns(count);
    std::iota(turns.begin(), turns.end(), 0u);
    if (order == REVERSE)
        std::reverse(turns.begin(), turns.end());
    unsigned ended = 0;
    while (ended < count)
    {
        if (order == SHUFFLED)
            std::shuffle(turns.begin(), turns.end(), random);
        unsigned ended_now = 0;
        for (unsigned i : turns)
        {
            block.current = &block.fibers[i];
            go_on(block.scheduler, block.current->place);
            ended_now += block.current->done;
        }
        if (ended_now != 0 && ended_now != count)
        {
            std::fprintf(stderr, "some threads of a block ended while others wait at a barrier\n");
            std::abort();
        }
        ended += ended_now;
    }
}

// Arguments as cuLaunchKernel takes them: one pointer to each.
template <typename... Types> struct Call
{
    void (*kernel)(Types...);
    void **values;

    template <std::size_t... I> void call(std::index_sequence<I...>)
    {
        kernel(*static_cast<Types *>(values[I])...);
    }
    static void run(void *self)
    {
        static_cast<Call *>(self)->call(std::index_sequence_for<Types...>{});
    }
};

template <typename... Types>
void launch(void (*kernel)(Types...), const unsigned *grid, const unsigned *threads, void **values, int order,
           unsigned seed)
{
    Call<Types...> call{kernel, values};
    block.kernel = Call<Types...>::run;
    block.arguments = &call;
    grid_shape = {grid[0], grid[1], grid[2]};
    block_shape = {threads[0], threads[1], threads[2]};
    std::mt19937 random(seed);
    for (unsigned z = 0; z < grid_shape.z; z++)
        for (unsigned y = 0; y < grid_shape.y; y++)
            for (unsigned x = 0; x < grid_shape.x; x++)
            {
                block_index = {x, y, z};
                run_block(static_cast<Order>(order), random);
            }
}

// Sizes of a kernel's parameters; returns how many there are.
template <typename... Types> int arguments(void (*)(Types...), unsigned long *sizes)
{
    for (unsigned long size : {sizeof(Types)...})
        *sizes++ = size;
    return sizeof...(Types);
}
} // namespace standin

#define threadIdx (standin::block.current->index)
#define blockIdx (standin::block_index)
#define blockDim (standin::block_shape)
#define gridDim (standin::grid_shape)

inline void __syncthreads()
{
    standin::barrier();
}

struct float2
{
    float x, y;
};

inline float rsqrtf(float x)
{
    return 1.0f / std::sqrt(x);
}

inline void sincospif(float x, float *sin, float *cos)
{
    const double angle = M_PI * std::fmod(double(x), 2.0);
    *sin = float(std::sin(angle));
    *cos = float(std::cos(angle));
}

// All threads of a block have to take part, where CUDA asks for those of a warp only. Every other
// call has its own place for values, so that none is replaced before all have read it.
inline float __shfl_xor_sync(unsigned, float value, int other)
{
    const unsigned i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    standin::Fiber &fiber = *standin::block.current;
    const unsigned turn = fiber.shuffles++ % 2;
    fiber.shuffled[turn] = value;
    standin::barrier();
    return standin::block.fibers[i ^ unsigned(other)].shuffled[turn];
}

inline int atomicMin(int *lowest, int value)
{
    const int before = *lowest;
    *lowest = min(before, value);
    return before;
}

template <typename T> T atomicAdd(T *sum, T value)
{
    // What CUDA offers, and no more.
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long> ||
                      std::is_same_v<T, float> || std::is_same_v<T, double>,
                  "atomicAdd has no such overload");
    const T before = *sum;
    *sum = before + value;
    return before;
}
