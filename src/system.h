/* What this machine offers, in words. */
#ifndef TALLOW_SYSTEM_H
#define TALLOW_SYSTEM_H

#include <stddef.h>

#include "cpu_features.h"

/* Writes tallow_system_describe's lines; ends with a NUL, cut to `size` >= 1. */
void tallow_system_text(cpu_level level, char *text, size_t size);

#endif
