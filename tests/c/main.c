/*
 * Runs the suites of the core: all of them, or those named on the command line.
 *
 * A suite is a file check_<name>.c that defines `Suite *<name>_suite(void)`; the Makefile writes suites.h from the
 * files that are there.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#define SUITE(name) Suite *name##_suite(void);
#include "suites.h"
#undef SUITE

struct entry {
    const char *name;
    Suite *(*make)(void);
};

static const struct entry entries[] = {
#define SUITE(name) {#name, name##_suite},
#include "suites.h"
#undef SUITE
};

static int is_wanted(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0)
            return 1;
    }
    return argc == 1;
}

int main(int argc, char **argv)
{
    SRunner *runner = srunner_create(NULL);
    int wanted = 0;
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        if (!is_wanted(entries[i].name, argc, argv))
            continue;
        srunner_add_suite(runner, entries[i].make());
        wanted++;
    }
    int failed = wanted == 0 || (argc > 1 && wanted != argc - 1);
    if (failed) {
        fprintf(stderr, "unknown suite; there are:");
        for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++)
            fprintf(stderr, " %s", entries[i].name);
        fprintf(stderr, "\n");
    }
    else {
        srunner_run_all(runner, CK_ENV);
        failed = srunner_ntests_failed(runner);
    }
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
