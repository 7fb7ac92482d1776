/*
 * A client of SQS as one writes it by hand in C for one program: cJSON for its texts, SigV4 with the day's key kept,
 * OpenSSL for the digests.  No retries, no error that says anything; libcurl's part is sqs_client.c's.
 */
#ifndef SQS_BY_HAND_H
#define SQS_BY_HAND_H

#include <stdbool.h>
#include <stddef.h>

#include <curl/curl.h>

struct by_hand {
    const char *action; /* send, receive or delete */
    int batch;
    const char *queue_url, *host; /* host: with its port */
    const char *body;             /* of each message */
    const char *handle;           /* for delete */
};

struct by_hand_request {
    char *text;
    struct curl_slist *headers;
};

/* Both parts are the caller's, to be freed by by_hand_free. */
struct by_hand_request by_hand_build(const struct by_hand *what);
void by_hand_free(struct by_hand_request *request);

/* Whether the answer is whole: an entry for each of the batch, digests as they must be. */
bool by_hand_check(const struct by_hand *what, const char *answer, size_t length);

#endif
