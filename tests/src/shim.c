/* Loaded before the C library: shifts the wall clock, fails writes and syncs of the files below one
 * folder, as the numbers in a shared file say. Everything else goes through. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CLOCK_SHIFT, WRITE_ERRNO, SYNC_ERRNO, KILL_AT, CALLS, N_SWITCHES };
enum { BEFORE_WRITE = 1, BEFORE_SYNC, AFTER_SYNC };

static volatile int64_t none[N_SWITCHES];
static volatile int64_t *switches = none;
static const char *disk;

__attribute__((constructor)) static void load(void) {
    const char *path = getenv("FAULT_SWITCHES");
    disk = getenv("FAULT_DISK");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(NULL, N_SWITCHES * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) switches = map;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void count(void) { __sync_fetch_and_add(&switches[CALLS], 1); }

int clock_gettime(clockid_t clock, struct timespec *time) {
    static __typeof__(&clock_gettime) real;
    if (!real) real = REAL(clock_gettime);
    int result = real(clock, time);
    int wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
    if (result == 0 && wall && switches[CLOCK_SHIFT]) {
        time->tv_sec += switches[CLOCK_SHIFT];
        count();
    }
    return result;
}

int gettimeofday(struct timeval *restrict value, void *restrict zone) {
    struct timespec time;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &time) != 0) return -1;
    value->tv_sec = time.tv_sec;
    value->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (out) *out = time.tv_sec;
    return time.tv_sec;
}

static int is_on_disk(int fd) {
    char link[64], path[4096];
    if (!disk) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return strncmp(path, disk, strlen(disk)) == 0;
}

/* Whether a call on fd is to fail, with errno set. */
static int fails(int fd, int which) {
    int number = (int)switches[which];
    if (!number || !is_on_disk(fd)) return 0;
    count();
    errno = number;
    return 1;
}

/* The power of kill -9, at this very place. */
static void die_at(int fd, int place) {
    if (switches[KILL_AT] == place && is_on_disk(fd)) raise(SIGKILL);
}

ssize_t write(int fd, const void *bytes, size_t n) {
    static __typeof__(&write) real;
    if (!real) real = REAL(write);
    die_at(fd, BEFORE_WRITE);
    return fails(fd, WRITE_ERRNO) ? -1 : real(fd, bytes, n);
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    static __typeof__(&writev) real;
    if (!real) real = REAL(writev);
    die_at(fd, BEFORE_WRITE);
    return fails(fd, WRITE_ERRNO) ? -1 : real(fd, parts, n);
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
    static __typeof__(&pwrite64) real;
    if (!real) real = REAL(pwrite64);
    die_at(fd, BEFORE_WRITE);
    return fails(fd, WRITE_ERRNO) ? -1 : real(fd, bytes, n, at);
}

static int sync_with(int (*real)(int), int fd) {
    die_at(fd, BEFORE_SYNC);
    if (fails(fd, SYNC_ERRNO)) return -1;
    int result = real(fd);
    die_at(fd, AFTER_SYNC);
    return result;
}

int fsync(int fd) {
    static __typeof__(&fsync) real;
    if (!real) real = REAL(fsync);
    return sync_with(real, fd);
}

int fdatasync(int fd) {
    static __typeof__(&fdatasync) real;
    if (!real) real = REAL(fdatasync);
    return sync_with(real, fd);
}
