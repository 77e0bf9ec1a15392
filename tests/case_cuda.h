/* Cases on a GPU: memory moved to it and back through the driver alone. */
#ifndef CASE_CUDA_H
#define CASE_CUDA_H

#include "case.h"

/* Makes the first GPU's primary context current on this thread; false: there is no GPU, and `why`
 * says why. */
bool case_cuda_open(case_device *device, char *why, size_t why_size);

/* An entry of the driver, checked to exist. */
void *case_cuda_function(const char *name);

#endif
