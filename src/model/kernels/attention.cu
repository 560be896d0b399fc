// softmax(query · keyᵀ · scale) · value for each image and head, from packed query, key and value.
//
// `packed` is [images · tokens, 3 · heads · WIDTH]; `out` is [images · queries, heads · WIDTH], for the first tokens of each image. A
// block of four warps has 64 queries of one head, a warp 16 of them. Keys and values pass in tiles of 64, one tile ahead (flash
// attention: running maximum and sum of each query in f32, scores never stored). Any number of tokens; WIDTH is a multiple of 8, and
// zeros fill it up to a multiple of 16. A row in shared memory is 16 bytes longer than that, an odd number of chunks, so that eight
// rows of a chunk lie in eight groups of banks.
//
// With BIASED 1, the scaled score of a query and a key has a bias: entry clamp(place of the query - place of the key, 0, entries - 1) of
// the head's table. `tables` is [heads, entries], multiplied by √WIDTH; `places` are those of queries, then those of keys,
// each filled up to a multiple of TILE.

constexpr int TILE = 64; // keys of a tile, and queries of a block
constexpr int PADDED = (WIDTH + 15) / 16 * 16;
constexpr int PITCH = 2 * PADDED + 16;
constexpr int TILE_BYTES = TILE * PITCH;
constexpr int CHUNKS = WIDTH / 8; // of a row

struct Info {
    u32 tokens;
    u32 heads;
    float scale; // of scores, times log2(e)
    u32 queries; // of an image; at most `tokens`
#if BIASED
    u32 entries; // of a head's table
    u32 unused;
#endif
};

#if BIASED
#define BIAS_PARAMETERS const float *tables, const int *places,
#else
#define BIAS_PARAMETERS
#endif

extern __shared__ __align__(128) u8 memory[];

// Blocks of a multiprocessor that the registers must suffice for: as many as the shared memory of an H100, else of an A100, holds, and so
// few that nothing is spilled.
#if __CUDA_ARCH__ == 900
constexpr int FIT = (227 << 10) / (5 * TILE_BYTES + 1024);
#else
constexpr int FIT = (163 << 10) / (5 * TILE_BYTES + 1024);
#endif
#if BIASED
constexpr int MOST = 3;
#else
constexpr int MOST = 4;
#endif

extern "C" __global__ void __launch_bounds__(128, FIT < MOST ? FIT : MOST)
attention(const bf16* packed, BIAS_PARAMETERS bf16* out, const __grid_constant__ Info info) {
    const u32 lane = threadIdx.x % 32, warp = warp_index();
    const u32 tokens = info.tokens, query_count = info.queries, hidden = info.heads * WIDTH;
    const u32 blocks = (query_count + TILE - 1) / TILE, tiles = (tokens + TILE - 1) / TILE;
    const u32 first = blockIdx.x % blocks * TILE, head = blockIdx.x / blocks % info.heads;
    const u64 image = blockIdx.x / blocks / info.heads;
    const bf16* query = packed + image * tokens * 3 * hidden + head * WIDTH;
    const bf16 *key = query + hidden, *value = key + hidden;
    const u32 base = shared_address(memory);

    // Four threads copy every fourth chunk of a row and of the one 32 rows on. A pointer to an absent row is never followed.
    const u32 own_row = threadIdx.x / 4, own_chunk = threadIdx.x % 4;
    const u64 own_place = (u64)own_row * 3 * hidden + own_chunk * 8;
    const auto copy = [&](u32 to, const bf16* from, u32 start) {
        const bf16* at = from + (u64)start * 3 * hidden + own_place;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const bool present = start + own_row + 32 * half < tokens;
#pragma unroll
            for (u32 chunk = 0; chunk < PADDED / 8; chunk += 4)
                if (PADDED % 32 == 0 || own_chunk + chunk < PADDED / 8) {
                    const bool filled = CHUNKS == PADDED / 8 || own_chunk + chunk < CHUNKS;
                    copy_async(to + (own_row + 32 * half) * PITCH + (own_chunk + chunk) * 16, at + chunk * 8, present && filled);
                }
            at += 32 * 3 * hidden;
        }
    };
    // Queries; then keys and values of an even tile, then of an odd one.
    const auto key_place = [&](u32 tile) { return base + TILE_BYTES * (1 + tile % 2 * 2); };
    copy(base, query, first);
    copy(key_place(0), key, 0);
    copy(key_place(0) + TILE_BYTES, value, 0);
    commit_copies();

    u32 queries[PADDED / 16][4];
    float sums[PADDED / 8][4], most[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < PADDED / 8; i++)
#pragma unroll
        for (int part = 0; part < 4; part++) sums[i][part] = 0.0f;
    // This lane's row and chunk in a group of sixteen keys or values.
    const u32 key_offset = (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 16, value_offset = lane % 16 * PITCH + lane / 16 * 16;
    // Warps without a query only copy.
    const bool works = first + warp * 16 < query_count;

#if BIASED
    // The head's table starts and ends here; places of queries are counted from its start.
    const int start_entry = head * info.entries, last_entry = start_entry + info.entries - 1;
    const int *query_places = places + first + warp * 16 + lane / 4, *key_places = places + tiles * TILE + lane % 4 * 2;
    const int own_places[2] = {start_entry + query_places[0], start_entry + query_places[8]};
    // The bias of two queries and two keys of this lane, `first_key` and the next one.
    const auto start_scores = [&](float(&scores)[4], u32 first_key) {
        const int2 pair = *reinterpret_cast<const int2*>(key_places + first_key);
#pragma unroll
        for (int part = 0; part < 4; part++)
            scores[part] = tables[(u32)min(max(own_places[part / 2] - (part % 2 == 0 ? pair.x : pair.y), start_entry), last_entry)];
    };
#else
    const auto start_scores = [](float(&scores)[4], u32) {
#pragma unroll
        for (int part = 0; part < 4; part++) scores[part] = 0.0f;
    };
#endif

    for (u32 tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) {
            copy(key_place(tile + 1), key, (tile + 1) * TILE);
            copy(key_place(tile + 1) + TILE_BYTES, value, (tile + 1) * TILE);
        }
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        if (works) {
            if (tile == 0) {
#pragma unroll
                for (int i = 0; i < PADDED / 16; i++)
                    load_matrices(queries[i], base + (warp * 16 + lane % 16) * PITCH + (2 * i + lane / 16) * 16);
            }
            const u32 keys = key_place(tile) + key_offset, values = key_place(tile) + TILE_BYTES + value_offset, left = tokens - tile * TILE;
            float scores[TILE / 8][4];
#pragma unroll
            for (int j = 0; j < TILE / 8; j++) start_scores(scores[j], tile * TILE + 8 * j);
#pragma unroll
            for (int j = 0; j < TILE / 8; j += 2) {
                // Sixteen keys at once; none of the last tile's absent ones.
                if (8 * j < left) {
#pragma unroll
                    for (int i = 0; i < PADDED / 16; i++) {
                        u32 b[4];
                        load_matrices(b, keys + 8 * j * PITCH + 32 * i);
                        multiply(scores[j], queries[i], b[0], b[1]);
                        multiply(scores[j + 1], queries[i], b[2], b[3]);
                    }
                }
            }
            if (left < TILE) {
#pragma unroll
                for (int j = 0; j < TILE / 8; j++)
#pragma unroll
                    for (int part = 0; part < 4; part++)
                        if (8 * j + lane % 4 * 2 + part % 2 >= left) scores[j][part] = NEGATIVE_INFINITY;
            }
            // A lane holds scores of rows lane / 4 and lane / 4 + 8; four lanes share a row.
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float largest = most[half];
#pragma unroll
                for (int j = 0; j < TILE / 8; j++) largest = fmaxf(largest, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
                largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 2));
                const float shift = largest * info.scale, shrink = exp2_approx(most[half] * info.scale - shift);
                most[half] = largest;
                total[half] *= shrink;
#pragma unroll
                for (int i = 0; i < PADDED / 8; i++) {
                    sums[i][2 * half] *= shrink;
                    sums[i][2 * half + 1] *= shrink;
                }
#pragma unroll
                for (int j = 0; j < TILE / 8; j++)
#pragma unroll
                    for (int part = 2 * half; part < 2 * half + 2; part++) {
                        scores[j][part] = exp2_approx(fmaf(scores[j][part], info.scale, -shift));
                        total[half] += scores[j][part];
                    }
            }
#pragma unroll
            for (int j = 0; j < TILE / 8; j += 2) {
                if (8 * j < left) {
                    const u32 shares[4] = {pack(scores[j][0], scores[j][1]), pack(scores[j][2], scores[j][3]),
                                           pack(scores[j + 1][0], scores[j + 1][1]), pack(scores[j + 1][2], scores[j + 1][3])};
#pragma unroll
                    for (int i = 0; i < PADDED / 8; i += 2) {
                        u32 b[4];
                        load_matrices_transposed(b, values + 8 * j * PITCH + 16 * i);
                        multiply(sums[i], shares, b[0], b[1]);
                        multiply(sums[i + 1], shares, b[2], b[3]);
                    }
                }
            }
        }
        // The next round's copies overwrite this tile.
        __syncthreads();
    }
    if (!works) return;
    // The results take the place of this warp's own queries, so that the stores are whole sectors.
    u8* own = memory + warp * 16 * PITCH;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float all = total[half];
        all += __shfl_xor_sync(0xFFFFFFFFu, all, 1);
        all += __shfl_xor_sync(0xFFFFFFFFu, all, 2);
        const float factor = reciprocal_approx(all);
#pragma unroll
        for (int i = 0; i < PADDED / 8; i++)
            *reinterpret_cast<u32*>(own + (lane / 4 + 8 * half) * PITCH + i * 16 + lane % 4 * 4) =
                pack(sums[i][2 * half] * factor, sums[i][2 * half + 1] * factor);
    }
    __syncwarp();
    bf16* to = out + (image * query_count + first + warp * 16) * hidden + head * WIDTH;
#pragma unroll
    for (u32 at = lane; at < 16 * CHUNKS; at += 32) {
        const u32 row = at / CHUNKS, chunk = at % CHUNKS;
        if (first + warp * 16 + row < query_count)
            *reinterpret_cast<uint4*>(to + (u64)row * hidden + chunk * 8) = *reinterpret_cast<const uint4*>(own + row * PITCH + chunk * 16);
    }
}
