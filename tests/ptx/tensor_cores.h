// Products of tensor cores: each thread has some numbers of A, B and the sum, as PTX's figures say.
enum { TF32, BF16, F16, F64 };

// A sum as tensor cores leave it: cut off after float32's 24 bits, not rounded.
static float cut(double sum) {
    float f = (float)sum;
    return fabs((double)f) > fabs(sum) && isfinite(f) ? nextafterf(f, 0.0f) : f;
}

static float number(uint32_t bits, int kind) {
    if (kind == BF16) return from_bf16((uint16_t)bits);
    if (kind == F16) return from_f16((uint16_t)bits);
    bits &= 0xFFFFE000u; // what is beyond TF32 is not read
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// One register of A for the rows `row` and `row + 8`, and 4 or 8 numbers of k further on.
static void part_of_left(float a[][16], int row, int lane, int x, uint32_t bits, int kind) {
    int r = row + 8 * (x & 1), q = lane % 4;
    if (kind == TF32) a[r][q + 4 * (x >> 1)] = number(bits, kind);
    else
        for (int h = 0; h < 2; h++) a[r][2 * q + h + 8 * (x >> 1)] = number(bits >> (16 * h), kind);
}

static void product_of_doubles(Machine *m, const int32_t *operands, int w, int rows, int depth) {
    int sums = rows / 4, lefts = rows * depth / 32, rights = depth / 4;
    double a[16][16], b[16][8], sum[16][8];
    for (int i = 0; i < 32; i++) {
        int t = w + i, g = i / 4, q = i % 4, tall = rows == 16;
        for (int x = 0; x < lefts; x++)
            a[tall ? g + 8 * (x % 2) : g][tall ? x / 2 * 4 + q : q] = ROW(double, sums + x)[t];
        for (int x = 0; x < rights; x++) b[4 * x + q][g] = ROW(double, sums + lefts + x)[t];
        for (int x = 0; x < sums; x++)
            sum[g + 8 * (x >> 1)][2 * q + (x & 1)] = ROW(double, sums + lefts + rights + x)[t];
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < 8; j++)
            for (int k = 0; k < depth; k++) sum[i][j] = fma(a[i][k], b[k][j], sum[i][j]);
    for (int i = 0; i < 32; i++)
        for (int x = 0; x < sums; x++)
            ROW(double, x)[w + i] = sum[i / 4 + 8 * (x >> 1)][2 * (i % 4) + (x & 1)];
}

static void product_of_floats(Machine *m, const int32_t *operands, int w, int depth, int kind) {
    int lefts = kind == TF32 ? depth / 2 : depth / 4, rights = lefts / 2;
    float a[16][16], b[16][8], sum[16][8];
    for (int i = 0; i < 32; i++) {
        int t = w + i, g = i / 4, q = i % 4;
        for (int x = 0; x < lefts; x++) part_of_left(a, g, i, x, ROW(uint32_t, 4 + x)[t], kind);
        for (int x = 0; x < rights; x++) {
            uint32_t bits = ROW(uint32_t, 4 + lefts + x)[t];
            if (kind == TF32) b[q + 4 * x][g] = number(bits, kind);
            else
                for (int h = 0; h < 2; h++) b[2 * q + h + 8 * x][g] = number(bits >> (16 * h), kind);
        }
        for (int x = 0; x < 4; x++)
            sum[g + 8 * (x >> 1)][2 * q + (x & 1)] = ROW(float, 4 + lefts + rights + x)[t];
    }
    for (int i = 0; i < 32; i++)
        for (int x = 0; x < 4; x++) {
            int r = i / 4 + 8 * (x >> 1), c = 2 * (i % 4) + (x & 1);
            double s = 0;
            for (int k = 0; k < depth; k++) s += (double)a[r][k] * b[k][c];
            ROW(float, x)[w + i] = cut(sum[r][c] + s);
        }
}

// mma.sync; aux: kind; aux2: rows, depth << 8
static int product(Machine *m, const Instruction *in, const int32_t *operands, const uint8_t *mask) {
    if (!in_whole_warps(m, mask)) FAIL(m->low, 0, "a product by part of a warp");
    for (int w = m->low; w < m->high; w += 32) {
        if (!RUNS(w)) continue;
        if (in->aux == F64) product_of_doubles(m, operands, w, in->aux2 & 255, in->aux2 >> 8);
        else product_of_floats(m, operands, w, in->aux2 >> 8, in->aux);
    }
    return 0;
}

// Where number (row, k) of an operand in shared memory is; `rows_first` if its rows are contiguous.
static uint32_t described(uint64_t descriptor, int row, int k, int bytes, int rows_first) {
    uint32_t start = (descriptor & 0x3FFF) << 4, lead = (descriptor >> 16 & 0x3FFF) << 4;
    uint32_t stride = (descriptor >> 32 & 0x3FFF) << 4, at;
    int swizzle = descriptor >> 62; // 0: none, 1: 128 bytes, 2: 64, 3: 32
    int width = swizzle ? 256 >> swizzle : 16;
    if (rows_first) {
        int along = row * bytes;
        at = start + along % width + k % 8 * width;
        at += along / width * (swizzle ? lead : stride) + k / 8 * (swizzle ? stride : lead);
    } else {
        int along = k * bytes;
        at = start + row / 8 * stride + row % 8 * width;
        at += swizzle ? along : along / 16 * lead + along % 16;
    }
    return swizzle ? at ^ ((at >> 7 & ((8 >> (swizzle - 1)) - 1)) << 4) : at;
}

static int described_part(Machine *m, float part[][16], int rows, int depth, uint64_t descriptor, int kind,
                          int rows_first, int warp) {
    int bytes = kind == TF32 ? 4 : 2;
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < depth; k++) {
            uint32_t at = described(descriptor, i, k, bytes, rows_first), bits = 0;
            char *here = place(m, SHARED, at, bytes, 32 * warp);
            if (!here) return 1;
            memcpy(&bits, here, bytes);
            part[i][k] = number(bits, kind);
            for (int w = warp; w < warp + 4; w++) touch_shared(m, at, bytes, w, READ);
        }
    return 0;
}

// wgmma; aux: columns, kind << 12, A in registers << 16; aux2: rows first of A, of B << 1, add << 2
static int product_of_group(Machine *m, const Instruction *in, const int32_t *operands,
                            const uint8_t *mask) {
    static float a[64][16], b[256][16];
    int columns = in->aux & 4095, kind = in->aux >> 12 & 15, registers = in->aux >> 16;
    int depth = kind == TF32 ? 8 : 16, sums = columns / 2, lefts = registers ? 4 : 1;
    for (int first = m->low; first < m->high; first += 128) {
        for (int t = first; t < first + 128; t++)
            if (!RUNS(t)) FAIL(t, 0, "a product by part of a group of four warps");
        uint64_t right = ROW(uint64_t, sums + lefts)[first];
        int add = operands[sums + lefts + 1] < 0 ? in->aux2 >> 2 & 1
                                                 : ROW(uint8_t, sums + lefts + 1)[first] != 0;
        if (described_part(m, b, columns, depth, right, kind, in->aux2 >> 1 & 1, first / 32)) return 1;
        if (!registers) {
            uint64_t left = ROW(uint64_t, sums)[first];
            if (described_part(m, a, 64, depth, left, kind, in->aux2 & 1, first / 32)) return 1;
        }
        for (int i = 0; i < 128 && registers; i++)
            for (int x = 0; x < 4; x++)
                part_of_left(a, i / 32 * 16 + i % 32 / 4, i, x, ROW(uint32_t, sums + x)[first + i], kind);
        for (int i = 0; i < 128; i++)
            for (int x = 0; x < sums; x++) {
                int r = i / 32 * 16 + i % 32 / 4 + 8 * (x >> 1 & 1), c = x / 4 * 8 + 2 * (i % 4) + (x & 1);
                double s = add ? ROW(float, x)[first + i] : 0.0;
                for (int k = 0; k < depth; k++) s += (double)a[r][k] * b[c][k];
                ROW(float, x)[first + i] = cut(s);
            }
    }
    return 0;
}
