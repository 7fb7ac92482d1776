/* Stands before the C library's resolver in a process of a test (LD_PRELOAD): knows one name, links.test, which is this
 * machine, and which does not resolve while the file that FAULT_TEST_NAMES_FAIL names exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int resolver(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    resolver *next = (resolver *)dlsym(RTLD_NEXT, "getaddrinfo");
    if (node && strcmp(node, "links.test") == 0) {
        const char *failing = getenv("FAULT_TEST_NAMES_FAIL");
        if (failing && access(failing, F_OK) == 0)
            return EAI_AGAIN;
        node = "127.0.0.1";
    }
    return next(node, service, hints, found);
}
