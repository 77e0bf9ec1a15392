/* One query over one key: the output is that key's value. */
#include <stdio.h>
#include <tallow.h>

int main(void) {
    float q[8] = {1}, k[8] = {2}, v[8] = {3, 1, 4, 1, 5, 9, 2, 6}, out[8] = {0};
    const tallow_tensor row = {.shape = {1, 1, 1, 8}, .dtype = TALLOW_F32};
    tallow_attention_params p = {.q = row, .k = row, .v = row, .out = row};
    p.q.data = q;
    p.k.data = k;
    p.v.data = v;
    p.out.data = out;
    if (tallow_attention(&p, sizeof p) != TALLOW_OK) {
        fprintf(stderr, "%s\n", tallow_last_error());
        return 1;
    }
    for (int i = 0; i < 8; i++) {
        if (out[i] != v[i]) return 1;
    }
    return tallow_version() !=
           TALLOW_VERSION_MAJOR * 1000000 + TALLOW_VERSION_MINOR * 1000 + TALLOW_VERSION_PATCH;
}
