/* What a GPU does in its own time: cp.async, bulk copies, wgmma. */
#ifndef EMULATOR_ASYNCHRONOUS_H
#define EMULATOR_ASYNCHRONOUS_H

namespace emulator {

void start_block(unsigned threads);
void end_block(); /* fails if something is still under way */

/* Something that was started may end now; what is to be late, not before all threads are stuck. */
void finish_something(bool stuck);

} // namespace emulator

#endif
