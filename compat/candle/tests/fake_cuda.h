/* A driver of one GPU whose memory is the host's and whose kernels do nothing. It counts what it is
 * asked for, and can be told to refuse. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stdatomic.h>

typedef struct {
    atomic_int attribute_fails, allocation_fails, launch_fails;
    atomic_int pools, allocated, freed, launched;
    atomic_ullong kept;     /* most bytes that a pool keeps unused */
    atomic_ullong room;     /* bytes of every allocation from any pointer on; 0: not known */
    atomic_ullong key_rows; /* of the latest tensor map of keys or values */
} fake_cuda;

#endif
