/* Calls whose kernels are worth compiling ahead of time. */
#ifndef COMPILE_CALLS_H
#define COMPILE_CALLS_H

#include "case.h"

typedef enum {
    CALLS_CASES, /* the rows of cases.def: every option, alone and with those that it meets */
    CALLS_ALL    /* every combination of dtype, usual head dimensions, few or many rows, scores,
                    precision and paging */
} call_list;

int calls_count(call_list list);

/* Call `index` of a list, for a GPU; case_free frees it. Call 0 has no rows, so that it needs
 * nothing but what every call needs. */
void calls_make(attention_case *c, call_list list, int index);

#endif
