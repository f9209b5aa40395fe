// SPDX-License-Identifier: Apache-2.0
// What no program should pass to a function for sockets.

#include "ends.h"

#include <wasi/api.h>

// More than any memory has.
static void *const NOWHERE = (void *)0xfffffff0;

// What is no socket of this program.
void strangers(void) {
    char bytes[8];
    struct buffer buffer = {bytes, sizeof bytes};
    uint32_t size = 0, flags = 0;
    int32_t number = 0;
    const int unknown[] = {-1, 77, 1 << 20, 1 << 30, (1 << 30) + 77, 0x7fffffff};
    for (size_t place = 0; place < sizeof unknown / sizeof *unknown; place++) {
        ANSWERS(sock_bind(unknown[place], &HERE, 0), __WASI_ERRNO_BADF);
        ANSWERS(sock_listen(unknown[place], 1), __WASI_ERRNO_BADF);
        ANSWERS(sock_accept(unknown[place], &number), __WASI_ERRNO_BADF);
        ANSWERS(sock_connect(unknown[place], &HERE, 1), __WASI_ERRNO_BADF);
        ANSWERS(sock_send(unknown[place], &buffer, 1, 0, &size), __WASI_ERRNO_BADF);
        ANSWERS(sock_recv(unknown[place], &buffer, 1, 0, &size, &flags), __WASI_ERRNO_BADF);
        ANSWERS(sock_shutdown(unknown[place], 1), __WASI_ERRNO_BADF);
        REFUSED(write(unknown[place], bytes, 1), EBADF);
        REFUSED(close(unknown[place]), EBADF);
    }
    // Standard output is one, but no socket.
    ANSWERS(sock_listen(1, 1), __WASI_ERRNO_NOTSOCK);
    ANSWERS(sock_open(INET4, 9, &number), __WASI_ERRNO_INVAL);
    ANSWERS(sock_open(9, STREAM, &number), __WASI_ERRNO_INVAL);
}

// Pointers that lead out of the memory. A call with one has no effect.
void pointers(void) {
    int client, server;
    pair(&client, &server);
    char bytes[64];
    uint32_t size = 0, flags = 0, port = 0;
    __wasi_size_t count = 0;
    int32_t number = 0;
    const struct address nowhere = {NOWHERE, 4}, endless = {LOCALHOST, UINT32_MAX}, odd = {LOCALHOST, 3};
    ANSWERS(sock_open(INET4, STREAM, NOWHERE), __WASI_ERRNO_FAULT);
    ANSWERS(sock_bind(client, NOWHERE, 0), __WASI_ERRNO_FAULT);
    ANSWERS(sock_bind(client, &nowhere, 0), __WASI_ERRNO_FAULT);
    ANSWERS(sock_connect(client, &endless, 0), __WASI_ERRNO_FAULT);
    ANSWERS(sock_connect(client, &odd, 0), __WASI_ERRNO_INVAL);
    ANSWERS(sock_accept(client, NOWHERE), __WASI_ERRNO_FAULT);
    sends(client, "kept");
    const struct buffer lists[][2] = {{{bytes, 1}, {NOWHERE, 64}}, {{bytes, UINT32_MAX}, {bytes, 1}}, {{bytes, 1}, {NOWHERE, UINT32_MAX}}};
    for (size_t place = 0; place < 3; place++) {
        ANSWERS(sock_recv(server, lists[place], 2, 0, &size, &flags), __WASI_ERRNO_FAULT);
        ANSWERS(sock_send(server, lists[place], 2, 0, &size), __WASI_ERRNO_FAULT);
        ANSWERS(__wasi_fd_write(server, (const __wasi_ciovec_t *)lists[place], 2, &count), __WASI_ERRNO_FAULT);
    }
    const struct buffer buffer = {bytes, sizeof bytes};
    ANSWERS(sock_recv(server, NOWHERE, 1, 0, &size, &flags), __WASI_ERRNO_FAULT);
    ANSWERS(sock_recv(server, &buffer, UINT32_MAX, 0, &size, &flags), __WASI_ERRNO_INVAL);
    ANSWERS(sock_recv(server, &buffer, 1, 0, NOWHERE, &flags), __WASI_ERRNO_FAULT);
    ANSWERS(sock_recv(server, &buffer, 1, 0, &size, NOWHERE), __WASI_ERRNO_FAULT);
    ANSWERS(sock_recv(server, &buffer, 1, 0xff00, &size, &flags), __WASI_ERRNO_INVAL);
    ANSWERS(sock_getlocaladdr(server, NOWHERE, &flags, &port), __WASI_ERRNO_FAULT);
    ANSWERS(sock_getsockopt(server, 0, TYPE, NOWHERE, &size), __WASI_ERRNO_FAULT);
    ANSWERS(sock_setsockopt(server, 0, REUSEADDR, NOWHERE, 4), __WASI_ERRNO_FAULT);
    ANSWERS(sock_setsockopt(server, 0, 99, &number, 4), __WASI_ERRNO_NOPROTOOPT);
    ANSWERS(sock_getaddrinfo(NOWHERE, 64, "1", 1, NOWHERE, NOWHERE, 1, &size), __WASI_ERRNO_FAULT);
    ANSWERS(__wasi_fd_fdstat_get(server, NOWHERE), __WASI_ERRNO_FAULT);
    const __wasi_subscription_t wait = {.u = {.tag = __WASI_EVENTTYPE_FD_READ, .u.fd_read.file_descriptor = server}};
    __wasi_event_t event;
    ANSWERS(__wasi_poll_oneoff(&wait, NOWHERE, 1, &count), __WASI_ERRNO_FAULT);
    ANSWERS(__wasi_poll_oneoff(&wait, &event, 1, NOWHERE), __WASI_ERRNO_FAULT);
    DONE(__wasi_poll_oneoff(&wait, &event, 1, &count));
    CHECK(count == 1 && event.error == 0 && event.type == __WASI_EVENTTYPE_FD_READ && event.fd_readwrite.nbytes == 4);
    receives(server, "kept");
}
