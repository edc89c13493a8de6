/* Preloaded into a run: fails its n-th call that concerns a folder, or kills it there.

   attack_arm(root, log, at, number) begins to count: call `at` (from 1; 0 for none) fails with the
   error `number`, or kills the process where that is 0. Calls are logged by name, one a line.
   attack_lack(flags) takes away: 1 the exchange of two names, 2 hard links, 4 locks. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static int log_fd = -1, armed, lacking;
static long at, count;
static int number;

void attack_lack(int flags) { lacking = flags; }

void attack_arm(const char *folder, const char *log, long call, int error)
{
    armed = 0;
    count = 0;
    at = call;
    number = error;
    strncpy(root, folder, sizeof root - 1);
    log_fd = *log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    armed = 1;
}

static int inside(const char *path)
{
    char whole[PATH_MAX];
    if (!path)
        return 0;
    if (path[0] != '/') { /* runs stand in the folder */
        if (!getcwd(whole, sizeof whole))
            return 0;
        return !strncmp(whole, root, strlen(root));
    }
    return !strncmp(path, root, strlen(root));
}

static int of(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return inside(path);
}

/* Returns 1 where the call is to fail; errno is set. */
static int hit(const char *name)
{
    count++;
    if (log_fd >= 0) {
        syscall(SYS_write, log_fd, name, strlen(name));
        syscall(SYS_write, log_fd, "\n", 1);
    }
    if (count != at)
        return 0;
    if (!number)
        syscall(SYS_kill, getpid(), SIGKILL);
    errno = number;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FD(result, name, parameters, arguments, fd)                                            \
    result name parameters                                                                        \
    {                                                                                             \
        if (armed && of(fd) && hit(#name))                                                        \
            return -1;                                                                            \
        return REAL(name) arguments;                                                              \
    }
#define ON_PATH(result, name, parameters, arguments, path)                                        \
    result name parameters                                                                        \
    {                                                                                             \
        if (armed && inside(path) && hit(#name))                                                  \
            return -1;                                                                            \
        return REAL(name) arguments;                                                              \
    }

ON_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), fd)
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t o), (fd, data, size, o), fd)
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t o), (fd, data, size, o), fd)
ON_FD(ssize_t, copy_file_range,
      (int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags),
      (from, a, to, b, size, flags), to)
ON_FD(ssize_t, sendfile, (int to, int from, off_t *o, size_t size), (to, from, o, size), to)
ON_FD(ssize_t, sendfile64, (int to, int from, off64_t *o, size_t size), (to, from, o, size), to)
ON_FD(int, fsync, (int fd), (fd), fd)
ON_FD(int, fdatasync, (int fd), (fd), fd)
ON_FD(int, ftruncate, (int fd, off_t size), (fd, size), fd)
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size), fd)
ON_PATH(int, rename, (const char *a, const char *b), (a, b), a)
ON_PATH(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), a)
ON_PATH(int, mkdir, (const char *path, mode_t mode), (path, mode), path)
ON_PATH(int, unlink, (const char *path), (path), path)
ON_PATH(int, unlinkat, (int d, const char *path, int flags), (d, path, flags), path)
ON_PATH(int, rmdir, (const char *path), (path), path)

int renameat2(int d, const char *a, int e, const char *b, unsigned flags)
{
    if (armed && (lacking & 1) && flags) {
        errno = EINVAL;
        return -1;
    }
    if (armed && inside(a) && hit("renameat2"))
        return -1;
    return (int)syscall(SYS_renameat2, d, a, e, b, flags);
}

int link(const char *a, const char *b)
{
    if (armed && inside(b) && hit("link"))
        return -1;
    if (armed && (lacking & 2)) {
        errno = EPERM;
        return -1;
    }
    return REAL(link)(a, b);
}

int linkat(int d, const char *a, int e, const char *b, int flags)
{
    if (armed && inside(b) && hit("linkat"))
        return -1;
    if (armed && (lacking & 2)) {
        errno = EPERM;
        return -1;
    }
    return REAL(linkat)(d, a, e, b, flags);
}

int flock(int fd, int operation)
{
    if (armed && of(fd) && hit("flock"))
        return -1;
    if (armed && (lacking & 4)) {
        errno = ENOLCK;
        return -1;
    }
    return REAL(flock)(fd, operation);
}

/* These return the error. */
int posix_fallocate(int fd, off_t offset, off_t size)
{
    if (armed && of(fd) && hit("posix_fallocate"))
        return errno;
    return REAL(posix_fallocate)(fd, offset, size);
}

int posix_fallocate64(int fd, off64_t offset, off64_t size)
{
    if (armed && of(fd) && hit("posix_fallocate64"))
        return errno;
    return REAL(posix_fallocate64)(fd, offset, size);
}

#define OPENING(name, parameters, arguments, path)                                                \
    int name parameters                                                                           \
    {                                                                                             \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                   \
        va_end(rest);                                                                             \
        if (armed && inside(path) && hit(#name))                                                  \
            return -1;                                                                            \
        return REAL(name) arguments;                                                              \
    }

OPENING(open, (const char *path, int flags, ...), (path, flags, mode), path)
OPENING(open64, (const char *path, int flags, ...), (path, flags, mode), path)
OPENING(openat, (int d, const char *path, int flags, ...), (d, path, flags, mode), path)
OPENING(openat64, (int d, const char *path, int flags, ...), (d, path, flags, mode), path)
