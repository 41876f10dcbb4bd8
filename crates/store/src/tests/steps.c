/* Counts what a process does to the files of one folder, and at one step ends the process or says that the disk is full.
 *
 * For tests, by LD_PRELOAD: COVEY_STEPS_IN names the folder, COVEY_STEP the step (1 is the first), COVEY_STEP_DOES what comes of
 * it: `kill` (before the call), `tear` (half of a write, then the end), `full` (this call finds no room) or `full-on` (so does
 * each after it). Where the step was reached, the file COVEY_STEP_REACHED is made. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum fate { GO_ON, TEAR, FULL };

static atomic_int steps;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int path_is_here(const char *path) {
    const char *folder = getenv("COVEY_STEPS_IN");
    return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int file_is_here(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return path_is_here(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* One step; `needs_room`: it may fail for lack of room. */
static enum fate step(int needs_room) {
    const char *wanted = getenv("COVEY_STEP"), *does = getenv("COVEY_STEP_DOES"), *reached = getenv("COVEY_STEP_REACHED");
    int at = atomic_fetch_add(&steps, 1) + 1, is = wanted ? atoi(wanted) : 0;
    if (!is || !does || at < is) return GO_ON;
    if (at == is && reached) close(REAL(open)(reached, O_CREAT | O_WRONLY, 0600));
    if (at == is && !strcmp(does, "kill")) die();
    if (at == is && !strcmp(does, "tear")) return TEAR;
    if (needs_room && (!strcmp(does, "full-on") || (at == is && !strcmp(does, "full")))) {
        errno = ENOSPC;
        return FULL;
    }
    return GO_ON;
}

#define WRITES(name, offset)                                                             \
    ssize_t name(int fd, const void *body, size_t length, offset at) {                   \
        enum fate fate = file_is_here(fd) ? step(1) : GO_ON;                             \
        if (fate == FULL) return -1;                                                     \
        if (fate == TEAR) REAL(name)(fd, body, length / 2, at), die();                   \
        return REAL(name)(fd, body, length, at);                                         \
    }
WRITES(pwrite, off_t)
WRITES(pwrite64, off64_t)

ssize_t write(int fd, const void *body, size_t length) {
    enum fate fate = file_is_here(fd) ? step(1) : GO_ON;
    if (fate == FULL) return -1;
    if (fate == TEAR) REAL(write)(fd, body, length / 2), die();
    return REAL(write)(fd, body, length);
}

#define ON_FILE(name, needs_room, declared, given)                                       \
    int name declared {                                                                  \
        enum fate fate = file_is_here(fd) ? step(needs_room) : GO_ON;                    \
        if (fate == FULL) return -1;                                                     \
        if (fate == TEAR) die();                                                         \
        return REAL(name) given;                                                         \
    }
ON_FILE(fsync, 1, (int fd), (fd))
ON_FILE(fdatasync, 1, (int fd), (fd))
ON_FILE(ftruncate, 1, (int fd, off_t length), (fd, length))
ON_FILE(ftruncate64, 1, (int fd, off64_t length), (fd, length))
ON_FILE(fchmod, 0, (int fd, mode_t mode), (fd, mode))

#define ON_PATH(name, needs_room, declared, given)                                       \
    int name declared {                                                                  \
        enum fate fate = path_is_here(path) ? step(needs_room) : GO_ON;                  \
        if (fate == FULL) return -1;                                                     \
        if (fate == TEAR) die();                                                         \
        return REAL(name) given;                                                         \
    }
ON_PATH(unlink, 0, (const char *path), (path))
ON_PATH(chmod, 0, (const char *path, mode_t mode), (path, mode))
ON_PATH(rename, 1, (const char *path, const char *to), (path, to))

#define OPENS(name)                                                                      \
    int name(const char *path, int flags, ...) {                                         \
        va_list rest;                                                                    \
        va_start(rest, flags);                                                           \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;          \
        va_end(rest);                                                                    \
        enum fate fate = flags & (O_CREAT | O_TRUNC) && path_is_here(path) ? step(1) : GO_ON; \
        if (fate == FULL) return -1;                                                     \
        if (fate == TEAR) die();                                                         \
        return REAL(name)(path, flags, mode);                                            \
    }
OPENS(open)
OPENS(open64)
