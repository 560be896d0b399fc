// Splits images into patches, normalises them, and writes the tokens before the patches.
//
// `pixels` is [images, side, side, 3]; `out` is [images · grid², pitch]: row, column and channel of the patch, then zeros up to
// `pitch`. A pixel becomes value · scale + shift. Pixels beyond the last whole patch are left out. `leading` is [leading, hidden];
// `states` is [images · tokens, hidden]. A thread writes eight values.

struct Info {
    u32 images;
    u32 side;
    u32 patch;
    u32 grid;
    u32 pitch;
    u32 hidden;
    u32 leading;
    u32 tokens;
    float scale[3];
    float shift[3];
};

extern "C" __global__ void __launch_bounds__(256)
patches(const u8* pixels, const float* leading, bf16* out, bf16* states, const __grid_constant__ Info info) {
    u64 at = (u64)blockIdx.x * 256 + threadIdx.x;
    const u32 count = info.grid * info.grid, line = 3 * info.patch, depth = line * info.patch;
    const u64 chunks = (u64)info.images * count * (info.pitch / 8);
    float values[8];
    if (at < chunks) {
        const u64 row = at / (info.pitch / 8);
        const u32 first = (u32)(at % (info.pitch / 8)) * 8;
        const u64 image = row / count;
        const u32 patch = (u32)(row % count), y = patch / info.grid, x = patch % info.grid;
        const u8* corner = pixels + ((image * info.side + y * info.patch) * info.side + x * info.patch) * 3;
#pragma unroll
        for (u32 part = 0; part < 8; part++) {
            const u32 place = first + part, channel = place % 3;
            const float scale = channel == 0 ? info.scale[0] : channel == 1 ? info.scale[1] : info.scale[2];
            const float shift = channel == 0 ? info.shift[0] : channel == 1 ? info.shift[1] : info.shift[2];
            values[part] = 0.0f;
            if (place < depth) values[part] = fmaf((float)corner[(u64)(place / line) * info.side * 3 + place % line], scale, shift);
        }
        *reinterpret_cast<uint4*>(out + row * info.pitch + first) = pack_eight(values);
        return;
    }
    at -= chunks;
    const u32 wide = info.hidden / 8;
    if (at < (u64)info.images * info.leading * wide) {
        const u64 row = at / wide, image = row / info.leading;
        const u32 token = (u32)(row % info.leading), first = (u32)(at % wide) * 8;
#pragma unroll
        for (u32 part = 0; part < 8; part++) values[part] = leading[token * info.hidden + first + part];
        *reinterpret_cast<uint4*>(states + (image * info.tokens + token) * info.hidden + first) = pack_eight(values);
    }
}
