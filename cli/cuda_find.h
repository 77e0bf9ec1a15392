/* Libraries of CUDA, opened at run time. */
#ifndef CUDA_FIND_H
#define CUDA_FIND_H

/* Opens `name`, such as "libcublas", from where the loader looks, CUDA_HOME, /usr/local/cuda or a
 * Python wheel; null: it is in none of these. It stays open. */
void *cuda_find_library(const char *name);

/* Stores a function of the library at `pointer`, null when it lacks it; returns whether it has. */
int cuda_find_function(void *library, const char *name, void *pointer);

#endif
