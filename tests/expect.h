/* Expectations that count and say what failed. A test's main ends with `return expect_report();`.
 */
#ifndef EXPECT_H
#define EXPECT_H

#include <stdio.h>

static int expect_failures;

/* After twenty failures only the count grows. */
#define EXPECT(condition, ...)                                                                     \
    do {                                                                                           \
        if (!(condition) && ++expect_failures <= 20) {                                             \
            fprintf(stderr, "%s:%d: not %s: ", __FILE__, __LINE__, #condition);                    \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
        }                                                                                          \
    } while (0)

static inline int expect_report(void) {
    if (expect_failures) fprintf(stderr, "%d expectations failed\n", expect_failures);
    return expect_failures != 0;
}

#endif
