// SPDX-License-Identifier: Apache-2.0
// WasmEdge's sockets, as the crate wasmedge_wasi_socket declares them.

#include <stdint.h>

#define IMPORTED(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))

enum { INET4 = 1, INET6 = 2 };
enum { DATAGRAM = 1, STREAM = 2 };
// Options, all of the level 0.
enum { REUSEADDR = 0, TYPE = 1, ERROR = 2, KEEPALIVE = 7, RCVTIMEO = 11, ACCEPTCONN = 13 };

struct address {
    uint8_t *bytes;
    uint32_t size;
};

struct buffer {
    void *bytes;
    uint32_t size;
};

struct sockaddr_data {
    uint8_t family;
    uint32_t size;
    uint8_t *bytes;
};

struct addrinfo {
    uint16_t flags;
    uint8_t family;
    uint8_t type;
    uint8_t protocol;
    uint32_t address_size;
    struct sockaddr_data *address;
    char *name;
    uint32_t name_size;
    struct addrinfo *next;
};

IMPORTED(sock_open) int32_t sock_open(uint32_t family, uint32_t type, int32_t *number);
IMPORTED(sock_bind) int32_t sock_bind(int32_t number, const struct address *address, uint32_t port);
IMPORTED(sock_listen) int32_t sock_listen(int32_t number, uint32_t backlog);
IMPORTED(sock_accept) int32_t sock_accept(int32_t number, int32_t *accepted);
IMPORTED(sock_accept_v2) int32_t sock_accept_v2(int32_t number, uint32_t flags, int32_t *accepted);
IMPORTED(sock_connect) int32_t sock_connect(int32_t number, const struct address *address, uint32_t port);
IMPORTED(sock_shutdown) int32_t sock_shutdown(int32_t number, uint32_t how);
IMPORTED(sock_recv)
int32_t sock_recv(int32_t number, const struct buffer *list, uint32_t count, uint32_t flags, uint32_t *size, uint32_t *flags_out);
IMPORTED(sock_recv_from)
int32_t sock_recv_from(int32_t number, const struct buffer *list, uint32_t count, struct address *from, uint32_t flags, uint32_t *port,
                       uint32_t *size, uint32_t *flags_out);
IMPORTED(sock_send) int32_t sock_send(int32_t number, const struct buffer *list, uint32_t count, uint32_t flags, uint32_t *size);
IMPORTED(sock_send_to)
int32_t sock_send_to(int32_t number, const struct buffer *list, uint32_t count, const struct address *to, uint32_t port, uint32_t flags,
                     uint32_t *size);
IMPORTED(sock_getsockopt) int32_t sock_getsockopt(int32_t number, uint32_t level, uint32_t option, void *value, uint32_t *size);
IMPORTED(sock_setsockopt) int32_t sock_setsockopt(int32_t number, uint32_t level, uint32_t option, const void *value, uint32_t size);
IMPORTED(sock_getlocaladdr) int32_t sock_getlocaladdr(int32_t number, struct address *address, uint32_t *type, uint32_t *port);
// The newer version, which modules import under the same name.
IMPORTED(sock_getpeeraddr) int32_t sock_getpeeraddr(int32_t number, struct address *address, uint32_t *port);
IMPORTED(sock_getaddrinfo)
int32_t sock_getaddrinfo(const char *node, uint32_t node_size, const char *service, uint32_t service_size, const struct addrinfo *hints,
                         struct addrinfo **results, uint32_t most, uint32_t *count);
