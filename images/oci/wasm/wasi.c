// SPDX-License-Identifier: Apache-2.0
// What a program in C uses of WASI preview 1, an area at a time: the first argument names it. Ends
// with 0 when all holds.

#include "wasi.h"

#include <math.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <wasi/api.h>

static const int64_t SECOND = 1000000000;

void failed(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: %s (the last error was: %s)\n", file, line, what, strerror(errno));
    exit(1);
}

void tell(const char *name, bool done) { printf("%s: %s\n", name, done ? "done" : strerror(errno)); }

static void surroundings(char **arguments) {
    CHECK(strcmp(arguments[0], "one") == 0);
    CHECK(strcmp(arguments[1], "two words") == 0);
    CHECK(strcmp(arguments[2], "") == 0);
    CHECK(strcmp(arguments[3], "größe") == 0);
    CHECK(arguments[4] == NULL);
    CHECK(strcmp(getenv("COLOUR"), "blue=green") == 0);
    CHECK(strcmp(getenv("EMPTY"), "") == 0);
    CHECK(getenv("NONESUCH") == NULL);
    CHECK(setenv("NONESUCH", "there", 1) == 0 && strcmp(getenv("NONESUCH"), "there") == 0);
}

// What is open: the streams, and the one directory that everything is below.
static void descriptors(char **arguments) {
    (void)arguments;
    __wasi_prestat_t opened;
    __wasi_fdstat_t status;
    char name[2] = {0};
    CHECK(__wasi_fd_prestat_get(3, &opened) == 0 && opened.tag == __WASI_PREOPENTYPE_DIR && opened.u.dir.pr_name_len == 1);
    CHECK(__wasi_fd_prestat_dir_name(3, (uint8_t *)name, 1) == 0 && strcmp(name, "/") == 0);
    for (int number = 4; number < 100; number++) {
        CHECK(__wasi_fd_prestat_get(number, &opened) == __WASI_ERRNO_BADF);
        CHECK(__wasi_fd_fdstat_get(number, &status) == __WASI_ERRNO_BADF);
    }
    for (int number = 0; number < 3; number++) printf("%d is %s\n", number, isatty(number) ? "a terminal" : "no terminal");
    fflush(stdout);
    // Another number for the same stream, which takes the place of the old one.
    CHECK(__wasi_fd_renumber(1, 2) == 0);
    CHECK(__wasi_fd_fdstat_get(1, &status) == __WASI_ERRNO_BADF);
    CHECK(write(2, "to standard output\n", 19) == 19);
    CHECK(close(0) == 0 && __wasi_fd_fdstat_get(0, &status) == __WASI_ERRNO_BADF);
}

static void copy(char **arguments) {
    (void)arguments;
    char buffer[8192];
    ssize_t size;
    while ((size = read(0, buffer, sizeof buffer)) > 0)
        for (ssize_t written = 0, now; written < size; written += now)
            CHECK((now = write(1, buffer + written, size - written)) > 0);
    CHECK(size == 0);
}

// Waits in vain, says so, and waits again until there is something to be read.
static void await(char **arguments) {
    (void)arguments;
    char text[64];
    struct pollfd input = {.fd = 0, .events = POLLIN};
    CHECK(poll(&input, 1, 50) == 0);
    printf("nothing yet\n");
    fflush(stdout);
    CHECK(poll(&input, 1, -1) == 1 && input.revents & POLLIN);
    ssize_t size = read(0, text, sizeof text);
    CHECK(size > 0);
    printf("then %.*s", (int)size, text);
}

static void streams(char **arguments) {
    (void)arguments;
    for (int number = 0; number < 10000; number++) {
        printf("standard output %d\n", number);
        fprintf(stderr, "standard error %d\n", number);
    }
}

static int64_t now(clockid_t clock) {
    struct timespec time;
    CHECK(clock_gettime(clock, &time) == 0);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void clocks(char **arguments) {
    (void)arguments;
    int64_t first = now(CLOCK_MONOTONIC), last = first;
    for (int number = 0; number < 10000; number++) {
        int64_t next = now(CLOCK_MONOTONIC);
        CHECK(next >= last);
        last = next;
    }
    CHECK(last > first);
    struct timespec step;
    CHECK(clock_getres(CLOCK_MONOTONIC, &step) == 0 && step.tv_sec == 0 && step.tv_nsec > 0);
    CHECK(clock_getres(CLOCK_REALTIME, &step) == 0 && step.tv_sec == 0 && step.tv_nsec > 0);
    // The caller knows better what time it is.
    printf("%lld\n", (long long)now(CLOCK_REALTIME));
}

static void chance(char **arguments) {
    (void)arguments;
    unsigned char one[256], other[256];
    CHECK(getentropy(one, sizeof one) == 0 && getentropy(other, sizeof other) == 0);
    CHECK(memcmp(one, other, sizeof one) != 0);
    static unsigned char many[1 << 16];
    bool seen[256] = {0};
    CHECK(__wasi_random_get(many, sizeof many) == 0);
    for (size_t place = 0; place < sizeof many; place++) seen[many[place]] = true;
    for (int value = 0; value < 256; value++) CHECK(seen[value]);
}

static __wasi_subscription_t after(int64_t time, bool absolute, __wasi_userdata_t name) {
    return (__wasi_subscription_t){
        .userdata = name,
        .u = {.tag = __WASI_EVENTTYPE_CLOCK,
              .u.clock = {.id = __WASI_CLOCKID_MONOTONIC,
                          .timeout = time,
                          .flags = absolute ? __WASI_SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME : 0}},
    };
}

static void waiting(char **arguments) {
    (void)arguments;
    int64_t start = now(CLOCK_MONOTONIC);
    CHECK(nanosleep(&(struct timespec){.tv_nsec = SECOND / 5}, NULL) == 0);
    CHECK(now(CLOCK_MONOTONIC) - start >= SECOND / 5);
    start = now(CLOCK_REALTIME);
    CHECK(usleep(20000) == 0);
    CHECK(now(CLOCK_REALTIME) - start >= SECOND / 50);

    // The sooner of two ends it, and is the only one that is reported.
    start = now(CLOCK_MONOTONIC);
    __wasi_subscription_t both[] = {after(1000 * SECOND, false, 1), after(start + SECOND / 10, true, 2)};
    __wasi_event_t events[2];
    __wasi_size_t count = 0;
    CHECK(__wasi_poll_oneoff(both, events, 2, &count) == 0);
    CHECK(now(CLOCK_MONOTONIC) - start >= SECOND / 10);
    CHECK(count == 1 && events[0].userdata == 2 && events[0].error == 0 && events[0].type == __WASI_EVENTTYPE_CLOCK);

    struct pollfd output = {.fd = 1, .events = POLLOUT};
    CHECK(poll(&output, 1, 1000 * 1000) == 1 && output.revents == POLLOUT);
}

// Takes so many MiB at once, and has all of them.
static void memory(char **arguments) {
    size_t size = (size_t)atoi(arguments[0]) << 20;
    unsigned char *block = malloc(size);
    if (!block) {
        printf("refused\n");
        return;
    }
    for (size_t place = 0; place < size; place += 4096) block[place] = place >> 12;
    for (size_t place = 0; place < size; place += 4096) CHECK(block[place] == (unsigned char)(place >> 12));
    free(block);
    // Again, without taking more: what was freed is there to be used.
    block = calloc(size, 1);
    CHECK(block);
    for (size_t place = 0; place < size; place += 4096) CHECK(block[place] == 0);
    printf("taken\n");
}

// Each call has a KiB on the stack, which its caller looks at after it.
static int64_t deep(int depth) {
    volatile int64_t frame[128];
    for (int place = 0; place < 128; place++) frame[place] = depth;
    int64_t sum = depth ? deep(depth - 1) : 0;
    for (int place = 0; place < 128; place++) sum += frame[place];
    return sum;
}

static void stack(char **arguments) {
    (void)arguments;
    CHECK(deep(1023) == 128ll * 1023 * 1024 / 2);
}

static void prints(const char *expected, const char *format, double number) {
    char text[64];
    snprintf(text, sizeof text, format, number);
    if (strcmp(text, expected) != 0) fprintf(stderr, "%s is printed as %s\n", expected, text);
    CHECK(strcmp(text, expected) == 0);
}

static void numbers(char **arguments) {
    // By way of the arguments, so that it is not the compiler that calculates.
    double third = 1 / strtod(arguments[0], NULL), zero = third - third;
    prints("0.333333", "%f", third);
    prints("0.33333333333333331", "%.17g", third);
    prints("3.333e-01", "%.3e", third);
    prints("0x1.5555555555555p-2", "%a", third);
    prints("0.30000000000000004", "%.17g", third * 3 * 0.1 + 0.2);
    prints("-0", "%g", -zero);
    prints("inf", "%g", 1 / zero);
    prints("nan", "%g", fabs(zero / zero));
    prints("1.7976931348623157e+308", "%.17g", strtod("1.7976931348623157e308", NULL) * (third * 3));
    prints("4.9406564584124654e-324", "%.17g", strtod("5e-324", NULL));
    prints("0.57735026918962573", "%.17g", sqrt(third));
    prints("0.32719469679615221", "%.17g", sin(third));
    prints("1.3956124250860895", "%.17g", exp(third));
    // Halves go to the even one.
    prints("2", "%g", nearbyint(third * 7.5));
    prints("-1", "%g", floor(-third));
    prints("16777216", "%.0f", (float)(third * 50331651));
    CHECK((unsigned)(third * 9e9) == 3000000000u && (int64_t)(third * -9e18) == -3000000000000000000);
    CHECK(atoi(arguments[0]) % -2 == 1 && -7 / atoi(arguments[0]) == -2 && INT64_MAX / atoi(arguments[0]) == 3074457345618258602);
}

static void farewell(void) { printf("said at the end"); }

static void ending(char **arguments) {
    // Nothing is lost that is still in a buffer, and who wants to be told is.
    atexit(farewell);
    printf("in a buffer, ");
    exit(atoi(arguments[0]));
}

static void at_once(char **arguments) {
    atexit(farewell);
    printf("in a buffer");
    _Exit(atoi(arguments[0]));
}

static void trap(char **arguments) {
    volatile int zero = 0;
    void (*volatile nowhere)(void) = (void (*)(void))0x7fffff;
    // The last byte that there can be.
    volatile char *volatile end = (volatile char *)0xffffffff;
    if (strcmp(arguments[0], "abort") == 0) abort();
    if (strcmp(arguments[0], "divide") == 0) zero = 7 / zero;
    if (strcmp(arguments[0], "bounds") == 0) *end = 1;
    if (strcmp(arguments[0], "call") == 0) nowhere();
}

static const struct {
    const char *name;
    void (*run)(char **arguments);
} AREAS[] = {
    {"surroundings", surroundings},
    {"descriptors", descriptors},
    {"copy", copy},
    {"await", await},
    {"streams", streams},
    {"clocks", clocks},
    {"chance", chance},
    {"waiting", waiting},
    {"memory", memory},
    {"stack", stack},
    {"numbers", numbers},
    {"ending", ending},
    {"at-once", at_once},
    {"trap", trap},
    {"files", files},
    {"directories", directories},
    {"links", links},
    {"list", list},
    {"show", show},
    {"change", change},
};

int main(int count, char **arguments) {
    CHECK(count > 1);
    // A code that is returned, in place of an area.
    if (arguments[1][0] >= '0' && arguments[1][0] <= '9') return atoi(arguments[1]);
    for (size_t area = 0; area < sizeof AREAS / sizeof *AREAS; area++)
        if (strcmp(AREAS[area].name, arguments[1]) == 0) {
            AREAS[area].run(arguments + 2);
            return 0;
        }
    fprintf(stderr, "there is no area %s\n", arguments[1]);
    return 2;
}
