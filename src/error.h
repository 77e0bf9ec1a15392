/* The calling thread's message. Every failure goes through tallow_fail. */
#ifndef TALLOW_ERROR_H
#define TALLOW_ERROR_H

#include "tallow.h"

/* Records the formatted message and returns `status`, so that callers write `return
 * tallow_fail(...)`. */
tallow_status tallow_fail(tallow_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Forgets the message: every exported function that can fail starts with this. */
void tallow_clear_error(void);

#endif
