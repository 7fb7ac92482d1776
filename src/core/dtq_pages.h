/*
 * Pages of memory that a forked process has shared, or is to copy ahead of need.
 *
 * What it is for: parent and child of a fork share their pages, and the first write to one costs a fault that copies it.
 * A step process learns at its end which of its parent's pages it has copied (dtq_pages_own), and the next ones have them
 * copied at once, before they have a step (dtq_pages_populate).  Fork and exit take time for each page that is shared,
 * less where it is part of a huge one: hence dtq_pages_collapse.
 * Sources: Linux, Documentation/admin-guide/mm/pagemap.rst (bit 63: present, bit 56: exclusively mapped; neither needs a
 * privilege) and madvise(2), MADV_POPULATE_WRITE, Linux 5.14, and MADV_COLLAPSE, Linux 6.1.
 * Ownership: buffers are the caller's; they hold struct dtq_page_range values and nothing else.
 * Thread: any; what another thread maps or unmaps meanwhile may be missing.
 * Failure: DTQ_SYSTEM, DTQ_NO_MEMORY, DTQ_TOO_LARGE (the buffer's cap); DTQ_UNSUPPORTED where there is no pagemap.  The
 * buffer then holds nothing.
 */
#ifndef DTQ_PAGES_H
#define DTQ_PAGES_H

#include <stddef.h>
#include <stdint.h>

#include "dtq_attr.h"
#include "dtq_buf.h"
#include "dtq_error.h"

struct dtq_page_range {
    uint64_t begin; /* address of the first page */
    uint64_t end;   /* of the first one behind the last */
};

/* Add the pages of private, writable mappings that this process shares with no other one. */
enum dtq_code dtq_pages_own(struct dtq_buf *out, struct dtq_error *err) DTQ_MUST_CHECK;

/* Add those pages of ranges, which are in ascending order, that this process has in memory. */
enum dtq_code dtq_pages_present(const struct dtq_page_range *ranges, size_t count, struct dtq_buf *out,
                                struct dtq_error *err) DTQ_MUST_CHECK;

/* Give this process copies of its own.  Returns how many ranges were refused, as by a kernel that cannot do it. */
size_t dtq_pages_populate(const struct dtq_page_range *ranges, size_t count);

/* Move private memory into huge pages, which copies it (some 2 ms a MiB): max bytes of it at most, no mapping that is
 * larger, and no huge page of which less than half is in use.  Sets how many bytes are in huge pages now; what the kernel refuses stays as it was.  DTQ_UNSUPPORTED where
 * there are none. */
enum dtq_code dtq_pages_collapse(size_t max, size_t *collapsed, struct dtq_error *err) DTQ_MUST_CHECK;

#endif
