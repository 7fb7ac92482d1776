#include "dtq_notifier.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/eventfd.h>
#endif

enum dtq_code dtq_notifier_open(struct dtq_notifier *notifier, struct dtq_error *err)
{
    notifier->read_fd = notifier->write_fd = -1;
#ifdef __linux__
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return dtq_error_set_errno(err, errno, "eventfd");
    notifier->read_fd = notifier->write_fd = fd;
#else
    int fds[2];
    if (pipe(fds) != 0)
        return dtq_error_set_errno(err, errno, "pipe");
    for (int i = 0; i < 2; i++) {
        fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    notifier->read_fd = fds[0];
    notifier->write_fd = fds[1];
#endif
    return DTQ_OK;
}

void dtq_notifier_close(struct dtq_notifier *notifier)
{
    if (notifier->write_fd >= 0 && notifier->write_fd != notifier->read_fd)
        close(notifier->write_fd);
    if (notifier->read_fd >= 0)
        close(notifier->read_fd);
    notifier->read_fd = notifier->write_fd = -1;
}

/* Eight bytes suit the eventfd; in the pipe they are as good as one.  A full pipe is readable, which is all that is
 * wanted. */
void dtq_notifier_set(struct dtq_notifier *notifier)
{
    const uint64_t one = 1;
    while (write(notifier->write_fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

void dtq_notifier_reset(struct dtq_notifier *notifier)
{
    char bytes[64];
    ssize_t got;
    do {
        got = read(notifier->read_fd, bytes, sizeof bytes);
    } while (got == (ssize_t)sizeof bytes || (got < 0 && errno == EINTR));
}
