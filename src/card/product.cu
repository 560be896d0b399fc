// end(Σ_k left[m, k] · right[n, k]) for each m and n by mma.sync, for compute capability 8.0 and later.
//
// The file before this one has the end: `Info`, of which `rows`, `columns` and `depth` are read here; `end_tile`, which takes the sums
// of a warp; and END_PARAMETERS and END_ARGUMENTS, its buffers. With COLUMNS_OUTER 1, blocks that run together share columns, else rows.
//
// Both matrices are bf16 with `depth` values a row. A block of WARPS_M × WARPS_N warps computes TILE_M × TILE_N results, each warp
// WARP_M × WARP_N. Tiles of 32 values of depth arrive by cp.async, STAGES - 1 of them ahead. In shared memory a row is 64 bytes; its four
// chunks of 16 bytes are exchanged by bits 1 and 2 of the row, so that eight rows of a chunk lie in eight groups of banks.

constexpr int DEPTH = 32;
constexpr int WARPS_M = TILE_M / WARP_M, WARPS_N = TILE_N / WARP_N;
constexpr int THREADS = 32 * WARPS_M * WARPS_N;
constexpr int BLOCKS_M = WARP_M / 16, BLOCKS_N = WARP_N / 8; // of 16 × 8 results in a warp's part
constexpr int STAGE_BYTES = (TILE_M + TILE_N) * DEPTH * 2;
constexpr int STRIP = 32; // columns of sums that pass through shared memory at once
constexpr int PITCH = STRIP + 8; // of a row of them: rows start 8 banks apart

extern __shared__ __align__(1024) u8 memory[];

__device__ __forceinline__ u32 place(u32 row, u32 chunk) {
    return row * 64 + (chunk ^ (row >> 1 & 3)) * 16;
}

// One thread's part of the copies of a matrix: chunk `threadIdx.x % 4` of ROWS / STEP rows, STEP rows apart, of each tile.
template <int ROWS> struct Copier {
    static constexpr u32 STEP = THREADS / 4;
    const bf16* from; // the first row's chunk in the next tile
    u32 skip;         // bytes between two rows of this thread
    u32 to;           // place of the first row's chunk in a stage
    u32 present;      // a bit for each row that exists

    __device__ __forceinline__ Copier(const bf16* matrix, u32 first, u32 rows, u32 depth, u32 tile) {
        const u32 row = threadIdx.x / 4, chunk = threadIdx.x % 4;
        // A pointer to an absent row is never followed.
        from = matrix + (u64)(first + row) * depth + chunk * 8;
        skip = STEP * depth * 2;
        to = tile + place(row, chunk);
        present = 0;
#pragma unroll
        for (u32 i = 0; i < ROWS / STEP; i++) present |= (first + row + i * STEP < rows ? 1u : 0u) << i;
    }

    // Starts the copies of a tile, and goes on to the next one. `left`: values of depth from this tile's start.
    __device__ __forceinline__ void copy(u32 stage, u32 left) {
        const u32 bits = threadIdx.x % 4 * 8 < left ? present : 0;
        const u8* at = reinterpret_cast<const u8*>(from);
#pragma unroll
        for (u32 i = 0; i < ROWS / STEP; i++) {
            // STEP is a multiple of 8, so that the exchange of chunks is the same.
            copy_async(stage + to + i * STEP * 64, at, bits >> i & 1);
            at += skip;
        }
        from += DEPTH;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
product(const bf16* left, const bf16* right, END_PARAMETERS, const __grid_constant__ Info info) {
    const u32 base = shared_address(memory), lane = threadIdx.x % 32, warp = warp_index();
#if COLUMNS_OUTER
    const u32 tiles_m = (info.rows + TILE_M - 1) / TILE_M;
    const u32 row = blockIdx.x % tiles_m * TILE_M, column = blockIdx.x / tiles_m * TILE_N;
#else
    const u32 tiles_n = (info.columns + TILE_N - 1) / TILE_N;
    const u32 row = blockIdx.x / tiles_n * TILE_M, column = blockIdx.x % tiles_n * TILE_N;
#endif
    const u32 warp_row = warp / WARPS_N * WARP_M, warp_column = warp % WARPS_N * WARP_N;
    const u32 steps = (info.depth + DEPTH - 1) / DEPTH;

    Copier<TILE_M> copy_left(left, row, info.rows, info.depth, base);
    Copier<TILE_N> copy_right(right, column, info.columns, info.depth, base + TILE_M * DEPTH * 2);
    // Values of depth that no copy has been started for.
    int missing = info.depth;
    const auto copy = [&](u32 stage) {
        if (missing > 0) {
            copy_left.copy(stage, missing);
            copy_right.copy(stage, missing);
        }
        missing -= DEPTH;
        commit_copies();
    };
    const auto next = [](u32 stage) { return stage == (STAGES - 1) * STAGE_BYTES ? 0u : stage + STAGE_BYTES; };

    float sums[BLOCKS_M][BLOCKS_N][4];
#pragma unroll
    for (int i = 0; i < BLOCKS_M; i++)
#pragma unroll
        for (int j = 0; j < BLOCKS_N; j++)
#pragma unroll
            for (int part = 0; part < 4; part++) sums[i][j][part] = 0.0f;

#pragma unroll
    for (u32 stage = 0; stage < STAGES - 1; stage++) copy(stage * STAGE_BYTES);
    u32 stage = 0, free = (STAGES - 1) * STAGE_BYTES;
    for (u32 step = 0; step < steps; step++) {
        // The stage is complete for all threads, and all have read the one that is filled next.
        wait_copies<STAGES - 2>();
        __syncthreads();
        copy(free);
        free = stage;
        const u32 tile_left = base + stage, tile_right = tile_left + TILE_M * DEPTH * 2;
        stage = next(stage);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 a[BLOCKS_M][4], b[BLOCKS_N / 2][4];
#pragma unroll
            for (int i = 0; i < BLOCKS_M; i++)
                load_matrices(a[i], tile_left + place(warp_row + 16 * i + lane % 16, 2 * half + lane / 16));
#pragma unroll
            for (int j = 0; j < BLOCKS_N / 2; j++)
                load_matrices(b[j], tile_right + place(warp_column + 16 * j + lane % 8 + lane / 16 * 8, 2 * half + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < BLOCKS_M; i++)
#pragma unroll
                for (int j = 0; j < BLOCKS_N; j++) multiply(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }

    // The sums pass through shared memory, so that the stores are whole sectors. All warps have read the last tiles by then.
    wait_copies<0>();
    __syncthreads();
    float* own = reinterpret_cast<float*>(memory) + warp * 16 * PITCH;
#pragma unroll
    for (int i = 0; i < BLOCKS_M; i++)
#pragma unroll
        for (int strip = 0; strip < BLOCKS_N; strip += STRIP / 8) {
#pragma unroll
            for (int j = 0; j < STRIP / 8; j++) {
                const float(&four)[4] = sums[i][strip + j];
                float* at = own + lane / 4 * PITCH + 8 * j + lane % 4 * 2;
                *reinterpret_cast<float2*>(at) = make_float2(four[0], four[1]);
                *reinterpret_cast<float2*>(at + 8 * PITCH) = make_float2(four[2], four[3]);
            }
            __syncwarp();
            end_tile<STRIP, PITCH>(own, row + warp_row + 16 * i, column + warp_column + 8 * strip, END_ARGUMENTS, info);
            __syncwarp();
        }
}
