/*
 * Payloads and signing by the core, for payload.py.
 *
 *     payload MESSAGE-FILE BODY-FILE
 *
 * For each line "OPERATION COUNT" on standard input (encode, decode, sign) it says CPU seconds on standard output.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dtq_alloc.h"
#include "dtq_buf.h"
#include "dtq_creds.h"
#include "dtq_payload.h"
#include "dtq_sigv4.h"

#define FILE_BYTES_MAX (1024 * 1024)

static struct dtq_step_task task;
static struct dtq_slice message, body;
static struct dtq_creds *credentials;
static struct dtq_sigv4_key_cache cache;
static struct dtq_error err;

static void check(enum dtq_code rc)
{
    if (rc) {
        fprintf(stderr, "payload: %s\n", err.message);
        exit(1);
    }
}

static struct dtq_slice read_file(const char *path)
{
    char *text = malloc(FILE_BYTES_MAX);
    FILE *file = fopen(path, "rb");
    if (!text || !file) {
        perror(path);
        exit(1);
    }
    size_t length = fread(text, 1, FILE_BYTES_MAX, file);
    fclose(file);
    return dtq_slice(text, length);
}

static void encode(void)
{
    char *text = NULL;
    size_t length = 0;
    check(dtq_payload_encode(&task, "3f1c4d5e7c1b4c449d0f0d3a8a0d1c11", NULL, &text, &length, &err));
    dtq_free(text);
}

static void decode(void)
{
    struct dtq_step_task read;
    check(dtq_payload_decode(message, NULL, 0, &read, &err));
    dtq_step_task_clean_up(&read);
}

static void sign(void)
{
    const struct dtq_sigv4_header headers[] = {
        {dtq_slice_str("Content-Type"), dtq_slice_str("application/x-amz-json-1.0")},
        {dtq_slice_str("Host"), dtq_slice_str("sqs.eu-central-1.amazonaws.com")},
        {dtq_slice_str("X-Amz-Target"), dtq_slice_str("AmazonSQS.SendMessageBatch")},
    };
    const struct dtq_sigv4_request request = {
        .method = dtq_slice_str("POST"),
        .path = dtq_slice_str("/"),
        .headers = headers,
        .header_count = 3,
        .body = body,
        .normalize_path = true,
    };
    const struct dtq_sigv4_scope scope = {"eu-central-1", "sqs", time(NULL)};
    char date[DTQ_SIGV4_DATE_SIZE];
    struct dtq_buf authorization;
    dtq_buf_init(&authorization, FILE_BYTES_MAX);
    check(dtq_sigv4_sign(&request, credentials, &scope, &cache, &authorization, date, &err));
    dtq_buf_clean_up(&authorization);
}

static double cpu(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int count, char **arguments)
{
    char operation[16];
    int times;
    if (count != 3) {
        fprintf(stderr, "usage: payload MESSAGE-FILE BODY-FILE\n");
        return 2;
    }
    message = read_file(arguments[1]);
    body = read_file(arguments[2]);
    credentials = dtq_creds_new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", NULL, 0);
    check(dtq_payload_decode(message, NULL, 0, &task, &err));
    while (scanf("%15s %d", operation, &times) == 2) {
        void (*run)(void) = operation[0] == 'e' ? encode : operation[0] == 'd' ? decode : sign;
        double before = cpu();
        for (int i = 0; i < times; i++)
            run();
        printf("%.9f\n", cpu() - before);
        fflush(stdout);
    }
    return 0;
}
