/* The CPU backend: runs a plan on threads. */
#ifndef TALLOW_CPU_H
#define TALLOW_CPU_H

#include "plan.h"

tallow_status tallow_cpu_attention(const problem *p, const plan *plan);
tallow_status tallow_cpu_rotary(const rotary_problem *p);
tallow_status tallow_cpu_merge(const merge_problem *p);

#endif
