/*
 * A descriptor that is readable from set until reset: an eventfd, elsewhere than on Linux a pipe.
 *
 * What it is for: to wake a select, poll or event loop of another thread.
 * Ownership: in place (open/close); the descriptors are closed on exec.
 * Thread: set and reset from any; the caller's lock makes their order mean something.
 * Failure: open: DTQ_SYSTEM, and there is nothing to close.  set and reset cannot fail.
 */
#ifndef DTQ_NOTIFIER_H
#define DTQ_NOTIFIER_H

#include "dtq_attr.h"
#include "dtq_error.h"

struct dtq_notifier {
    int read_fd; /* to wait for; -1 when closed */
    int write_fd;
};

enum dtq_code dtq_notifier_open(struct dtq_notifier *notifier, struct dtq_error *err) DTQ_MUST_CHECK;
void dtq_notifier_close(struct dtq_notifier *notifier);
void dtq_notifier_set(struct dtq_notifier *notifier);
void dtq_notifier_reset(struct dtq_notifier *notifier);

#endif
