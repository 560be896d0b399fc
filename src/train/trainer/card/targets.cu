// Target classes of a batch: `count` pairs of a row and a class in the order of rows, and the end of each row's pairs.

struct Targets {
    const u32* rows;    // [count]
    const u32* classes; // [count]
    const u32* shares;  // [count], bits of f32; those of a row sum to 1 - ε
    const u32* ends;    // [rows]

    __device__ __forceinline__ Targets(const u32* packed, u32 count)
        : rows(packed), classes(packed + count), shares(packed + 2 * count), ends(packed + 3 * count) {}
};
