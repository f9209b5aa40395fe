// SPDX-License-Identifier: Apache-2.0
// What a program does with WasmEdge's sockets, an area at a time: the arguments name them. Says of
// each that it is done, and ends with 0 when all holds.

#include "ends.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wasi/api.h>

void failed(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: %s (the last error was: %s)\n", file, line, what, strerror(errno));
    exit(1);
}

// Both by the functions for sockets and by those for all descriptors.
static void streams(void) {
    int client, server;
    pair(&client, &server);
    CHECK(client != server);
    sends(client, "question");
    receives(server, "question");
    CHECK(write(server, "answer", 6) == 6);
    char bytes[64];
    CHECK(read(client, bytes, sizeof bytes) == 6 && memcmp(bytes, "answer", 6) == 0);

    struct buffer parts[] = {{"in ", 3}, {"", 0}, {"parts", 5}};
    uint32_t size = 0, flags = 0;
    DONE(sock_send(client, parts, 3, 0, &size));
    CHECK(size == 8);
    char one[4] = {0}, other[8] = {0};
    struct buffer into[] = {{one, 3}, {other, 7}};
    DONE(sock_recv(server, into, 2, 0, &size, &flags));
    CHECK(size == 8 && strcmp(one, "in ") == 0 && strcmp(other, "parts") == 0);

    // Again what was looked at.
    sends(client, "again");
    DONE(sock_recv(server, into + 1, 1, __WASI_RIFLAGS_RECV_PEEK, &size, &flags));
    receives(server, "again");

    uint8_t storage[128] = {0};
    struct address peer = {storage, 128};
    uint32_t port = 0;
    DONE(sock_getpeeraddr(server, &peer, &port));
    CHECK(storage[0] == INET4 && memcmp(storage + 2, LOCALHOST, 4) == 0 && port == port_of(client));

    // A stream that goes on, in many reads.
    static char block[1 << 15], back[1 << 15];
    for (size_t place = 0; place < sizeof block; place++) block[place] = place % 251;
    CHECK(write(client, block, sizeof block) == sizeof block);
    for (size_t place = 0; place < sizeof back;) {
        ssize_t now = read(server, back + place, sizeof back - place);
        CHECK(now > 0);
        place += now;
    }
    CHECK(memcmp(block, back, sizeof block) == 0);
    CHECK(close(client) == 0 && close(server) == 0);
}

static void datagrams(void) {
    int one = opened(DATAGRAM), other = opened(DATAGRAM);
    DONE(sock_bind(one, &HERE, 0));
    DONE(sock_bind(other, &HERE, 0));
    uint32_t size = 0, flags = 7, port = 0;
    struct buffer text = {"datagram", 8};
    for (int number = 0; number < 2; number++) {
        DONE(sock_send_to(one, &text, 1, &HERE, port_of(other), 0, &size));
        CHECK(size == 8);
    }
    char bytes[64] = {0};
    uint8_t storage[128] = {0};
    struct address from = {storage, 128};
    struct buffer buffer = {bytes, sizeof bytes};
    DONE(sock_recv_from(other, &buffer, 1, &from, 0, &port, &size, &flags));
    CHECK(size == 8 && strcmp(bytes, "datagram") == 0 && flags == 0);
    CHECK(storage[0] == INET4 && storage[1] == 0 && memcmp(storage + 2, LOCALHOST, 4) == 0);
    uint32_t sender = port_of(one);
    printf("the sender's port is %s\n", port == sender ? "right" : port == (sender >> 8 | (sender & 255) << 8) ? "reversed" : "wrong");
    buffer.size = 4;
    DONE(sock_recv_from(other, &buffer, 1, &from, 0, &port, &size, &flags));
    CHECK(size == 4 && flags == __WASI_ROFLAGS_RECV_DATA_TRUNCATED);

    // To the one address that it is connected to.
    DONE(sock_connect(other, &HERE, sender));
    CHECK(write(other, "back", 4) == 4);
    receives(one, "back");
    CHECK(close(one) == 0 && close(other) == 0);
}

static void set_nonblocking(int number) {
    int flags = fcntl(number, F_GETFL);
    CHECK(flags >= 0);
    CHECK(fcntl(number, F_SETFL, flags | O_NONBLOCK) == 0);
    CHECK(fcntl(number, F_GETFL) & O_NONBLOCK);
}

static short polled(int number, short events, int timeout) {
    struct pollfd one = {.fd = number, .events = events};
    int count = poll(&one, 1, timeout);
    CHECK(count >= 0 && count == (one.revents != 0));
    return one.revents;
}

// As a server works that waits for all at once.
static void events(void) {
    uint32_t port, size = 0, flags = 0;
    int listener = listening(&port);
    int32_t server = -1;
    CHECK(!(fcntl(listener, F_GETFL) & O_NONBLOCK));
    set_nonblocking(listener);
    ANSWERS(sock_accept(listener, &server), __WASI_ERRNO_AGAIN);
    CHECK(polled(listener, POLLIN, 0) == 0 && polled(listener, POLLIN, 50) == 0);
    int client = connected(port);
    CHECK(polled(listener, POLLIN, 10000) == POLLIN);
    DONE(sock_accept_v2(listener, __WASI_FDFLAGS_NONBLOCK, &server));
    printf("accepted: %s\n", fcntl(server, F_GETFL) & O_NONBLOCK ? "does not wait" : "waits");
    set_nonblocking(server);

    char bytes[64] = {0};
    struct buffer buffer = {bytes, sizeof bytes};
    ANSWERS(sock_recv(server, &buffer, 1, 0, &size, &flags), __WASI_ERRNO_AGAIN);
    CHECK(read(server, bytes, sizeof bytes) == -1 && errno == EAGAIN);
    // Of one that can be written to, and two that nothing is to be read from.
    struct pollfd all[] = {{.fd = listener, .events = POLLIN}, {.fd = server, .events = POLLIN}, {.fd = client, .events = POLLOUT}};
    CHECK(poll(all, 3, 10000) == 1 && all[2].revents == POLLOUT && !all[0].revents && !all[1].revents);
    sends(client, "event");
    all[2].events = POLLIN;
    CHECK(poll(all, 3, 10000) == 1 && all[1].revents == POLLIN && !all[0].revents && !all[2].revents);
    struct pollfd both = {.fd = server, .events = POLLIN | POLLOUT};
    CHECK(poll(&both, 1, -1) == 1 && both.revents == (POLLIN | POLLOUT));
    receives(server, "event");

    // Nobody reads, until there is no room: the kernel may still find some when it seems full.
    static char block[1 << 16];
    do {
        ssize_t written;
        do written = write(server, block, sizeof block);
        while (written > 0);
        CHECK(written == -1 && errno == EAGAIN);
    } while (polled(server, POLLOUT, 20));

    // A connection that comes to be while others are waited for.
    int late = opened(STREAM);
    set_nonblocking(late);
    int answer = sock_connect(late, &HERE, port);
    CHECK(answer == 0 || answer == __WASI_ERRNO_INPROGRESS);
    CHECK(polled(late, POLLOUT, 10000) == POLLOUT);
    int32_t error = -1;
    size = 4;
    DONE(sock_getsockopt(late, 0, ERROR, &error, &size));
    CHECK(error == 0 && size == 4);
    CHECK(close(late) == 0 && close(client) == 0 && close(server) == 0 && close(listener) == 0);
}

// Sockets beside a file and standard output, which are always ready.
static void mixed(void) {
    uint32_t port;
    int listener = listening(&port);
    struct pollfd all[] = {{.fd = listener, .events = POLLIN}, {.fd = 1, .events = POLLOUT}};
    CHECK(poll(all, 2, 10000) == 1 && all[1].revents == POLLOUT && !all[0].revents);
    int client = connected(port);
    CHECK(poll(all, 2, 10000) >= 1);
    CHECK(polled(listener, POLLIN, 10000) == POLLIN);
    CHECK(close(client) == 0 && close(listener) == 0);
}

// Standard input, from which something comes when the caller has read the line, and a socket.
static void input(void) {
    uint32_t port;
    int listener = listening(&port);
    struct pollfd all[] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    CHECK(poll(all, 2, 50) == 0);
    printf("waiting\n");
    fflush(stdout);
    CHECK(poll(all, 2, 20000) == 1 && all[1].revents & POLLIN && !all[0].revents);
    char text[64];
    ssize_t size = read(0, text, sizeof text);
    CHECK(size > 0);
    printf("then %.*s", (int)size, text);
    int client = connected(port);
    CHECK(poll(all, 2, 20000) == 1 && all[0].revents & POLLIN);
    CHECK(close(client) == 0 && close(listener) == 0);
}

static void closed(void) {
    int client, server;
    pair(&client, &server);
    char bytes[8];
    DONE(sock_shutdown(client, __WASI_SDFLAGS_WR));
    CHECK(polled(server, POLLIN, 10000) & POLLIN);
    CHECK(read(server, bytes, sizeof bytes) == 0);
    CHECK(write(server, "still", 5) == 5);
    receives(client, "still");
    CHECK(close(client) == 0);
    // The first one may still be sent.
    for (int number = 0; number < 100 && write(server, "gone", 4) == 4; number++) usleep(1000);
    CHECK(errno == EPIPE || errno == ECONNRESET);
    CHECK(close(server) == 0);
    REFUSED(close(server), EBADF);
    REFUSED(read(server, bytes, sizeof bytes), EBADF);

    // Nobody listens.
    uint32_t port;
    int listener = listening(&port);
    CHECK(close(listener) == 0);
    int late = opened(STREAM);
    ANSWERS(sock_connect(late, &HERE, port), __WASI_ERRNO_CONNREFUSED);
    CHECK(close(late) == 0);
}

static void options(void) {
    uint32_t port, size = 4;
    int listener = listening(&port);
    int32_t value = 1;
    DONE(sock_setsockopt(listener, 0, REUSEADDR, &value, 4));
    value = 0;
    DONE(sock_getsockopt(listener, 0, REUSEADDR, &value, &size));
    CHECK(value == 1 && size == 4);
    DONE(sock_getsockopt(listener, 0, TYPE, &value, &size));
    CHECK(value == STREAM);
    DONE(sock_getsockopt(listener, 0, ACCEPTCONN, &value, &size));
    CHECK(value == 1);
    // A tenth of a second.
    int64_t time[2] = {0, 100000}, same[2] = {0};
    DONE(sock_setsockopt(listener, 0, RCVTIMEO, time, sizeof time));
    size = sizeof same;
    DONE(sock_getsockopt(listener, 0, RCVTIMEO, same, &size));
    CHECK(size == sizeof same && same[0] == 0 && same[1] == 100000);
    int32_t accepted;
    ANSWERS(sock_accept(listener, &accepted), __WASI_ERRNO_AGAIN);
    CHECK(close(listener) == 0);

    __wasi_fdstat_t status;
    int number = opened(DATAGRAM);
    DONE(__wasi_fd_fdstat_get(number, &status));
    CHECK(status.fs_flags == 0);
    printf("a socket for datagrams has type %d\n", status.fs_filetype);
    CHECK(close(number) == 0);
    ANSWERS(__wasi_fd_fdstat_get(number, &status), __WASI_ERRNO_BADF);
}

// The first address of a name, for a stream over IPv4.
static void resolves(const char *name, uint8_t last) {
    uint8_t bytes[3][26] = {0};
    struct sockaddr_data addresses[3] = {{0, 26, bytes[0]}, {0, 26, bytes[1]}, {0, 26, bytes[2]}};
    struct addrinfo results[3] = {
        {.address = &addresses[0], .next = &results[1]},
        {.address = &addresses[1], .next = &results[2]},
        {.address = &addresses[2]},
    };
    struct addrinfo hints = {.family = INET4, .type = STREAM, .protocol = 1}, *first = results;
    uint32_t count = 0;
    // With the zero byte at the end, as the crate wasmedge_wasi_socket has it.
    DONE(sock_getaddrinfo(name, strlen(name) + 1, "8080", 5, &hints, &first, 3, &count));
    CHECK(count == 1 && results[0].family == INET4 && results[0].type == STREAM && results[0].protocol == 1);
    CHECK(results[0].address_size == 16 && addresses[0].family == INET4 && addresses[0].size == 14);
    uint8_t expected[14] = {8080 >> 8, 8080 & 255, 127, 0, 0, last};
    CHECK(memcmp(bytes[0], expected, 14) == 0);
}

static void names(void) {
    resolves("127.0.0.3", 3);
    resolves("localhost", 1);
}

// Files are what they are without sockets.
static void plain_files(void) {
    int socket = opened(STREAM);
    int file = open("/tmp/file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file > 2 && file != socket);
    CHECK(write(file, "in a file", 9) == 9 && lseek(file, 3, SEEK_SET) == 3);
    char bytes[16] = {0};
    CHECK(read(file, bytes, sizeof bytes) == 6 && strcmp(bytes, "a file") == 0);
    CHECK(close(file) == 0 && close(socket) == 0);
    REFUSED(read(file, bytes, sizeof bytes), EBADF);
}

// Serves clients from outside of this program, one after another, and ends after so many.
static void serve(void) {
    uint8_t any[4] = {0};
    const struct address everywhere = {any, 4};
    int listener = opened(STREAM);
    DONE(sock_bind(listener, &everywhere, 9000));
    DONE(sock_listen(listener, 16));
    printf("listening\n");
    fflush(stdout);
    for (int number = 0; number < 2; number++) {
        int32_t client = -1;
        DONE(sock_accept(listener, &client));
        char bytes[256];
        ssize_t size;
        while ((size = read(client, bytes, sizeof bytes)) > 0) CHECK(write(client, bytes, size) == size);
        CHECK(size == 0 && close(client) == 0);
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} AREAS[] = {
    {"streams", streams},
    {"datagrams", datagrams},
    {"events", events},
    {"mixed", mixed},
    {"input", input},
    {"closed", closed},
    {"options", options},
    {"names", names},
    {"strangers", strangers},
    {"pointers", pointers},
    {"files", plain_files},
    {"serve", serve},
};

static void run(const char *name) {
    for (size_t area = 0; area < sizeof AREAS / sizeof *AREAS; area++)
        if (strcmp(AREAS[area].name, name) == 0) {
            AREAS[area].run();
            printf("%s: done\n", name);
            return;
        }
    fprintf(stderr, "there is no area %s\n", name);
    exit(2);
}

int main(int count, char **arguments) {
    CHECK(count > 1);
    for (int number = 1; number < count; number++) run(arguments[number]);
    return 0;
}
