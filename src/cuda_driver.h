/* The CUDA driver and NVRTC of this machine. Both are opened at run time, so that one binary serves
 * machines with and without them; cuda_driver.c is the only file that names their symbols. */
#ifndef TALLOW_CUDA_DRIVER_H
#define TALLOW_CUDA_DRIVER_H

enum { CUDA_MAX_GPUS = 16 };

typedef struct {
    int driver; /* CUDA version that the driver serves, such as 12080; 0: no driver */
    int nvrtc;  /* version of NVRTC, the same way; 0: none */
    int gpus;
    struct {
        char name[96];
        int major, minor; /* compute capability */
    } gpu[CUDA_MAX_GPUS];
    char no_gpu[192]; /* why gpus, or nvrtc, is 0 */
    char no_nvrtc[192];
} cuda_facts;

void tallow_cuda_find(cuda_facts *out);

#endif
