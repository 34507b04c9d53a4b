// The state of one launch, and what its instructions share.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int32_t op, predicate, negated, first, count, aux, aux2, unused;
    int64_t offset;
} Instruction;

// What a run is told, and, from `error` on, what it tells.  As in machine.py.
typedef struct {
    const Instruction *code;
    const int32_t *operands;
    const uint64_t *memory; // pairs: where memory that the kernel may touch begins and ends
    const int32_t *constant_rows;
    const uint64_t *constants;
    int64_t most_steps;
    int32_t instructions, rows, constant_count, ranges, threads, grid[3], special[10];
    int32_t shared_bytes, local_bytes, together, descending;
    int32_t error, at, thread, program, races, race_at;
    int64_t steps;
    uint64_t address;
    char what[120], race[120];
} Run;

typedef struct { // who has touched a byte of shared memory, and after which barrier
    int32_t writer, reader, written, read;
} Byte;

typedef struct { // who has touched four bytes, or one, of global memory
    uint64_t key;
    int32_t writer, reader, warp, phase;
} Cell;

typedef struct { // a copy to shared memory that has not been waited for
    uint64_t from;
    uint32_t to;
    int32_t bytes, all, group, thread;
} Copy;

typedef struct {
    Run *run;
    char **rows;                  // of each register, the values of all threads
    char *shared, *local;
    Byte *bytes;
    Cell *cells;
    uint64_t cells_used, cells_room;
    Copy *copies;
    int32_t copies_made, copies_room;
    int32_t *group;               // of copies, by thread
    uint8_t *carry;
    int32_t program, phase, at;   // the program, the barriers passed, the instruction
    int low, high;                // the threads that run
    int forced;                   // whether they run without those that they wait for
} Machine;

#define ROW(type, i) ((type *)m->rows[operands[i]])
#define FAIL(thread_, address_, ...)                                                                  \
    do {                                                                                              \
        m->run->error = 1, m->run->thread = (thread_), m->run->address = (uint64_t)(address_);        \
        snprintf(m->run->what, sizeof m->run->what, __VA_ARGS__);                                     \
        return 1;                                                                                     \
    } while (0)
#define RUNS(t) (!mask || mask[t])
// `body` for each thread that runs
#define EACH(body)                                                                                    \
    do {                                                                                              \
        if (!mask)                                                                                    \
            for (int t = m->low; t < m->high; t++) body                                               \
        else                                                                                          \
            for (int t = m->low; t < m->high; t++)                                                    \
                if (mask[t]) body                                                                     \
    } while (0)

// Whether two places hold the same numbers of `wide` bytes, or both none.
static int alike_as(const char *a, const char *b, int bytes, int wide) {
    for (int i = 0; i + wide <= bytes; i += wide) {
        float x, y;
        double u, v;
        if (!memcmp(a + i, b + i, wide)) continue;
        if (wide == 4) memcpy(&x, a + i, 4), memcpy(&y, b + i, 4), u = x, v = y;
        else memcpy(&u, a + i, 8), memcpy(&v, b + i, 8);
        if (u == u || v == v) return 0;
    }
    return bytes >= wide;
}

// NaN has many forms: whoever writes last, it is NaN.
static int alike(const char *a, const char *b, int bytes) {
    return !memcmp(a, b, bytes) || alike_as(a, b, bytes, 4) || alike_as(a, b, bytes, 8);
}

static void race(Machine *m, const char *what, uint64_t address) {
    if (m->run->races++) return;
    m->run->race_at = m->at;
    snprintf(m->run->race, sizeof m->run->race, "%s, address %#lx, program %d", what,
             (unsigned long)address, m->program);
}

enum { READ, WRITE, REWRITE }; // the last: of what is there already

// Two warps of a program may not touch a byte between two barriers, if one writes something new.
static void touch_shared(Machine *m, uint32_t at, int bytes, int warp, int how) {
    for (Byte *one = m->bytes + at; one < m->bytes + at + bytes; one++) {
        int read = one->read == m->phase, written = one->written == m->phase;
        if (how == READ) {
            if (written && one->writer != warp) race(m, "shared memory: read after write", at);
            one->reader = read && one->reader != warp ? -1 : warp;
            one->read = m->phase;
            continue;
        }
        if (how == WRITE && read && one->reader != warp)
            race(m, "shared memory: write after read", at);
        if (how == WRITE && written && one->writer != warp)
            race(m, "shared memory: write after write", at);
        one->writer = warp, one->written = m->phase;
    }
}

// The cell of a key, or the free one in which it belongs.
static Cell *cell_of(Cell *cells, uint64_t room, uint64_t key) {
    uint64_t at = (key * 0x9E3779B97F4A7C15ull) >> 24;
    while (cells[at % room].key && cells[at % room].key != key) at++;
    return &cells[at % room];
}

static void make_room(Machine *m) {
    uint64_t room = 2 * m->cells_room;
    Cell *cells = calloc(room, sizeof(Cell));
    for (uint64_t i = 0; i < m->cells_room; i++)
        if (m->cells[i].key) *cell_of(cells, room, m->cells[i].key) = m->cells[i];
    free(m->cells);
    m->cells = cells, m->cells_room = room;
}

// Two programs of a launch may not touch a place, if one writes something new; nor two warps of a
// program between two barriers, if the first writes it.  (The order of warps tells of other cases.)
static void touch_global(Machine *m, uint64_t at, int bytes, int warp, int how) {
    int unit = bytes < 4 ? 1 : 4;
    for (uint64_t w = at / unit; w <= (at + bytes - 1) / unit; w++) {
        uint64_t key = (w << 1 | (unit == 1)) + 1;
        if (2 * m->cells_used >= m->cells_room) make_room(m);
        Cell *cell = cell_of(m->cells, m->cells_room, key);
        if (!cell->key) m->cells_used++, *cell = (Cell){key, -1, -1, -1, -1};
        int other = cell->writer != -1 && cell->writer != m->program;
        int now = cell->writer == m->program && cell->phase == m->phase && cell->warp != warp;
        if (how == READ) {
            if (other) race(m, "global memory: another program wrote what is read", at);
            if (now) race(m, "global memory: another warp wrote what is read", at);
            cell->reader = cell->reader == -1 || cell->reader == m->program ? m->program : -2;
            continue;
        }
        if (how == WRITE && cell->reader != -1 && cell->reader != m->program)
            race(m, "global memory: another program read what is written", at);
        if (how == WRITE && other) race(m, "global memory: another program wrote it too", at);
        if (how == WRITE && now && bytes >= 4) race(m, "global memory: another warp wrote it too", at);
        cell->writer = m->program, cell->warp = warp, cell->phase = m->phase;
    }
}

static int may_touch(const Machine *m, uint64_t at, uint64_t bytes) {
    const uint64_t *range = m->run->memory;
    for (int i = 0; i < m->run->ranges; i++, range += 2)
        if (at >= range[0] && at < range[1] && bytes <= range[1] - at) return 1;
    return 0;
}

// Whether all or no threads of each warp run, as instructions of whole warps want.
static int in_whole_warps(const Machine *m, const uint8_t *mask) {
    for (int w = m->low; w < m->high; w += 32) {
        int running = 0;
        for (int t = w; t < w + 32; t++) running += RUNS(t) != 0;
        if (running % 32) return 0;
    }
    return 1;
}
