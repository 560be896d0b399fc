// Rows of a product's end. A lane has four neighbouring columns of a tile: in each row of a tile of 128 columns, in every fourth of 32.

// The first column of this lane, in a tile of COLUMNS columns.
template <int COLUMNS> __device__ __forceinline__ u32 lane_column() {
    return threadIdx.x % (COLUMNS / 4) * 4;
}

// Calls `write(row, sums, operand)` for this lane's rows of a tile of 16 that starts at `row` of `rows`; `operand` is what `read(row)` returned.
// `sums`, f32 in shared memory of this warp alone, has `PITCH` values a row.
//
// Four rows are read before the first of them is written: each read from memory takes as long as hundreds of instructions.
template <int COLUMNS, int PITCH, typename Read, typename Write>
__device__ __forceinline__ void end_rows(const float* sums, u32 row, u32 rows, const Read& read, const Write& write) {
    constexpr u32 LANES = COLUMNS / 4; // of a row
    constexpr u32 STEP = 32 / LANES;   // rows at once
    constexpr u32 AHEAD = 4;
    const u32 first = threadIdx.x % 32 / LANES;
    if (row + first >= rows) return;
    sums += lane_column<COLUMNS>();
#pragma unroll
    for (u32 start = first; start < first + 16; start += AHEAD * STEP) {
        decltype(read(0u)) operands[AHEAD];
        float4 values[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            const u32 y = start + i * STEP;
            operands[i] = read(min(row + y, rows - 1));
            values[i] = *reinterpret_cast<const float4*>(sums + y * PITCH);
        }
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            const u32 at = row + start + i * STEP;
            if (at >= rows) return;
            write(at, values[i], operands[i]);
        }
    }
}
