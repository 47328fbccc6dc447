/* Preloaded into every process of a run: writes a line "PID WHAT WHERE" into the file $NETWORK_WATCH for each name that
   is looked up, each socket that listens, and each address beyond loopback that is sent to. Changes nothing. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what, const char *where) {
    const char *path = getenv("NETWORK_WATCH");
    if (!path) return;
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0) return;
    char line[512];
    int length = snprintf(line, sizeof line, "%d %s %s\n", getpid(), what, where ? where : "-");
    if (length > (int)sizeof line - 1) length = sizeof line - 1;
    if (write(file, line, length) < 0) {}
    close(file);
}

/* The address as text; 1 where it is one of IP. */
static int told(const struct sockaddr *address, char *text, size_t size, int *loopback) {
    char host[INET6_ADDRSTRLEN];
    if (address && address->sa_family == AF_INET) {
        const struct sockaddr_in *four = (const struct sockaddr_in *)address;
        inet_ntop(AF_INET, &four->sin_addr, host, sizeof host);
        *loopback = (ntohl(four->sin_addr.s_addr) >> 24) == 127;
        snprintf(text, size, "%s:%d", host, ntohs(four->sin_port));
        return 1;
    }
    if (address && address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)address;
        inet_ntop(AF_INET6, &six->sin6_addr, host, sizeof host);
        *loopback = IN6_IS_ADDR_LOOPBACK(&six->sin6_addr);
        snprintf(text, size, "[%s]:%d", host, ntohs(six->sin6_port));
        return 1;
    }
    return 0;
}

static void sent(const struct sockaddr *address) {
    char text[80];
    int loopback = 0;
    if (told(address, text, sizeof text, &loopback) && !loopback) note("connect", text);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (node) note("lookup", node);
    return REAL(getaddrinfo)(node, service, hints, found);
}

int getnameinfo(const struct sockaddr *address, socklen_t size, char *host, socklen_t hosts, char *service,
                socklen_t services, int flags) {
    char text[80];
    int loopback = 0;
    if (!(flags & NI_NUMERICHOST) && told(address, text, sizeof text, &loopback)) note("lookup", text);
    return REAL(getnameinfo)(address, size, host, hosts, service, services, flags);
}

struct hostent *gethostbyname(const char *name) {
    note("lookup", name);
    return REAL(gethostbyname)(name);
}

struct hostent *gethostbyname2(const char *name, int family) {
    note("lookup", name);
    return REAL(gethostbyname2)(name, family);
}

int gethostbyname_r(const char *name, struct hostent *entry, char *buffer, size_t size, struct hostent **found,
                    int *error) {
    note("lookup", name);
    return REAL(gethostbyname_r)(name, entry, buffer, size, found, error);
}

int gethostbyname2_r(const char *name, int family, struct hostent *entry, char *buffer, size_t size,
                     struct hostent **found, int *error) {
    note("lookup", name);
    return REAL(gethostbyname2_r)(name, family, entry, buffer, size, found, error);
}

int connect(int number, const struct sockaddr *address, socklen_t size) {
    sent(address);
    return REAL(connect)(number, address, size);
}

ssize_t sendto(int number, const void *data, size_t bytes, int flags, const struct sockaddr *address, socklen_t size) {
    sent(address);
    return REAL(sendto)(number, data, bytes, flags, address, size);
}

int listen(int number, int backlog) {
    struct sockaddr_storage own;
    socklen_t size = sizeof own;
    char text[80];
    int loopback = 0;
    if (!getsockname(number, (struct sockaddr *)&own, &size) &&
        told((struct sockaddr *)&own, text, sizeof text, &loopback))
        note(loopback ? "listen-loopback" : "listen", text);
    return REAL(listen)(number, backlog);
}
