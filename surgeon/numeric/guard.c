/* What a mapped file holds no more reads as zeros instead of ending the process.
 *
 * A file that is cut off while it is mapped answers reads behind its end with SIGBUS. Whoever reads
 * a mapped file compares its size afterwards, and says what happened; see formats/files.py.
 */
#define _GNU_SOURCE
#include "kernels.h"

#if defined(__linux__)
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

static uintptr_t page_bytes;

static void on_bus_error(int number, siginfo_t *about, void *context)
{
    (void)context;
    if (about->si_code == BUS_ADRERR) {
        void *page = (void *)((uintptr_t)about->si_addr & ~(page_bytes - 1));
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        if (mmap(page, page_bytes, PROT_READ, flags, -1, 0) != MAP_FAILED)
            return; /* the read is tried again */
    }
    signal(number, SIG_DFL);
}

/* For a process that is surgeon's own; returns whether it is guarded. */
EXPORT int surgeon_guard(void)
{
    struct sigaction action = {0};
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    return sigaction(SIGBUS, &action, 0) == 0;
}
#else
EXPORT int surgeon_guard(void) { return 0; }
#endif
