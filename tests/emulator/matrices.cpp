/* ldmatrix and mma: what each lane holds is as the PTX manual lays it out. */
#include "instructions.h"

namespace instruction {

using namespace emulator;

/* 8 x 8 matrices: of eight lanes, lane i tells where row i of theirs starts. Then each lane has
 * elements 2 * (lane % 4) and the next of row lane / 4, or of that column. */
struct load_of_lane {
    int count;
    bool transposed;
    uint32_t *const *to;
    uint32_t address;
};

static void load_all(void **all) {
    const load_of_lane **lanes = (const load_of_lane **)all;
    for (int i = 0; i < lanes[0]->count; i++) {
        uint16_t matrix[8][8];
        for (int row = 0; row < 8; row++)
            memcpy(matrix[row], shared_at(lanes[i * 8 + row]->address, 16, 16), 16);
        for (int lane = 0; lane < 32; lane++) {
            const int row = lane / 4, column = lane % 4 * 2;
            const bool turned = lanes[lane]->transposed;
            const uint32_t low = turned ? matrix[column][row] : matrix[row][column];
            const uint32_t high = turned ? matrix[column + 1][row] : matrix[row][column + 1];
            *lanes[lane]->to[i] = low | high << 16;
        }
    }
}

void load_matrices(int count, bool transposed, uint32_t *const *to, uint32_t address) {
    load_of_lane own = {count, transposed, to, address};
    together(transposed ? "ldmatrix.trans" : "ldmatrix", &own, load_all);
}

struct store_of_lane {
    uint32_t address, from[4];
};

static void store_all(void **all) {
    const store_of_lane **lanes = (const store_of_lane **)all;
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < 32; lane++) {
            const uint32_t row = lanes[i * 8 + lane / 4]->address;
            shared_at(row, 16, 16);
            memcpy(shared_at(row + (uint32_t)lane % 4 * 4, 4, 4), &lanes[lane]->from[i], 4);
            note_write(row, thread_together() / 32 * 32 + lane);
        }
}

void stmatrix_4(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    store_of_lane own = {address, {a, b, c, d}};
    together("stmatrix", &own, store_all);
}

/* Lane 4 * r + t has rows r and r + 8 of a and c, columns r of b; of each, elements 2 * t and the
 * next, and of a and b those 8 further. */
struct fragments {
    bool f16;
    int depth;
    float *const *c;
    const uint32_t *a, *b;
};

static void multiply_all(void **all) {
    const fragments **lanes = (const fragments **)all;
    const bool f16 = lanes[0]->f16;
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++)
        for (int k = 0; k < lanes[0]->depth; k++) {
            if (k % 8 / 2 != lane % 4) continue;
            for (int half = 0; half < 2; half++)
                a[lane / 4 + 8 * half][k] = value(f16, lanes[lane]->a[k / 8 * 2 + half], k % 2);
            b[k][lane / 4] = value(f16, lanes[lane]->b[k / 8], k % 2);
        }
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            float &sum = *lanes[row % 8 * 4 + column / 2]->c[row / 8 * 2 + column % 2];
            double total = sum;
            for (int k = 0; k < lanes[0]->depth; k++) total += (double)a[row][k] * b[k][column];
            sum = (float)total;
        }
}

void multiply(bool f16, int depth, float *const *c, const uint32_t *a, const uint32_t *b) {
    fragments own = {f16, depth, c, a, b};
    together(f16 ? "mma, f16" : "mma, bf16", &own, multiply_all);
}

} // namespace instruction
