/* The wall clock of a process, as somebody else tells it. Loaded before the C library by LD_PRELOAD, it stands in for the
 * functions that read the wall clock; all other clocks are passed through. A server that would go by the processor's own
 * counter between two looks at the clock is not told that there is one.
 *
 * The file that TEST_CLOCK names says what the clock shows, and may be rewritten while the process runs: see clock.rs.
 * What reads a clock allocates nothing and looks up no symbol, so that it can be called from anywhere, also while the process
 * starts. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t SECOND = 1000000000;

/* At `real`, in nanoseconds of the machine's wall clock, the clock shows `shown`. From there it runs at `rate` millionths of
 * the machine's. */
struct line {
    int64_t real, shown, rate;
};

/* Whoever writes fills the line that is not in use, and then switches to it by counting on by one. */
struct file {
    unsigned char count;
    char unused[7];
    struct line lines[2];
};

static const volatile struct file *told;

__attribute__((constructor)) static void open_the_file(void) {
    const char *path = getenv("TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = mmap(NULL, sizeof(struct file), PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        abort();
    close(file);
    told = mapped;
}

static int64_t shown_now(void) {
    struct timespec time;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &time);
    int64_t real = time.tv_sec * SECOND + time.tv_nsec;
    if (!told)
        return real;
    /* A line that was written while it was read would be a mixture of two. */
    for (;;) {
        unsigned char count = __atomic_load_n(&told->count, __ATOMIC_ACQUIRE);
        const volatile struct line *used = &told->lines[count % 2];
        struct line line = {used->real, used->shown, used->rate};
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (count == __atomic_load_n(&told->count, __ATOMIC_RELAXED))
            return line.shown + (int64_t)((__int128)(real - line.real) * line.rate / 1000000);
    }
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)
        return syscall(SYS_clock_gettime, clock, time);
    int64_t now = shown_now();
    *time = (struct timespec){now / SECOND, now % SECOND};
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    int64_t now = shown_now();
    *time = (struct timeval){now / SECOND, now % SECOND / 1000};
    return 0;
}

time_t time(time_t *seconds) {
    time_t now = shown_now() / SECOND;
    if (seconds)
        *seconds = now;
    return now;
}

typedef FILE *opens(const char *restrict, const char *restrict);

/* What the processor says of its counter is not there. */
static FILE *open_but(const char *name, const char *path, const char *mode) {
    if (strcmp(path, "/proc/cpuinfo") == 0) {
        errno = ENOENT;
        return NULL;
    }
    opens *real = (opens *)dlsym(RTLD_NEXT, name);
    return real(path, mode);
}

FILE *fopen(const char *restrict path, const char *restrict mode) {
    return open_but("fopen", path, mode);
}

FILE *fopen64(const char *restrict path, const char *restrict mode) {
    return open_but("fopen64", path, mode);
}
