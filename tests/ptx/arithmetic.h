// Functions that the expressions of operations.py call.
static uint32_t reversed(uint32_t a) {
    uint32_t r = 0;
    for (int i = 0; i < 32; i++) r |= (a >> i & 1u) << (31 - i);
    return r;
}

static uint32_t field_u32(uint32_t a, uint32_t at, uint32_t bits) {
    at &= 255, bits &= 255;
    if (!bits || at > 31) return 0;
    return bits < 32 ? a >> at & ((1u << bits) - 1) : a >> at;
}

static int32_t field_s32(int32_t a, uint32_t at, uint32_t bits) {
    at &= 255, bits &= 255;
    if (!bits) return 0;
    int32_t r = a >> (at < 32 ? at : 31);
    return at + bits >= 32 ? r : (int32_t)((uint32_t)r << (32 - bits)) >> (32 - bits);
}

static uint32_t inserted(uint32_t a, uint32_t b, uint32_t at, uint32_t bits) {
    at &= 255, bits &= 255;
    if (at > 31 || !bits) return b;
    uint32_t mask = (bits < 32 ? (1u << bits) - 1 : ~0u) << at;
    return (b & ~mask) | (a << at & mask);
}

static uint32_t permuted(uint32_t a, uint32_t b, uint32_t which) {
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t one = which >> (4 * i) & 15, byte = both >> (8 * (one & 7)) & 255;
        if (one & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << (8 * i);
    }
    return r;
}

static uint32_t by_table(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t r = 0;
    for (int i = 0; i < 8; i++)
        if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
}

static uint32_t to_tf32(uint32_t a) {
    return (a & 0x7F800000u) == 0x7F800000u ? a : (a + 0x1000u) & 0xFFFFE000u;
}

static float part(uint64_t pair, int high) {
    uint32_t bits = high ? pair >> 32 : pair;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static uint64_t pair(float low, float high) {
    uint32_t bits[2];
    memcpy(bits, &low, 4), memcpy(bits + 1, &high, 4);
    return (uint64_t)bits[1] << 32 | bits[0];
}

static float from_bf16(uint16_t a) {
    uint32_t bits = (uint32_t)a << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static uint16_t to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return f != f ? 0x7FFF : (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
}

static float from_f16(uint16_t a) {
    _Float16 h;
    memcpy(&h, &a, 2);
    return (float)h;
}

static uint16_t to_f16(float f) {
    _Float16 h = (_Float16)f;
    uint16_t a;
    memcpy(&a, &h, 2);
    return a;
}

#define WITHIN(name, type, least, most)                                                               \
    static type to_##name(double x) {                                                                 \
        return x != x ? 0 : x <= (double)(least) ? least : x >= (double)(most) ? most : (type)x;      \
    }
WITHIN(u8, uint8_t, 0, UINT8_MAX)
WITHIN(u16, uint16_t, 0, UINT16_MAX)
WITHIN(u32, uint32_t, 0, UINT32_MAX)
WITHIN(u64, uint64_t, 0, UINT64_MAX)
WITHIN(s8, int8_t, INT8_MIN, INT8_MAX)
WITHIN(s16, int16_t, INT16_MIN, INT16_MAX)
WITHIN(s32, int32_t, INT32_MIN, INT32_MAX)
WITHIN(s64, int64_t, INT64_MIN, INT64_MAX)
