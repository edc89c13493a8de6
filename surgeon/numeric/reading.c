/* Reads of many short runs of a file, without a call from Python for each. */
#define _POSIX_C_SOURCE 200809L /* for pread */
#define _FILE_OFFSET_BITS 64
#include "kernels.h"

#if defined(_WIN32)
EXPORT int surgeon_read_runs(int descriptor, int64_t offset, int64_t pitch, size_t run_bytes,
                             size_t runs, char *to)
{
    (void)descriptor, (void)offset, (void)pitch, (void)run_bytes, (void)runs, (void)to;
    return 0;
}
#else
#include <unistd.h>

/* Put runs, `pitch` bytes apart, one behind the other; returns whether all were there at once. */
EXPORT int surgeon_read_runs(int descriptor, int64_t offset, int64_t pitch, size_t run_bytes,
                             size_t runs, char *to)
{
    for (size_t run = 0; run < runs; run++, offset += pitch, to += run_bytes)
        if (pread(descriptor, to, run_bytes, offset) != (ssize_t)run_bytes)
            return 0;
    return 1;
}
#endif
