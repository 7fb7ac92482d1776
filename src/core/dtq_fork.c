#include "dtq_fork.h"

#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

void dtq_fork_mark_init(struct dtq_fork_mark *mark)
{
    mark->page = NULL;
    mark->pid = getpid();
#if defined(__linux__) && defined(MADV_WIPEONFORK)
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return;
    if (madvise(page, size, MADV_WIPEONFORK) != 0) {
        munmap(page, size);
        return;
    }
    mark->page = page;
    mark->page[0] = 1;
#endif
}

void dtq_fork_mark_clean_up(struct dtq_fork_mark *mark)
{
    if (mark->page)
        munmap(mark->page, (size_t)sysconf(_SC_PAGESIZE));
    mark->page = NULL;
}

bool dtq_fork_happened(const struct dtq_fork_mark *mark)
{
    return mark->page ? *(const volatile unsigned char *)mark->page == 0 : getpid() != mark->pid;
}
