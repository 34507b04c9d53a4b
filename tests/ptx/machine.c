// Executes a kernel's PTX: its programs one after the other, all threads of a program (or, if `together`
// is fewer, those of a warp or a group of warps) at each instruction.
#include "machine.h"
#include "arithmetic.h"
#include "memory.h"
#include "warps.h"
#include "tensor_cores.h"

enum { // as in program.py
    BRANCH = 1, BARRIER, RETURN, MOVE, LOAD, STORE, SHUFFLE, REDUCE, VOTE, ATOMIC, PRODUCT, GROUP_PRODUCT,
    LOAD_MATRIX, STORE_MATRIX, COPY, COMMIT, WAIT, PACK, UNPACK, NOTHING, CARRY
};

// aux: high half << 2, add the carry << 1, keep it; for mad if there are three operands.
static void with_carry(Machine *m, const Instruction *in, const int32_t *operands, const uint8_t *mask) {
    const uint32_t *a = ROW(uint32_t, 1), *b = ROW(uint32_t, 2);
    const uint32_t *c = in->count == 4 ? ROW(uint32_t, 3) : NULL;
    EACH({
        uint64_t sum = c ? (uint64_t)a[t] * b[t] : a[t];
        sum = c && in->aux & 4 ? sum >> 32 : (uint32_t)sum;
        sum += (c ? c[t] : b[t]) + (uint64_t)(in->aux & 2 ? m->carry[t] : 0);
        ROW(uint32_t, 0)[t] = (uint32_t)sum;
        if (in->aux & 1) m->carry[t] = sum >> 32;
    });
}

static int operate(Machine *m, const Instruction *in, const int32_t *operands, const uint8_t *mask) {
    size_t wide = in->aux; // of MOVE, PACK and UNPACK: the bytes of a value
    int parts = in->count - 1;
    switch (in->op) {
    case MOVE: EACH({ memcpy(ROW(char, 0) + t * wide, ROW(char, 1) + t * wide, wide); }); return 0;
    case PACK:
        for (int i = 0; i < parts; i++)
            EACH({ memcpy(ROW(char, 0) + (t * parts + i) * wide, ROW(char, 1 + i) + t * wide, wide); });
        return 0;
    case UNPACK:
        for (int i = 0; i < parts; i++)
            if (operands[i] >= 0)
                EACH({ memcpy(ROW(char, i) + t * wide, ROW(char, parts) + (t * parts + i) * wide, wide); });
        return 0;
    case LOAD: return load_or_store(m, in, operands, mask, 0);
    case STORE: return load_or_store(m, in, operands, mask, 1);
    case SHUFFLE: return shuffle(m, in, operands, mask);
    case REDUCE: return reduce(m, in, operands, mask);
    case VOTE: vote(m, in, operands, mask); return 0;
    case ATOMIC: return atomic(m, in, operands, mask);
    case PRODUCT: return product(m, in, operands, mask);
    case GROUP_PRODUCT: return product_of_group(m, in, operands, mask);
    case LOAD_MATRIX: return matrices(m, in, operands, mask, 0);
    case STORE_MATRIX: return matrices(m, in, operands, mask, 1);
    case COPY: return copy_later(m, in, operands, mask);
    case COMMIT: EACH({ m->group[t]++; }); return 0;
    case WAIT: wait_for_copies(m, in->aux, mask); return 0;
    case CARRY: with_carry(m, in, operands, mask); return 0;
    case NOTHING: return 0;
#include "operations.inc"
    }
    FAIL(m->low, in->op, "no such operation");
}

typedef struct { // of a thread
    int32_t next;  // instruction
    uint8_t waits; // at a barrier
    uint8_t meets; // the others of its warp, which have parted from it
    uint8_t ended;
} Thread;

static int by_whole_warps(int32_t op) {
    return op == SHUFFLE || op == REDUCE || op == VOTE || op == PRODUCT || op == GROUP_PRODUCT
        || op == LOAD_MATRIX || op == STORE_MATRIX;
}

// The threads that run next: of the first of `together` that do not wait, those that are furthest behind.
// False if all have ended.
static int choose(Machine *m, Thread *threads, uint8_t *active, int *full, int *join) {
    Run *run = m->run;
    for (;;) {
        int live = 0, step = run->together, groups = run->threads / step;
        for (int g = 0; g < groups; g++) {
            int first = (run->descending ? groups - 1 - g : g) * step, at = -1, met = -1;
            for (int t = first; t < first + step; t++) {
                live += !threads[t].ended;
                if (threads[t].ended || threads[t].waits) continue;
                int *least = threads[t].meets ? &met : &at;
                if (*least < 0 || threads[t].next < *least) *least = threads[t].next;
            }
            m->forced = at < 0; // who is waited for does not come
            if (at < 0) at = met;
            if (at < 0) continue;
            m->low = first, m->high = first + step, m->at = at, *full = 1, *join = run->instructions;
            for (int t = first; t < first + step; t++) {
                int runs = !threads[t].ended && !threads[t].waits;
                active[t] = runs && threads[t].next == at;
                if (active[t]) threads[t].meets = 0;
                *full &= active[t];
                if (runs && !active[t] && threads[t].next < *join) *join = threads[t].next;
            }
            return 1;
        }
        if (!live) return 0;
        m->phase++; // all wait: the barrier opens
        for (int t = 0; t < run->threads; t++) threads[t].waits = 0;
    }
}

// Runs the threads that were chosen until they end, wait, part, or meet others.
static int advance(Machine *m, Thread *threads, const uint8_t *active, uint8_t *chosen, int full, int join) {
    Run *run = m->run;
    for (int at = m->at;; at++) {
        if (!full && at == join) {
            for (int t = m->low; t < m->high; t++)
                if (active[t]) threads[t].next = at;
            return 0;
        }
        const Instruction *in = &run->code[at];
        const uint8_t *mask = full ? NULL : active;
        run->at = m->at = at;
        if (!full && !m->forced && by_whole_warps(in->op) && !in_whole_warps(m, active)) {
            for (int t = m->low; t < m->high; t++)
                if (active[t]) threads[t].next = at, threads[t].meets = 1;
            return 0;
        }
        m->forced = 0;
        if (++run->steps > run->most_steps) FAIL(m->low, 0, "too many instructions: it hangs");
        if (in->predicate >= 0) {
            const uint8_t *predicate = (uint8_t *)m->rows[in->predicate];
            int any = 0, all = 1;
            for (int t = m->low; t < m->high; t++) {
                chosen[t] = RUNS(t) && (predicate[t] != 0) != in->negated;
                any |= chosen[t], all &= chosen[t];
            }
            if (!any) continue;
            if (!all) mask = chosen;
        }
        if (in->op == BARRIER || in->op == RETURN || in->op == BRANCH) {
            if (in->op == BRANCH && full && !mask) {
                at = in->aux - 1;
                continue;
            }
            for (int t = m->low; t < m->high; t++) {
                if (!full && !active[t]) continue;
                int does = RUNS(t);
                threads[t].next = in->op == BRANCH && does ? in->aux : at + 1;
                threads[t].waits = in->op == BARRIER && does;
                threads[t].ended = in->op == RETURN && does;
            }
            return 0;
        }
        if (operate(m, in, run->operands + in->first, mask)) return 1;
    }
}

static int run_program(Machine *m, Thread *threads, uint8_t *active, uint8_t *chosen) {
    Run *run = m->run;
    int32_t x = run->grid[0], y = run->grid[1];
    memset(m->shared, 0xFF, run->shared_bytes);
    memset(m->local, 0xFF, (size_t)run->local_bytes * run->threads);
    memset(threads, 0, sizeof(Thread) * run->threads), memset(m->group, 0, 4 * run->threads);
    for (int i = 0; i < run->shared_bytes; i++) m->bytes[i] = (Byte){-1, -1, -1, -1};
    m->copies_made = m->phase = 0;
    for (int t = 0; t < run->threads; t++) {
        int32_t values[10] = {t, m->program % x, m->program / x % y, m->program / x / y, x, y,
                              run->grid[2], run->threads, t % 32, t / 32};
        for (int i = 0; i < 10; i++)
            if (run->special[i] >= 0) ((int32_t *)m->rows[run->special[i]])[t] = values[i];
    }
    int full, join;
    while (choose(m, threads, active, &full, &join))
        if (advance(m, threads, active, chosen, full, join)) return 1;
    for (int i = 0; i < m->copies_made; i++)
        if (m->copies[i].bytes) FAIL(m->copies[i].thread, m->copies[i].from, "a copy is never waited for");
    return 0;
}

int execute(Run *run) {
    size_t row = (size_t)run->threads * 8, threads = run->threads;
    Machine machine = {.run = run}, *m = &machine;
    char *registers = malloc(run->rows * row);
    memset(registers, 0xFF, run->rows * row);
    m->rows = malloc(sizeof(char *) * run->rows);
    for (int i = 0; i < run->rows; i++) m->rows[i] = registers + i * row;
    for (int i = 0; i < run->constant_count; i++) { // the bytes of a value are beside the row's number
        int place = run->constant_rows[i] & 0xFFFFFF, wide = run->constant_rows[i] >> 24;
        for (size_t t = 0; t < threads; t++) memcpy(m->rows[place] + t * wide, &run->constants[i], wide);
    }
    m->shared = malloc(run->shared_bytes + 1), m->local = malloc(run->local_bytes * threads + 1);
    m->bytes = malloc(sizeof(Byte) * (run->shared_bytes + 1));
    m->cells_room = 16, m->cells = calloc(m->cells_room, sizeof(Cell));
    m->group = malloc(4 * threads), m->carry = calloc(threads, 1);
    Thread *each = malloc(sizeof(Thread) * threads);
    uint8_t *active = malloc(threads), *chosen = malloc(threads);
    int32_t programs = run->grid[0] * run->grid[1] * run->grid[2];
    for (int i = 0; i < programs && !run->error; i++) {
        run->program = m->program = run->descending ? programs - 1 - i : i;
        run_program(m, each, active, chosen);
    }
    void *made[] = {registers, m->rows, m->shared, m->local, m->bytes, m->cells, m->group, m->carry,
                    m->copies, each, active, chosen};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) free(made[i]);
    return run->error;
}
