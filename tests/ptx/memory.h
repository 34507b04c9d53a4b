// Loads, stores, atomics and copies.
enum { GLOBAL, SHARED, LOCAL };

static uint64_t address_of(const Machine *m, int32_t row, int wide, int t) {
    if (row < 0) return 0;
    return wide == 8 ? ((uint64_t *)m->rows[row])[t] : ((uint32_t *)m->rows[row])[t];
}

// Where a thread's access begins on this machine, or NULL.
static char *place(Machine *m, int space, uint64_t at, int bytes, int t) {
    Run *run = m->run;
    run->thread = t, run->address = at, run->error = 1;
    if (at % bytes) {
        snprintf(run->what, sizeof run->what, "misaligned access of %d bytes", bytes);
        return NULL;
    }
    uint64_t room = space == SHARED ? run->shared_bytes : run->local_bytes;
    int inside = space == GLOBAL ? may_touch(m, at, bytes) : at < room && (uint64_t)bytes <= room - at;
    if (!inside) {
        snprintf(run->what, sizeof run->what, "%s memory out of bounds, %d bytes",
                 space == GLOBAL ? "global" : space == SHARED ? "shared" : "local", bytes);
        return NULL;
    }
    run->error = 0;
    return space == GLOBAL ? (char *)at
         : space == SHARED ? m->shared + at
                           : m->local + (size_t)t * run->local_bytes + at;
}

static void touch(Machine *m, int space, uint64_t at, int bytes, int t, int how) {
    if (space == GLOBAL) touch_global(m, at, bytes, t / 32, how);
    if (space == SHARED) touch_shared(m, (uint32_t)at, bytes, t / 32, how);
}

// aux: space, bytes << 4, signed << 12, bytes of the registers << 16, of the address << 24
static int load_or_store(Machine *m, const Instruction *in, const int32_t *operands, const uint8_t *mask,
                         int store) {
    int space = in->aux & 15, bytes = in->aux >> 4 & 255, is_signed = in->aux >> 12 & 1;
    int wide = in->aux >> 16 & 255, count = in->count - 1;
    for (int t = m->low; t < m->high; t++) {
        if (!RUNS(t)) continue;
        uint64_t at = in->offset + address_of(m, operands[count], in->aux >> 24, t);
        if (space == SHARED) at &= 0xFFFFFFFFu;
        char *here = place(m, space, at, bytes * count, t);
        if (!here) return 1;
        char line[64];
        for (int i = 0; i < count; i++) {
            char *value = ROW(char, i) + (size_t)t * wide;
            if (store) {
                memcpy(line + i * bytes, value, bytes);
                continue;
            }
            int64_t v = 0;
            memcpy(&v, here + i * bytes, bytes);
            if (is_signed) v = bytes == 1 ? (int8_t)v : bytes == 2 ? (int16_t)v : (int32_t)v;
            memcpy(value, &v, wide);
        }
        int how = !store ? READ : alike(here, line, bytes * count) ? REWRITE : WRITE;
        touch(m, space, at, bytes * count, t, how);
        if (store) memcpy(here, line, bytes * count);
    }
    return 0;
}

enum { ADD, MIN, MAX, AND, OR, XOR, EXCHANGE, COMPARE };

static int64_t combined(int what, int64_t x, int64_t y) {
    switch (what) {
    case ADD: return (int64_t)((uint64_t)x + (uint64_t)y);
    case MIN: return x < y ? x : y;
    case MAX: return x > y ? x : y;
    case AND: return x & y;
    case OR: return x | y;
    case XOR: return x ^ y;
    default: return y;
    }
}

// aux: space, bytes << 4, kind << 12 (1 signed, 2 floating point), what << 16, bytes of the address << 24
static int atomic(Machine *m, const Instruction *in, const int32_t *operands, const uint8_t *mask) {
    int space = in->aux & 15, bytes = in->aux >> 4 & 255, kind = in->aux >> 12 & 15;
    int what = in->aux >> 16 & 255;
    for (int t = m->low; t < m->high; t++) {
        if (!RUNS(t)) continue;
        char *here = place(m, space, in->offset + address_of(m, operands[1], in->aux >> 24, t), bytes, t);
        if (!here) return 1;
        int64_t old = 0, by = 0, swap = 0, made;
        memcpy(&old, here, bytes), memcpy(&by, ROW(char, 2) + (size_t)t * bytes, bytes);
        if (operands[3] >= 0) memcpy(&swap, ROW(char, 3) + (size_t)t * bytes, bytes);
        if (kind == 2 && what <= MAX) {
            float x, y;
            double a, b;
            memcpy(&x, &old, 4), memcpy(&y, &by, 4), memcpy(&a, &old, 8), memcpy(&b, &by, 8);
            x = what == ADD ? x + y : what == MIN ? fminf(x, y) : fmaxf(x, y);
            a = what == ADD ? a + b : what == MIN ? fmin(a, b) : fmax(a, b);
            if (bytes == 4) memcpy(&made, &x, 4);
            else memcpy(&made, &a, 8);
        } else if (what == COMPARE) {
            made = old == by ? swap : old;
        } else {
            int narrow = kind == 1 && bytes == 4;
            made = combined(what, narrow ? (int32_t)old : old, narrow ? (int32_t)by : by);
        }
        memcpy(here, &made, bytes);
        if (operands[0] >= 0) memcpy(ROW(char, 0) + (size_t)t * bytes, &old, bytes);
    }
    return 0;
}

// A copy is made when it is waited for, so that nothing can rely on an earlier one.
static int copy_later(Machine *m, const Instruction *in, const int32_t *operands, const uint8_t *mask) {
    for (int t = m->low; t < m->high; t++) {
        if (!RUNS(t)) continue;
        uint32_t to = ROW(uint32_t, 0)[t] + (uint32_t)in->offset;
        uint64_t from = ROW(uint64_t, 1)[t] + in->aux2;
        int32_t bytes = operands[2] >= 0 ? ROW(int32_t, 2)[t] : in->aux;
        char *here = place(m, SHARED, to, in->aux, t);
        if (!here) return 1;
        if (from % in->aux) FAIL(t, from, "misaligned copy of %d bytes", in->aux);
        if (bytes < 0 || bytes > in->aux) FAIL(t, from, "copy of %d bytes of %d", bytes, in->aux);
        if (bytes && !may_touch(m, from, bytes)) FAIL(t, from, "copy from out of bounds");
        if (bytes) touch_global(m, from, bytes, t / 32, READ);
        touch_shared(m, to, in->aux, t / 32, WRITE);
        memset(here, 0xFF, in->aux);
        if (m->copies_made == m->copies_room) {
            m->copies_room = m->copies_room ? 2 * m->copies_room : 1024;
            m->copies = realloc(m->copies, sizeof(Copy) * m->copies_room);
        }
        m->copies[m->copies_made++] = (Copy){from, to, bytes, in->aux, m->group[t], t};
    }
    return 0;
}

// Makes the copies of the threads that run, except for those of their newest `kept` groups.
static void wait_for_copies(Machine *m, int kept, const uint8_t *mask) {
    int left = 0;
    for (int i = 0; i < m->copies_made; i++) {
        Copy *copy = &m->copies[i];
        int t = copy->thread;
        if (t < m->low || t >= m->high || !RUNS(t) || copy->group >= m->group[t] - kept) {
            m->copies[left++] = *copy;
            continue;
        }
        memset(m->shared + copy->to, 0, copy->all);
        if (copy->bytes) memcpy(m->shared + copy->to, (char *)copy->from, copy->bytes);
        touch_shared(m, copy->to, copy->all, t / 32, WRITE);
    }
    m->copies_made = left;
}
