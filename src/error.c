#include "error.h"

#include <stdarg.h>
#include <stdio.h>

/* Long enough for the head of a compiler log. */
static _Thread_local char message[4096];

tallow_status tallow_fail(tallow_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return status;
}

void tallow_clear_error(void) { message[0] = '\0'; }

const char *tallow_last_error(void) { return message; }

const char *tallow_status_name(tallow_status status) {
    switch (status) {
    case TALLOW_OK: return "TALLOW_OK";
    case TALLOW_INVALID_ARGUMENT: return "TALLOW_INVALID_ARGUMENT";
    case TALLOW_UNSUPPORTED: return "TALLOW_UNSUPPORTED";
    case TALLOW_OUT_OF_MEMORY: return "TALLOW_OUT_OF_MEMORY";
    case TALLOW_WORKSPACE_TOO_SMALL: return "TALLOW_WORKSPACE_TOO_SMALL";
    case TALLOW_NO_DEVICE: return "TALLOW_NO_DEVICE";
    case TALLOW_NO_COMPILER: return "TALLOW_NO_COMPILER";
    case TALLOW_COMPILE_FAILED: return "TALLOW_COMPILE_FAILED";
    case TALLOW_DEVICE_ERROR: return "TALLOW_DEVICE_ERROR";
    }
    return "unknown tallow_status";
}
