/*
 * Is this process a fork of the one that made the handle?
 *
 * What it is for: a handle with a thread or sockets must refuse to work in a forked child, and must find that out
 * before it takes any lock: a thread that does not exist in the child may have held it. How: a page that the kernel
 * zeroes in a child (Linux: MADV_WIPEONFORK); elsewhere the process id. Ownership: in place (init/clean_up). Thread:
 * dtq_fork_happened from any. Failure: none; without the page the process id serves.
 */
#ifndef DTQ_FORK_H
#define DTQ_FORK_H

#include <stdbool.h>
#include <sys/types.h>

struct dtq_fork_mark {
    unsigned char *page; /* 1 in the process that made it, 0 in a child; NULL: compare process ids */
    pid_t pid;
};

void dtq_fork_mark_init(struct dtq_fork_mark *mark);
void dtq_fork_mark_clean_up(struct dtq_fork_mark *mark);
bool dtq_fork_happened(const struct dtq_fork_mark *mark);

#endif
