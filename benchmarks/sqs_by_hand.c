#include "sqs_by_hand.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cjson/cJSON.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#define REGION "eu-central-1"
#define SIGNED "content-type;host;x-amz-date;x-amz-target"
#define SHA256_BYTES 32
#define MD5_BYTES 16

static bool is(const struct by_hand *what, const char *action)
{
    return strcmp(what->action, action) == 0;
}

static const char *target_of(const struct by_hand *what)
{
    return is(what, "send")      ? "AmazonSQS.SendMessageBatch"
           : is(what, "receive") ? "AmazonSQS.ReceiveMessage"
                                 : "AmazonSQS.DeleteMessageBatch";
}

/* ---- digests ----------------------------------------------------------------------------------------------------- */

static void hex(const unsigned char *bytes, size_t count, char *out)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < count; i++) {
        *out++ = digits[bytes[i] >> 4];
        *out++ = digits[bytes[i] & 15];
    }
    *out = '\0';
}

static void sha256_hex(const char *text, size_t length, char *out)
{
    static EVP_MD *sha256;
    unsigned char digest[SHA256_BYTES];
    if (!sha256)
        sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    EVP_Digest(text, length, digest, NULL, sha256, NULL);
    hex(digest, sizeof digest, out);
}

static void md5_hex(const char *text, char *out)
{
    static EVP_MD *md5;
    unsigned char digest[MD5_BYTES];
    if (!md5)
        md5 = EVP_MD_fetch(NULL, "MD5", NULL);
    EVP_Digest(text, strlen(text), digest, NULL, md5, NULL);
    hex(digest, sizeof digest, out);
}

static void hmac(const unsigned char *key, int length, const char *text, unsigned char *out)
{
    HMAC(EVP_sha256(), key, length, (const unsigned char *)text, strlen(text), out, NULL);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static char *text_of(const struct by_hand *what)
{
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "QueueUrl", what->queue_url);
    if (is(what, "receive")) {
        cJSON_AddNumberToObject(root, "MaxNumberOfMessages", what->batch);
        cJSON_AddNumberToObject(root, "WaitTimeSeconds", 0);
    }
    else {
        cJSON *entries = cJSON_AddArrayToObject(root, "Entries");
        for (int i = 0; i < what->batch; i++) {
            char id[12];
            cJSON *entry = cJSON_CreateObject();
            (void)snprintf(id, sizeof id, "%d", i);
            cJSON_AddStringToObject(entry, "Id", id);
            cJSON_AddStringToObject(entry, is(what, "send") ? "MessageBody" : "ReceiptHandle",
                                    is(what, "send") ? what->body : what->handle);
            cJSON_AddItemToArray(entries, entry);
        }
    }
    char *text = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    return text;
}

/* Derived once: a benchmark does not last until midnight. */
static const unsigned char *key_of(const char *day)
{
    static unsigned char key[SHA256_BYTES];
    static bool derived;
    const char *const scope[] = {day, REGION, "sqs", "aws4_request"};
    const char *secret = "AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    if (!derived) {
        hmac((const unsigned char *)secret, (int)strlen(secret), scope[0], key);
        for (size_t i = 1; i < sizeof scope / sizeof scope[0]; i++)
            hmac(key, sizeof key, scope[i], key);
        derived = true;
    }
    return key;
}

static void sign(const struct by_hand *what, const char *text, const char *date, char *authorization, size_t size)
{
    char digest[2 * SHA256_BYTES + 1], canonical[1024], to_sign[512], day[9];
    unsigned char signature[SHA256_BYTES];
    (void)snprintf(day, sizeof day, "%.8s", date);
    sha256_hex(text, strlen(text), digest);
    int length = snprintf(
        canonical, sizeof canonical,
        "POST\n/\n\ncontent-type:application/x-amz-json-1.0\nhost:%s\nx-amz-date:%s\nx-amz-target:%s\n\n" SIGNED "\n%s",
        what->host, date, target_of(what), digest);
    sha256_hex(canonical, (size_t)length, digest);
    (void)snprintf(to_sign, sizeof to_sign, "AWS4-HMAC-SHA256\n%s\n%s/" REGION "/sqs/aws4_request\n%s", date, day,
                   digest);
    hmac(key_of(day), SHA256_BYTES, to_sign, signature);
    hex(signature, sizeof signature, digest);
    (void)snprintf(authorization, size,
                   "Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/%s/" REGION
                   "/sqs/aws4_request, SignedHeaders=" SIGNED ", Signature=%s",
                   day, digest);
}

struct by_hand_request by_hand_build(const struct by_hand *what)
{
    struct by_hand_request request = {.text = text_of(what)};
    char date[17], line[512];
    struct tm utc;
    time_t now = time(NULL);
    (void)strftime(date, sizeof date, "%Y%m%dT%H%M%SZ", gmtime_r(&now, &utc));
    sign(what, request.text, date, line, sizeof line);
    request.headers = curl_slist_append(NULL, line);
    (void)snprintf(line, sizeof line, "X-Amz-Date: %s", date);
    curl_slist_append(request.headers, line);
    (void)snprintf(line, sizeof line, "X-Amz-Target: %s", target_of(what));
    curl_slist_append(request.headers, line);
    curl_slist_append(request.headers, "Content-Type: application/x-amz-json-1.0");
    curl_slist_append(request.headers, "Expect:");
    curl_slist_append(request.headers, "Accept:");
    return request;
}

void by_hand_free(struct by_hand_request *request)
{
    cJSON_free(request->text);
    curl_slist_free_all(request->headers);
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

static bool has_digest(const cJSON *entry, const char *name, const char *body)
{
    char digest[2 * MD5_BYTES + 1];
    const char *given = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(entry, name));
    if (!given || !body)
        return false;
    md5_hex(body, digest);
    return strcmp(given, digest) == 0;
}

bool by_hand_check(const struct by_hand *what, const char *answer, size_t length)
{
    cJSON *root = cJSON_ParseWithLength(answer, length);
    const cJSON *entry,
        *entries = cJSON_GetObjectItemCaseSensitive(root, is(what, "receive") ? "Messages" : "Successful");
    bool whole = cJSON_GetArraySize(entries) == what->batch;
    cJSON_ArrayForEach(entry, entries)
    {
        if (is(what, "receive"))
            whole = whole && has_digest(entry, "MD5OfBody",
                                        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(entry, "Body")));
        else if (is(what, "send"))
            whole = whole && has_digest(entry, "MD5OfMessageBody", what->body);
    }
    cJSON_Delete(root);
    return whole;
}
