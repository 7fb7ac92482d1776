/* What a forked child copies of its parent's memory, and what it has copied ahead. */
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check_alloc.h"
#include "dtq_pages.h"

#define PAGES 64

static unsigned char *memory;
static size_t page;

static void setup(void)
{
    page = (size_t)sysconf(_SC_PAGESIZE);
    memory = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(memory, MAP_FAILED);
}

static void teardown(void)
{
    munmap(memory, PAGES * page);
}

static bool lists(const struct dtq_buf *list, const unsigned char *address)
{
    for (size_t at = 0; at < list->length; at += sizeof(struct dtq_page_range)) {
        struct dtq_page_range range;
        memcpy(&range, list->data + at, sizeof range);
        if ((uintptr_t)address >= range.begin && (uintptr_t)address < range.end)
            return true;
    }
    return false;
}

static int exit_code(pid_t child)
{
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

START_TEST(a_child_owns_what_it_has_written_to)
{
    memset(memory, 1, 8 * page);
    pid_t child = fork();
    if (child == 0) {
        struct dtq_error err;
        struct dtq_buf own;
        dtq_buf_init(&own, 1 << 20);
        memory[3 * page] = 2;
        memory[4 * page] = 2;
        int wrong = dtq_pages_own(&own, &err) != DTQ_OK;
        wrong |= lists(&own, memory) << 1;             /* shared */
        wrong |= !lists(&own, memory + 3 * page) << 2; /* copied */
        wrong |= !lists(&own, memory + 5 * page - 1) << 3;
        wrong |= lists(&own, memory + 5 * page) << 4;
        wrong |= lists(&own, memory + 9 * page) << 5; /* never touched */
        dtq_buf_clean_up(&own);
        _exit(wrong);
    }
    ck_assert_int_eq(exit_code(child), 0);
}
END_TEST

START_TEST(only_what_is_in_memory_is_present)
{
    struct dtq_error err;
    struct dtq_buf present;
    uintptr_t begin = (uintptr_t)memory;
    struct dtq_page_range ranges[] = {{begin, begin + 4 * page}, {begin + 8 * page, begin + 12 * page}};
    memory[page] = 1;
    memory[8 * page] = 1;
    memory[9 * page] = 1;
    memory[20 * page] = 1;
    dtq_buf_init(&present, 1 << 20);
    ck_assert_int_eq(dtq_pages_present(ranges, 2, &present, &err), DTQ_OK);
    struct dtq_page_range found[2];
    ck_assert_uint_eq(present.length, sizeof found);
    memcpy(found, present.data, sizeof found);
    ck_assert_uint_eq(found[0].begin, begin + page);
    ck_assert_uint_eq(found[0].end, begin + 2 * page);
    ck_assert_uint_eq(found[1].begin, begin + 8 * page);
    ck_assert_uint_eq(found[1].end, begin + 10 * page);
    dtq_buf_clean_up(&present);
}
END_TEST

START_TEST(a_populated_page_is_the_childs_own_and_unchanged)
{
    struct dtq_page_range range = {(uintptr_t)memory, (uintptr_t)memory + 4 * page};
    memset(memory, 7, 4 * page);
    pid_t child = fork();
    if (child == 0) {
        struct dtq_error err;
        struct dtq_buf own;
        dtq_buf_init(&own, 1 << 20);
        int wrong = 0;
        if (dtq_pages_populate(&range, 1) == 0) {
            wrong = dtq_pages_own(&own, &err) != DTQ_OK;
            for (size_t i = 0; i < 4; i++)
                wrong |= !lists(&own, memory + i * page) << 1;
        }
        for (size_t i = 0; i < 4 * page; i++)
            wrong |= (memory[i] != 7) << 2;
        dtq_buf_clean_up(&own);
        _exit(wrong);
    }
    ck_assert_int_eq(exit_code(child), 0);
}
END_TEST

START_TEST(what_is_not_mapped_is_refused)
{
    unsigned char *gone = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct dtq_page_range range = {(uintptr_t)gone, (uintptr_t)gone + page};
    munmap(gone, page);
    ck_assert_uint_eq(dtq_pages_populate(&range, 1), 1);
}
END_TEST

START_TEST(a_full_list_is_an_error)
{
    struct dtq_error err;
    struct dtq_buf own;
    memory[0] = 1;
    dtq_buf_init(&own, sizeof(struct dtq_page_range) - 1);
    ck_assert_int_eq(dtq_pages_own(&own, &err), DTQ_TOO_LARGE);
    ck_assert_uint_eq(own.length, 0);
    ck_assert_int_eq(dtq_buf_add_char(&own, 'x'), DTQ_OK);
    dtq_buf_clean_up(&own);
}
END_TEST

START_TEST(memory_in_huge_pages_is_as_it_was)
{
    struct dtq_error err;
    size_t size = (size_t)8 << 20;
    size_t collapsed = 0;
    unsigned char *large = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(large, MAP_FAILED);
    for (size_t i = 0; i < size; i += page)
        memset(large + i, (int)(i / page % 251), page);
    enum dtq_code code = dtq_pages_collapse((size_t)64 << 20, &collapsed, &err);
    ck_assert(code == DTQ_OK || code == DTQ_UNSUPPORTED);
    ck_assert_uint_le(collapsed, (size_t)64 << 20);
    unsigned char expected[65536];
    ck_assert_uint_le(page, sizeof expected);
    for (size_t i = 0; i < size; i += page) {
        memset(expected, (int)(i / page % 251), page);
        ck_assert_mem_eq(large + i, expected, page);
    }
    munmap(large, size);
}
END_TEST

START_TEST(memory_that_nobody_uses_is_not_filled)
{
    struct dtq_error err;
    struct dtq_buf present;
    size_t size = (size_t)8 << 20, collapsed = 0;
    unsigned char *sparse = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(sparse, MAP_FAILED);
    sparse[0] = sparse[size / 2] = 1;
    enum dtq_code code = dtq_pages_collapse((size_t)64 << 20, &collapsed, &err);
    ck_assert(code == DTQ_OK || code == DTQ_UNSUPPORTED);
    struct dtq_page_range range = {(uintptr_t)sparse, (uintptr_t)sparse + size};
    dtq_buf_init(&present, 1 << 20);
    ck_assert_int_eq(dtq_pages_present(&range, 1, &present, &err), DTQ_OK);
    ck_assert_uint_eq(present.length, 2 * sizeof range);
    dtq_buf_clean_up(&present);
    munmap(sparse, size);
}
END_TEST

START_TEST(no_more_is_collapsed_than_asked_for)
{
    struct dtq_error err;
    size_t collapsed = 1;
    enum dtq_code code = dtq_pages_collapse(page, &collapsed, &err);
    ck_assert(code == DTQ_OK || code == DTQ_UNSUPPORTED);
    ck_assert_uint_eq(collapsed, 0);
}
END_TEST

Suite *pages_suite(void);
Suite *pages_suite(void)
{
    Suite *suite = suite_create("pages");
    TCase *tests = tcase_create("pages");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, a_child_owns_what_it_has_written_to);
    tcase_add_test(tests, only_what_is_in_memory_is_present);
    tcase_add_test(tests, a_populated_page_is_the_childs_own_and_unchanged);
    tcase_add_test(tests, what_is_not_mapped_is_refused);
    tcase_add_test(tests, a_full_list_is_an_error);
    tcase_add_test(tests, memory_in_huge_pages_is_as_it_was);
    tcase_add_test(tests, memory_that_nobody_uses_is_not_filled);
    tcase_add_test(tests, no_more_is_collapsed_than_asked_for);
    suite_add_tcase(suite, tests);
    return suite;
}
