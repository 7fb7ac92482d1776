#include "dtq_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Numbers of Linux's interface, which the C library's headers may be too old to know. */
#ifdef __linux__
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#endif

#define PRESENT (UINT64_C(1) << 63)
#define EXCLUSIVE (UINT64_C(1) << 56)
#define ENTRIES 4096 /* of the page map, read at a time */

struct page_map {
    int fd;
    uint64_t page_size;
    uint64_t wanted; /* bits that a page must have */
    struct dtq_buf *out;
    struct dtq_page_range run; /* of pages that have them; not added yet */
};

static enum dtq_code open_map(struct page_map *map, uint64_t wanted, struct dtq_buf *out, struct dtq_error *err)
{
    *map = (struct page_map){.page_size = (uint64_t)sysconf(_SC_PAGESIZE), .wanted = wanted, .out = out};
    map->fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (map->fd >= 0)
        return DTQ_OK;
    if (errno == ENOENT)
        return dtq_error_set(err, DTQ_UNSUPPORTED, "this platform does not tell which pages a process has");
    return dtq_error_set_errno(err, errno, "cannot open /proc/self/pagemap");
}

static void add_run(struct page_map *map)
{
    if (map->run.end > map->run.begin)
        (void)dtq_buf_add(map->out, &map->run, sizeof map->run); /* a failed buffer stays failed: seen at the end */
    map->run = (struct dtq_page_range){0, 0};
}

static void look_at_page(struct page_map *map, uint64_t address, uint64_t entry)
{
    if ((entry & map->wanted) != map->wanted)
        return;
    if (map->run.end != address) {
        add_run(map);
        map->run.begin = address;
    }
    map->run.end = address + map->page_size;
}

static enum dtq_code look_at_range(struct page_map *map, struct dtq_page_range range, struct dtq_error *err)
{
    uint64_t entries[ENTRIES];
    uint64_t address = range.begin;
    while (address < range.end) {
        uint64_t count = (range.end - address) / map->page_size;
        if (count > ENTRIES)
            count = ENTRIES;
        ssize_t got = pread(map->fd, entries, (size_t)count * sizeof *entries,
                            (off_t)(address / map->page_size * sizeof *entries));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return dtq_error_set_errno(err, errno, "cannot read /proc/self/pagemap");
        if (got < (ssize_t)sizeof *entries)
            break; /* beyond the end of the address space */
        for (size_t i = 0; i < (size_t)got / sizeof *entries; i++, address += map->page_size)
            look_at_page(map, address, entries[i]);
    }
    add_run(map);
    return DTQ_OK;
}

static enum dtq_code close_map(struct page_map *map, enum dtq_code code, struct dtq_error *err)
{
    close(map->fd);
    if (!code)
        code = dtq_buf_check(map->out, err, "the list of pages");
    if (code)
        dtq_buf_clear(map->out);
    return code;
}

struct mapping {
    struct dtq_page_range range;
    bool of_file;
};

/* Of a line of /proc/self/maps ("begin-end perms offset device inode  name"): whether it is private memory that can be
 * written to.  The stack, which grows, and what the kernel maps for itself do not count. */
static bool is_private_memory(const char *line, struct mapping *mapping)
{
    char perms[5] = "";
    uint64_t inode = 0;
    int name = 0;
    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*s %*s %" SCNu64 " %n", &mapping->range.begin, &mapping->range.end,
               perms, &inode, &name) < 4)
        return false;
    mapping->of_file = inode != 0;
    if (strcmp(perms, "rw-p") != 0)
        return false;
    return name == 0 || line[name] != '[' || strncmp(line + name, "[heap]", 6) == 0 ||
           strncmp(line + name, "[anon", 5) == 0;
}

/* What is done with each private mapping. */
typedef enum dtq_code visit(void *context, const struct mapping *mapping, struct dtq_error *err);

static enum dtq_code visit_private_memory(visit *visitor, void *context, struct dtq_error *err)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    if (!maps)
        return dtq_error_set_errno(err, errno, "cannot open /proc/self/maps");
    enum dtq_code code = DTQ_OK;
    char line[512];
    bool whole = true; /* the line before ended where the buffer did, or earlier */
    while (!code && fgets(line, sizeof line, maps)) {
        struct mapping mapping;
        if (whole && is_private_memory(line, &mapping))
            code = visitor(context, &mapping, err);
        whole = strchr(line, '\n') != NULL;
    }
    (void)fclose(maps);
    return code;
}

static enum dtq_code look_at_mapping(void *context, const struct mapping *mapping, struct dtq_error *err)
{
    return look_at_range(context, mapping->range, err);
}

enum dtq_code dtq_pages_own(struct dtq_buf *out, struct dtq_error *err)
{
    struct page_map map;
    enum dtq_code code = open_map(&map, PRESENT | EXCLUSIVE, out, err);
    return code ? code : close_map(&map, visit_private_memory(look_at_mapping, &map, err), err);
}

enum dtq_code dtq_pages_present(const struct dtq_page_range *ranges, size_t count, struct dtq_buf *out,
                                struct dtq_error *err)
{
    struct page_map map;
    enum dtq_code code = open_map(&map, PRESENT, out, err);
    if (code)
        return code;
    for (size_t i = 0; !code && i < count; i++)
        code = look_at_range(&map, ranges[i], err);
    return close_map(&map, code, err);
}

size_t dtq_pages_populate(const struct dtq_page_range *ranges, size_t count)
{
#ifdef MADV_POPULATE_WRITE
    size_t refused = 0;
    for (size_t i = 0; i < count; i++)
        /* An address of the kernel's own list. */
        if (madvise((void *)(uintptr_t)ranges[i].begin, (size_t)(ranges[i].end - ranges[i].begin), /* NOLINT */
                    MADV_POPULATE_WRITE) != 0)
            refused++;
    return refused;
#else
    (void)ranges;
    return count;
#endif
}

#ifdef MADV_COLLAPSE
struct collapse {
    uint64_t huge; /* bytes of a huge page */
    size_t max;
    size_t done;
};

/* Whether half of a huge page's memory is present.  The rest would be: zeroes that nobody has asked for. */
static enum dtq_code look_whether_in_use(struct dtq_page_range huge, bool *in_use, struct dtq_error *err)
{
    struct dtq_buf list;
    struct dtq_page_range range;
    uint64_t present = 0;
    dtq_buf_init(&list, (size_t)(huge.end - huge.begin));
    enum dtq_code code = dtq_pages_present(&huge, 1, &list, err);
    for (size_t at = 0; at < list.length; at += sizeof range) {
        memcpy(&range, list.data + at, sizeof range);
        present += range.end - range.begin;
    }
    dtq_buf_clean_up(&list);
    *in_use = present >= (huge.end - huge.begin) / 2;
    return code;
}

static enum dtq_code collapse_mapping(void *context, const struct mapping *mapping, struct dtq_error *err)
{
    struct collapse *work = context;
    /* What is larger in one piece is reserved, not in use. */
    if (mapping->of_file || mapping->range.end - mapping->range.begin > work->max)
        return DTQ_OK;
    uint64_t address = (mapping->range.begin + work->huge - 1) / work->huge * work->huge;
    for (; address + work->huge <= mapping->range.end && work->done + work->huge <= work->max; address += work->huge) {
        bool in_use = false;
        enum dtq_code code =
            look_whether_in_use((struct dtq_page_range){address, address + work->huge}, &in_use, err);
        if (code)
            return code;
        /* An address of the kernel's own list. */
        if (in_use && madvise((void *)(uintptr_t)address, (size_t)work->huge, MADV_COLLAPSE) == 0) /* NOLINT */
            work->done += work->huge;
    }
    return DTQ_OK;
}

/* 0 where the kernel has none. */
static uint64_t huge_page_size(void)
{
    uint64_t size = 0;
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "re");
    if (!file)
        return 0;
    if (fscanf(file, "%" SCNu64, &size) != 1)
        size = 0;
    (void)fclose(file);
    return size;
}
#endif

enum dtq_code dtq_pages_collapse(size_t max, size_t *collapsed, struct dtq_error *err)
{
    *collapsed = 0;
#ifdef MADV_COLLAPSE
    struct collapse work = {.huge = huge_page_size(), .max = max};
    if (work.huge != 0) {
        enum dtq_code code = visit_private_memory(collapse_mapping, &work, err);
        *collapsed = work.done;
        return code;
    }
#endif
    (void)max;
    return dtq_error_set(err, DTQ_UNSUPPORTED, "this platform makes no huge pages on demand");
}
