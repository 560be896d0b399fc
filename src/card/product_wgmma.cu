// end(Σ_k left[m, k] · right[n, k]) for each m and n by wgmma, for compute capability 9.0.
//
// As `product.cu`, after two tensor maps of the same matrices with tiles of 128 rows × 64 values and a swizzle of 128 bytes. A block
// computes 128 × TILE_N results; TILE_N is 128 · PARTS. Of its nine warps the last one starts the copy engine; the others are two
// warpgroups with 64 × TILE_N results each. `full[stage]` completes when a stage's tiles, one of the left matrix and PARTS of the right
// one, have arrived, `empty[stage]` when the eight warps have multiplied them. With 128 columns two blocks share a multiprocessor: one may
// store its results while the other multiplies. With 256 a result takes three quarters of the bytes from the L2 cache.

constexpr int TILE_M = 128, DEPTH = 64;
constexpr int STRIP = 128; // columns of a tile of the right matrix
constexpr int PARTS = TILE_N / STRIP;
constexpr int TILE_BYTES = 128 * DEPTH * 2;
constexpr int STAGE_BYTES = (1 + PARTS) * TILE_BYTES;
constexpr int PITCH = STRIP + 8; // of a row of sums: rows start 8 banks apart
constexpr int WORKERS = 8;       // warps that multiply

struct __align__(64) TensorMap {
    u64 words[16];
};

extern __shared__ __align__(1024) u8 memory[];

// Matrix in shared memory whose rows are 128 bytes, swizzled, in groups of eight that lie 1,024 bytes apart. Its fields, from bit 0 in
// units of 16 bytes: start address; from bit 16 the leading offset, which this swizzle does not use; from bit 32 the stride offset, between
// groups of rows; from bit 62 the layout, 1 for a swizzle of 128 bytes. The base offset is 0, because tiles start at multiples of 1,024.
__device__ __forceinline__ u64 descriptor(u32 at) {
    return (u64)(at >> 4 & 0x3FFF) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (done == 0);
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void copy_tile(u32 to, const TensorMap* map, u32 column, u32 row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map),
                 "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

// sums[64 × 128] += left[64 × 16] · right[128 × 16]ᵀ. After the descriptors: the predicate that adds to the sums, factors of both matrices,
// and their transpositions.
__device__ __forceinline__ void multiply_group(float (&s)[64], u64 left, u64 right) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "
        "%28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, "
        "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, 0, 0; }"
        : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]), "+f"(s[7]), "+f"(s[8]), "+f"(s[9]),
          "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]), "+f"(s[14]), "+f"(s[15]), "+f"(s[16]), "+f"(s[17]), "+f"(s[18]),
          "+f"(s[19]), "+f"(s[20]), "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]),
          "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31]), "+f"(s[32]), "+f"(s[33]), "+f"(s[34]), "+f"(s[35]), "+f"(s[36]),
          "+f"(s[37]), "+f"(s[38]), "+f"(s[39]), "+f"(s[40]), "+f"(s[41]), "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]),
          "+f"(s[46]), "+f"(s[47]), "+f"(s[48]), "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]),
          "+f"(s[55]), "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]), "+f"(s[62]), "+f"(s[63])
        : "l"(left), "l"(right));
}

template <int LEFT> __device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// `left` and `right` are read through their maps alone; the launch passes them in front of the other buffers.
extern "C" __global__ void __launch_bounds__(32 * (WORKERS + 1), BLOCKS_PER_SM)
product(const __grid_constant__ TensorMap left_map, const __grid_constant__ TensorMap right_map, const bf16* left, const bf16* right,
        END_PARAMETERS, const __grid_constant__ Info info) {
    const u32 base = shared_address(memory), lane = threadIdx.x % 32, warp = warp_index();
    const u32 full = base + STAGES * STAGE_BYTES, empty = full + 8 * STAGES;
#if COLUMNS_OUTER
    const u32 tiles_m = (info.rows + TILE_M - 1) / TILE_M;
    const u32 row = blockIdx.x % tiles_m * TILE_M, column = blockIdx.x / tiles_m * TILE_N;
#else
    const u32 tiles_n = (info.columns + TILE_N - 1) / TILE_N;
    const u32 row = blockIdx.x / tiles_n * TILE_M, column = blockIdx.x % tiles_n * TILE_N;
#endif
    const u32 steps = (info.depth + DEPTH - 1) / DEPTH;

    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; stage++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(full + 8 * stage), "r"(1) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(empty + 8 * stage), "r"(WORKERS) : "memory");
        }
        // The copy engine sees the barriers.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();

    if (warp == WORKERS) {
        if (lane != 0) return;
        for (u32 step = 0, stage = 0, round = 0; step < steps; step++) {
            const u32 to = base + stage * STAGE_BYTES, barrier = full + 8 * stage;
            if (round > 0) wait(empty + 8 * stage, (round - 1) & 1);
            // Parts of a tile outside of a matrix arrive as zeros, and count.
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(STAGE_BYTES) : "memory");
            copy_tile(to, &left_map, step * DEPTH, row, barrier);
#pragma unroll
            for (u32 part = 0; part < PARTS; part++)
                copy_tile(to + (1 + part) * TILE_BYTES, &right_map, step * DEPTH, column + part * STRIP, barrier);
            if (++stage == STAGES) {
                stage = 0;
                round++;
            }
        }
        return;
    }

    float sums[PARTS][64];
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int at = 0; at < 64; at++) sums[part][at] = 0.0f;
    const u32 half = warp / 4 * (TILE_BYTES / 2); // this warpgroup's 64 rows
    const u64 first_left = descriptor(base + half), first_right = descriptor(base + TILE_BYTES);
    for (u32 step = 0, parity = 0; step < steps; parity ^= 1) {
#pragma unroll
        for (u32 stage = 0; stage < STAGES; stage++) {
            wait(full + 8 * stage, parity);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (u32 depth = 0; depth < DEPTH / 16; depth++) {
                // A descriptor counts 16 bytes.
                const u32 skip = stage * (STAGE_BYTES / 16) + 2 * depth;
#pragma unroll
                for (u32 part = 0; part < PARTS; part++)
                    multiply_group(sums[part], first_left + skip, first_right + skip + part * (TILE_BYTES / 16));
            }
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            // This step's products run on while the stage of the step before is given back.
            wait_products<1>();
            if (step > 0 && lane == 0) arrive(empty + 8 * ((stage + STAGES - 1) % STAGES));
            if (++step == steps) break;
        }
    }
    wait_products<0>();
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int at = 0; at < 64; at++) asm volatile("" : "+f"(sums[part][at])::"memory");

    // The sums pass through shared memory, so that the stores are whole sectors. All tiles have arrived, and all warps that multiply
    // have read them.
    asm volatile("bar.sync 1, %0;" ::"n"(32 * WORKERS) : "memory");
    float* own = reinterpret_cast<float*>(memory) + warp * 16 * PITCH;
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
        if (part > 0) __syncwarp();
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const float* four = sums[part] + 4 * j;
            float* at = own + lane / 4 * PITCH + 8 * j + lane % 4 * 2;
            *reinterpret_cast<float2*>(at) = make_float2(four[0], four[1]);
            *reinterpret_cast<float2*>(at + 8 * PITCH) = make_float2(four[2], four[3]);
        }
        __syncwarp();
        end_tile<STRIP, PITCH>(own, row + 16 * warp, column + part * STRIP, END_ARGUMENTS, info);
    }
}
