/* What a GPU does in its own time: cp.async, bulk copies, wgmma. */
#ifndef EMULATOR_ASYNCHRONOUS_H
#define EMULATOR_ASYNCHRONOUS_H

namespace emulator {

/* The blocks of a cluster; whether the launch before theirs may still run. */
void start_blocks(unsigned threads, bool may_overlap);
void end_blocks(); /* fails if something is still under way */

/* Something that was started may end now; what is to be late, not before all threads are stuck. */
void finish_something(bool stuck);

} // namespace emulator

#endif
