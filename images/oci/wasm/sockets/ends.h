// SPDX-License-Identifier: Apache-2.0
// The ends of connections within one program, and what goes through them.

#include "wasmedge.h"

#include "../wasi.h"

#include <string.h>
#include <unistd.h>

// CHECK that a call has this error, or none.
#define ANSWERS(call, expected) CHECK((errno = (call)) == (expected))
#define DONE(call) ANSWERS(call, 0)

static uint8_t LOCALHOST[4] = {127, 0, 0, 1};
static const struct address HERE = {LOCALHOST, 4};

static inline int opened(uint32_t type) {
    int32_t number = -1;
    DONE(sock_open(INET4, type, &number));
    CHECK(number > 2);
    return number;
}

static inline uint32_t port_of(int number) {
    uint8_t bytes[16] = {0};
    struct address address = {bytes, 16};
    uint32_t type = 0, port = 0;
    DONE(sock_getlocaladdr(number, &address, &type, &port));
    CHECK(type == 4 && memcmp(bytes, LOCALHOST, 4) == 0);
    return port;
}

static inline int listening(uint32_t *port) {
    int number = opened(STREAM);
    DONE(sock_bind(number, &HERE, 0));
    DONE(sock_listen(number, 16));
    *port = port_of(number);
    CHECK(*port > 0);
    return number;
}

static inline int connected(uint32_t port) {
    int number = opened(STREAM);
    DONE(sock_connect(number, &HERE, port));
    return number;
}

static inline void pair(int *client, int *server) {
    uint32_t port;
    int listener = listening(&port);
    *client = connected(port);
    DONE(sock_accept(listener, server));
    CHECK(close(listener) == 0);
}

static inline void sends(int number, const char *text) {
    uint32_t size = 0;
    struct buffer buffer = {(void *)text, strlen(text)};
    DONE(sock_send(number, &buffer, 1, 0, &size));
    CHECK(size == strlen(text));
}

static inline void receives(int number, const char *text) {
    char bytes[64] = {0};
    uint32_t size = 0, flags = 0;
    struct buffer buffer = {bytes, sizeof bytes};
    DONE(sock_recv(number, &buffer, 1, 0, &size, &flags));
    CHECK(size == strlen(text) && strcmp(bytes, text) == 0);
}

// What is no socket, and pointers that are none (wrong.c).
void strangers(void);
void pointers(void);
