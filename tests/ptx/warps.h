// What the threads of a warp do together.
enum { BUTTERFLY, INDEX, UP, DOWN };

static int shuffle(Machine *m, const Instruction *in, const int32_t *operands, const uint8_t *mask) {
    for (int w = m->low; w < m->high; w += 32) {
        uint32_t old[32];
        memcpy(old, ROW(uint32_t, 1) + w, sizeof old);
        for (int i = 0; i < 32; i++) {
            int t = w + i, by = ROW(uint32_t, 2)[t] & 31, bounds = ROW(uint32_t, 3)[t];
            if (!RUNS(t)) continue;
            int segment = bounds >> 8 & 31, last = (i & segment) | (bounds & 31 & ~segment);
            int from = in->aux == BUTTERFLY ? i ^ by
                     : in->aux == INDEX ? (i & segment) | (by & ~segment)
                     : in->aux == UP ? i - by : i + by;
            int inside = in->aux == UP ? from >= last : from <= last;
            if (!inside) from = i;
            if (!RUNS(w + from)) FAIL(t, from, "a shuffle reads a lane that does not run");
            ROW(uint32_t, 0)[t] = old[from];
            if (operands[5] >= 0) ROW(uint8_t, 5)[t] = inside;
        }
    }
    return 0;
}

// aux: what; aux2: signed
static int reduce(Machine *m, const Instruction *in, const int32_t *operands, const uint8_t *mask) {
    for (int w = m->low; w < m->high; w += 32) {
        uint32_t made[32];
        for (int i = 0; i < 32; i++) {
            if (!RUNS(w + i)) continue;
            int64_t sum = 0;
            int begun = 0;
            for (int j = 0; j < 32; j++) {
                if (!(ROW(uint32_t, 2)[w + i] >> j & 1)) continue;
                if (!RUNS(w + j)) FAIL(w + i, j, "a reduction reads a lane that does not run");
                int64_t x = in->aux2 ? ROW(int32_t, 1)[w + j] : (int64_t)ROW(uint32_t, 1)[w + j];
                sum = begun++ ? combined(in->aux, sum, x) : x;
            }
            made[i] = (uint32_t)sum;
        }
        for (int i = 0; i < 32; i++)
            if (RUNS(w + i)) ROW(uint32_t, 0)[w + i] = made[i];
    }
    return 0;
}

enum { ANY, ALL, BALLOT };

static void vote(Machine *m, const Instruction *in, const int32_t *operands, const uint8_t *mask) {
    for (int w = m->low; w < m->high; w += 32) {
        uint32_t votes = 0;
        for (int i = 0; i < 32; i++)
            if (RUNS(w + i) && (ROW(uint8_t, 1)[w + i] != 0) ^ in->aux2) votes |= 1u << i;
        for (int t = w; t < w + 32; t++) {
            if (!RUNS(t)) continue;
            uint32_t asked = ROW(uint32_t, 2)[t], given = votes & asked;
            if (in->aux == BALLOT) ROW(uint32_t, 0)[t] = given;
            else ROW(uint8_t, 0)[t] = in->aux == ANY ? given != 0 : given == asked;
        }
    }
}

// aux: how many matrices, transposed << 4; aux2: bytes of the address
static int matrices(Machine *m, const Instruction *in, const int32_t *operands, const uint8_t *mask,
                    int store) {
    int count = in->aux & 15, transposed = in->aux >> 4;
    if (!in_whole_warps(m, mask)) FAIL(m->low, 0, "matrices are moved by part of a warp");
    for (int w = m->low; w < m->high; w += 32) {
        if (!RUNS(w)) continue;
        for (int part = 0; part < 8 * count; part++) { // a row of 16 bytes of a matrix
            int t = w + part, row = part % 8;
            uint64_t at = in->offset + address_of(m, operands[count], in->aux2, t);
            char *here = place(m, SHARED, at & 0xFFFFFFFFu, 16, t), line[16];
            if (!here) return 1;
            memcpy(line, here, 16);
            for (int column = 0; column < 8; column++) {
                int i = transposed ? column * 8 + row : row * 8 + column; // a lane has two of 64
                char *value = ROW(char, part / 8) + (size_t)(w + i / 2) * 4 + i % 2 * 2;
                if (store) memcpy(line + 2 * column, value, 2);
                else memcpy(value, line + 2 * column, 2);
            }
            int how = !store ? READ : memcmp(here, line, 16) ? WRITE : REWRITE;
            touch_shared(m, (uint32_t)at, 16, w / 32, how);
            if (store) memcpy(here, line, 16);
        }
    }
    return 0;
}
