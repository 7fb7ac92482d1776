#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "check_alloc.h"
#include "dtq_sqs_wire.h"

#define QUEUE "https://sqs.eu-central-1.amazonaws.com/123456789012/steps"

static struct dtq_buf out;
static struct dtq_error err;
static struct dtq_sqs_answer answer;

static void set_up(void)
{
    dtq_buf_init(&out, 8 * DTQ_SQS_MESSAGE_BYTES_MAX);
    memset(&answer, 0, sizeof answer);
}

static void tear_down(void)
{
    dtq_buf_clean_up(&out);
    dtq_sqs_answer_clean_up(&answer);
}

static struct dtq_sqs_entry entry(const char *body)
{
    struct dtq_sqs_entry made = {.body = dtq_slice_str(body), .delay_s = -1};
    return made;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

START_TEST(a_send_holds_all_that_was_given)
{
    const struct dtq_pair attributes[] = {{"reason", "bad \"key\""}, {"b", "2"}};
    struct dtq_sqs_entry entries[] = {entry("{\"a\":\"\xc3\xa4\"}"), entry("two")};
    entries[1].delay_s = 5;
    entries[1].group_id = "g";
    entries[1].deduplication_id = "d";
    entries[1].attributes = attributes;
    entries[1].attribute_count = 2;
    ck_assert_int_eq(dtq_sqs_wire_send_batch(QUEUE, entries, 2, &out, &err), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&out),
                     "{\"QueueUrl\":\"" QUEUE "\",\"Entries\":["
                     "{\"Id\":\"0\",\"MessageBody\":\"{\\\"a\\\":\\\"\xc3\xa4\\\"}\"},"
                     "{\"Id\":\"1\",\"MessageBody\":\"two\",\"DelaySeconds\":5,\"MessageGroupId\":\"g\","
                     "\"MessageDeduplicationId\":\"d\",\"MessageAttributes\":{"
                     "\"reason\":{\"DataType\":\"String\",\"StringValue\":\"bad \\\"key\\\"\"},"
                     "\"b\":{\"DataType\":\"String\",\"StringValue\":\"2\"}}}]}");
}
END_TEST

START_TEST(a_send_is_checked)
{
    struct dtq_sqs_entry entries[11];
    struct dtq_pair attributes[11];
    for (int i = 0; i < 11; i++) {
        entries[i] = entry("x");
        attributes[i].name = attributes[i].value = "n";
    }
    ck_assert_int_eq(dtq_sqs_wire_send_batch(QUEUE, entries, 0, &out, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_sqs_wire_send_batch(QUEUE, entries, 11, &out, &err), DTQ_INVALID_ARGUMENT);
    entries[0].delay_s = 901;
    ck_assert_int_eq(dtq_sqs_wire_send_batch(QUEUE, entries, 1, &out, &err), DTQ_INVALID_ARGUMENT);
    entries[0] = entry("");
    ck_assert_int_eq(dtq_sqs_wire_send_batch(QUEUE, entries, 1, &out, &err), DTQ_INVALID_ARGUMENT);
    entries[0] = entry("x");
    entries[0].attributes = attributes;
    entries[0].attribute_count = 11;
    ck_assert_int_eq(dtq_sqs_wire_send_batch(QUEUE, entries, 1, &out, &err), DTQ_INVALID_ARGUMENT);
    entries[0] = entry("\xff");
    ck_assert_int_eq(dtq_sqs_wire_send_batch(QUEUE, entries, 1, &out, &err), DTQ_INVALID_ARGUMENT);
}
END_TEST

START_TEST(a_send_is_bounded_in_bytes)
{
    size_t half = DTQ_SQS_MESSAGE_BYTES_MAX / 2;
    char *body = malloc(half + 1);
    memset(body, 'x', half);
    body[half] = '\0';
    struct dtq_sqs_entry entries[] = {entry(body), entry(body), entry("y")};
    ck_assert_int_eq(dtq_sqs_wire_send_batch(QUEUE, entries, 2, &out, &err), DTQ_OK);
    dtq_buf_clear(&out);
    ck_assert_int_eq(dtq_sqs_wire_send_batch(QUEUE, entries, 3, &out, &err), DTQ_TOO_LARGE);
    free(body);
}
END_TEST

START_TEST(a_receive_asks_for_everything)
{
    ck_assert_int_eq(dtq_sqs_wire_receive(QUEUE, 10, 20, 60, &out, &err), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&out),
                     "{\"QueueUrl\":\"" QUEUE "\",\"MaxNumberOfMessages\":10,\"WaitTimeSeconds\":20,"
                     "\"VisibilityTimeout\":60,\"AttributeNames\":[\"All\"],\"MessageAttributeNames\":[\"All\"]}");
    dtq_buf_clear(&out);
    ck_assert_int_eq(dtq_sqs_wire_receive(QUEUE, 1, 0, -1, &out, &err), DTQ_OK);
    ck_assert_ptr_null(strstr(dtq_buf_str(&out), "VisibilityTimeout"));
    ck_assert_int_eq(dtq_sqs_wire_receive(QUEUE, 0, 0, -1, &out, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_sqs_wire_receive(QUEUE, 11, 0, -1, &out, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_sqs_wire_receive(QUEUE, 1, 21, -1, &out, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_sqs_wire_receive(QUEUE, 1, -1, -1, &out, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_sqs_wire_receive(QUEUE, 1, 0, 43201, &out, &err), DTQ_INVALID_ARGUMENT);
}
END_TEST

START_TEST(deletes_and_visibilities_carry_receipt_handles)
{
    const char *handles[] = {"h/1+=", "h2"}, *bad[] = {""};
    const int seconds[] = {0, 43200}, too_long[] = {43201};
    ck_assert_int_eq(dtq_sqs_wire_delete_batch(QUEUE, handles, 2, &out, &err), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&out), "{\"QueueUrl\":\"" QUEUE "\",\"Entries\":["
                                        "{\"Id\":\"0\",\"ReceiptHandle\":\"h/1+=\"},"
                                        "{\"Id\":\"1\",\"ReceiptHandle\":\"h2\"}]}");
    dtq_buf_clear(&out);
    ck_assert_int_eq(dtq_sqs_wire_visibility_batch(QUEUE, handles, seconds, 2, &out, &err), DTQ_OK);
    ck_assert_str_eq(dtq_buf_str(&out), "{\"QueueUrl\":\"" QUEUE "\",\"Entries\":["
                                        "{\"Id\":\"0\",\"ReceiptHandle\":\"h/1+=\",\"VisibilityTimeout\":0},"
                                        "{\"Id\":\"1\",\"ReceiptHandle\":\"h2\",\"VisibilityTimeout\":43200}]}");
    ck_assert_int_eq(dtq_sqs_wire_delete_batch(QUEUE, bad, 1, &out, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_sqs_wire_delete_batch(QUEUE, handles, 0, &out, &err), DTQ_INVALID_ARGUMENT);
    ck_assert_int_eq(dtq_sqs_wire_visibility_batch(QUEUE, handles, too_long, 1, &out, &err), DTQ_INVALID_ARGUMENT);
}
END_TEST

/* ---- batch answers ----------------------------------------------------------------------------------------------- */

START_TEST(batch_results_come_in_the_order_of_the_request)
{
    const char *text = "{\"Failed\":[{\"Id\":\"1\",\"Code\":\"InternalError\",\"Message\":\"m\",\"SenderFault\":true}],"
                       "\"Successful\":[{\"Id\":\"2\",\"MessageId\":\"two\"},{\"Id\":\"0\",\"MessageId\":\"zero\"}]}";
    char digests[4][DTQ_MD5_HEX_SIZE] = {"", "", "", ""};
    ck_assert_int_eq(
        dtq_sqs_wire_read_batch(dtq_slice_str(text), 4, (const char(*)[DTQ_MD5_HEX_SIZE])digests, &answer, &err),
        DTQ_OK);
    ck_assert_uint_eq(answer.count, 4);
    ck_assert(answer.entries[0].ok);
    ck_assert_str_eq(answer.entries[0].message_id, "zero");
    ck_assert(!answer.entries[1].ok);
    ck_assert(answer.entries[1].sender_fault);
    ck_assert_str_eq(answer.entries[1].code, "InternalError");
    ck_assert_str_eq(answer.entries[1].message, "m");
    ck_assert_str_eq(answer.entries[2].message_id, "two");
    ck_assert(!answer.entries[3].ok);
    ck_assert_str_eq(answer.entries[3].code, "MissingFromAnswer");
}
END_TEST

START_TEST(foreign_ids_are_ignored_and_a_failure_wins)
{
    const char *text = "{\"Successful\":[{\"Id\":\"0\"},{\"Id\":\"1\"},{\"Id\":\"00\"},{\"Id\":\"9\"},{\"Id\":7},7,{}],"
                       "\"Failed\":[{\"Id\":\"1\"},{\"Id\":\"-1\"},null]}";
    ck_assert_int_eq(dtq_sqs_wire_read_batch(dtq_slice_str(text), 2, NULL, &answer, &err), DTQ_OK);
    ck_assert(answer.entries[0].ok);
    ck_assert_ptr_null(answer.entries[0].message_id);
    ck_assert(!answer.entries[1].ok);
    ck_assert_str_eq(answer.entries[1].code, "Unknown");
}
END_TEST

START_TEST(a_body_that_arrived_differently_is_a_failure)
{
    const char *text = "{\"Successful\":[{\"Id\":\"0\",\"MD5OfMessageBody\":\"900150983CD24FB0D6963F7D28E17F72\"},"
                       "{\"Id\":\"1\",\"MD5OfMessageBody\":\"00000000000000000000000000000000\"}]}";
    char digests[2][DTQ_MD5_HEX_SIZE];
    dtq_sqs_wire_digest(dtq_slice_str("abc"), digests[0]);
    dtq_sqs_wire_digest(dtq_slice_str("abc"), digests[1]);
    ck_assert_str_eq(digests[0], "900150983cd24fb0d6963f7d28e17f72");
    ck_assert_int_eq(
        dtq_sqs_wire_read_batch(dtq_slice_str(text), 2, (const char(*)[DTQ_MD5_HEX_SIZE])digests, &answer, &err),
        DTQ_OK);
    ck_assert(answer.entries[0].ok);
    ck_assert(!answer.entries[1].ok);
    ck_assert_str_eq(answer.entries[1].code, "BodyDigestMismatch");
}
END_TEST

static const char *const not_answers[] = {
    "",
    "{",
    "[]",
    "null",
    "\"x\"",
    "<html></html>",
    "{\"Successful\":{}}",
    "{\"Failed\":1}",
    "{\"Messages\":7}",
    "{\"Messages\":[7]}",
    "{\"Messages\":[{\"MessageId\":\"i\",\"Body\":\"b\"}]}",
    "{\"Messages\":[{\"MessageId\":\"i\",\"ReceiptHandle\":\"h\"}]}",
    "{\"Messages\":[{\"MessageId\":\"i\",\"ReceiptHandle\":\"h\",\"Body\":7}]}",
    "{\"Messages\":[{\"MessageId\":\"i\",\"ReceiptHandle\":\"h\",\"Body\":\"b\",\"MD5OfBody\":7}]}",
    "{\"Messages\":[{\"MessageId\":\"i\",\"ReceiptHandle\":\"h\",\"Body\":\"b\",\"Attributes\":[]}]}",
    "{\"Messages\":[{},{},{},{},{},{},{},{},{},{},{}]}",
};
#define NOT_ANSWERS (sizeof not_answers / sizeof not_answers[0])

START_TEST(what_is_no_answer_is_refused)
{
    const char *text = not_answers[_i];
    bool is_batch = strstr(text, "Successful") || strstr(text, "Failed"),
         is_messages = strstr(text, "Messages") != NULL;
    if (!is_messages) {
        ck_assert_int_eq(dtq_sqs_wire_read_batch(dtq_slice_str(text), 1, NULL, &answer, &err), DTQ_RESPONSE);
        ck_assert_int_eq(err.code, DTQ_RESPONSE);
    }
    if (!is_batch) {
        ck_assert_int_eq(dtq_sqs_wire_read_messages(dtq_slice_str(text), &answer, &err), DTQ_RESPONSE);
        ck_assert_int_eq(err.code, DTQ_RESPONSE);
    }
    ck_assert_ptr_null(answer.text);
}
END_TEST

/* ---- messages ---------------------------------------------------------------------------------------------------- */

static const char two_messages[] =
    "{\"Messages\":[{\"MessageId\":\"one\",\"ReceiptHandle\":\"h1\",\"MD5OfBody\":\"900150983cd24fb0d6963f7d28e17f72\","
    "\"Body\":\"abc\",\"Attributes\":{\"ApproximateReceiveCount\":\"2\",\"SentTimestamp\":\"17\"},"
    "\"MessageAttributes\":{\"reason\":{\"DataType\":\"String\",\"StringValue\":\"x\"},"
    "\"binary\":{\"DataType\":\"Binary\",\"BinaryValue\":\"AA==\"}}},"
    "{\"MessageId\":\"two\",\"ReceiptHandle\":\"h2\",\"MD5OfBody\":\"900150983cd24fb0d6963f7d28e17f72\","
    "\"Body\":\"abd\"}]}";

START_TEST(messages_are_read_whole)
{
    ck_assert_int_eq(dtq_sqs_wire_read_messages(dtq_slice_str(two_messages), &answer, &err), DTQ_OK);
    ck_assert_uint_eq(answer.count, 2);
    const struct dtq_sqs_message *message = &answer.messages[0];
    ck_assert_str_eq(message->message_id, "one");
    ck_assert_str_eq(message->receipt_handle, "h1");
    ck_assert(dtq_slice_equal(message->body, dtq_slice_str("abc")));
    ck_assert(!message->damaged);
    ck_assert_uint_eq(message->system_attribute_count, 2);
    ck_assert_str_eq(message->system_attributes[0].name, "ApproximateReceiveCount");
    ck_assert_str_eq(message->system_attributes[0].value, "2");
    ck_assert_str_eq(message->system_attributes[1].name, "SentTimestamp");
    ck_assert_uint_eq(message->attribute_count, 1);
    ck_assert_str_eq(message->attributes[0].name, "reason");
    ck_assert_str_eq(message->attributes[0].value, "x");
}
END_TEST

START_TEST(a_damaged_body_is_marked)
{
    ck_assert_int_eq(dtq_sqs_wire_read_messages(dtq_slice_str(two_messages), &answer, &err), DTQ_OK);
    ck_assert(answer.messages[1].damaged);
    ck_assert_uint_eq(answer.messages[1].system_attribute_count, 0);
    ck_assert_uint_eq(answer.messages[1].attribute_count, 0);
}
END_TEST

START_TEST(no_messages_is_an_answer)
{
    ck_assert_int_eq(dtq_sqs_wire_read_messages(dtq_slice_str("{}"), &answer, &err), DTQ_OK);
    ck_assert_uint_eq(answer.count, 0);
    dtq_sqs_answer_clean_up(&answer);
    ck_assert_int_eq(dtq_sqs_wire_read_messages(dtq_slice_str("{\"Messages\":[]}"), &answer, &err), DTQ_OK);
    ck_assert_uint_eq(answer.count, 0);
    dtq_sqs_answer_clean_up(&answer);
    ck_assert_int_eq(dtq_sqs_wire_read_messages(dtq_slice_str("{\"Messages\":null}"), &answer, &err), DTQ_OK);
}
END_TEST

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

struct refusal_case {
    int status;
    const char *body, *query_error;
    enum dtq_code code;
    const char *type;
    bool clock_skew, expired_token;
};

static const struct refusal_case refusals[] = {
    {400, "{\"__type\":\"com.amazonaws.sqs#QueueDoesNotExist\",\"message\":\"no\"}",
     "AWS.SimpleQueueService.NonExistentQueue;Sender", DTQ_QUEUE_MISSING, "QueueDoesNotExist", false, false},
    {400, "{\"__type\":\"AWS.SimpleQueueService.NonExistentQueue\"}", "", DTQ_QUEUE_MISSING,
     "AWS.SimpleQueueService.NonExistentQueue", false, false},
    {400, "<Error/>", "AWS.SimpleQueueService.NonExistentQueue;Sender", DTQ_QUEUE_MISSING,
     "AWS.SimpleQueueService.NonExistentQueue", false, false},
    {400, "{\"__type\":\"Odd\"}", "AWS.SimpleQueueService.NonExistentQueue;Sender", DTQ_QUEUE_MISSING, "Odd", false,
     false},
    {400, "{\"__type\":\"com.amazon.coral.availability#ThrottlingException\"}", "", DTQ_THROTTLED,
     "ThrottlingException", false, false},
    {400, "{\"__type\":\"RequestThrottled\"}", "", DTQ_THROTTLED, "RequestThrottled", false, false},
    {429, "", "", DTQ_THROTTLED, "", false, false},
    {503, "slow", "", DTQ_UNAVAILABLE, "", false, false},
    {500, "{\"__type\":\"InternalFailure\"}", "", DTQ_UNAVAILABLE, "InternalFailure", false, false},
    {400, "{\"__type\":\"InvalidMessageContents\",\"message\":\"m\"}", "", DTQ_SERVICE, "InvalidMessageContents", false,
     false},
    {403, "{\"__type\":\"AccessDeniedException\"}", "", DTQ_SERVICE, "AccessDeniedException", false, false},
    {403, "{\"__type\":\"InvalidClientTokenId\"}", "", DTQ_CREDENTIALS, "InvalidClientTokenId", false, false},
    {403, "{\"__type\":\"ExpiredTokenException\"}", "", DTQ_CREDENTIALS, "ExpiredTokenException", false, true},
    {403, "{\"__type\":\"RequestTimeTooSkewed\"}", "", DTQ_CREDENTIALS, "RequestTimeTooSkewed", true, false},
    {403, "{\"__type\":\"RequestExpired\"}", "", DTQ_CREDENTIALS, "RequestExpired", true, false},
    {403, "{\"__type\":\"InvalidSignatureException\",\"message\":\"Signature expired: 1 is now earlier than 2\"}", "",
     DTQ_CREDENTIALS, "InvalidSignatureException", true, false},
    {403, "{\"__type\":\"SignatureDoesNotMatch\",\"message\":\"Signature not yet current: x\"}", "", DTQ_CREDENTIALS,
     "SignatureDoesNotMatch", true, false},
    {403, "{\"__type\":\"InvalidSignatureException\",\"message\":\"The request signature does not match\"}", "",
     DTQ_CREDENTIALS, "InvalidSignatureException", false, false},
    {400, "{\"__type\":7,\"message\":[]}", "", DTQ_SERVICE, "", false, false},
    {400, "{\"__type\":\"x y\"}", "", DTQ_SERVICE, "", false, false},
    {302, "[]", "", DTQ_SERVICE, "", false, false},
};
#define REFUSALS (sizeof refusals / sizeof refusals[0])

START_TEST(refusals_are_understood)
{
    const struct refusal_case *wanted = &refusals[_i];
    struct dtq_sqs_refusal refusal;
    dtq_sqs_wire_read_refusal(wanted->status, dtq_slice_str(wanted->body), wanted->query_error, &refusal);
    ck_assert_int_eq(refusal.code, wanted->code);
    ck_assert_str_eq(refusal.type, wanted->type);
    ck_assert_int_eq(refusal.clock_skew, wanted->clock_skew);
    ck_assert_int_eq(refusal.expired_token, wanted->expired_token);
}
END_TEST

START_TEST(the_message_of_a_refusal_is_one_bounded_line)
{
    struct dtq_sqs_refusal refusal;
    struct dtq_buf body;
    dtq_buf_init(&body, 4096);
    dtq_buf_add_str(&body, "{\"__type\":\"X\",\"Message\":\"a\\n\\u007fb");
    for (int i = 0; i < 300; i++)
        dtq_buf_add_str(&body, "\xc3\xa4");
    dtq_buf_add_str(&body, "\"}");
    dtq_sqs_wire_read_refusal(400, dtq_buf_slice(&body), "", &refusal);
    ck_assert_int_eq(strncmp(refusal.message, "a  b\xc3\xa4", 6), 0);
    size_t length = strlen(refusal.message);
    ck_assert_uint_ge(length, 250);
    ck_assert_int_eq((unsigned char)refusal.message[length - 1], 0xa4);
    dtq_buf_clean_up(&body);
}
END_TEST

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static enum dtq_code build_and_read(void *context)
{
    (void)context;
    struct dtq_sqs_entry entries[] = {entry("x"), entry("y")};
    struct dtq_buf text;
    struct dtq_sqs_answer read;
    dtq_buf_init(&text, 1 << 20);
    enum dtq_code rc = dtq_sqs_wire_send_batch(QUEUE, entries, 2, &text, &err);
    if (!rc)
        rc = dtq_sqs_wire_read_messages(dtq_slice_str(two_messages), &read, &err);
    if (!rc)
        dtq_sqs_answer_clean_up(&read);
    if (!rc)
        rc = dtq_sqs_wire_read_batch(dtq_slice_str("{\"Successful\":[{\"Id\":\"0\"}]}"), 1, NULL, &read, &err);
    if (!rc)
        dtq_sqs_answer_clean_up(&read);
    dtq_buf_clean_up(&text);
    return rc;
}

START_TEST(survives_failing_allocations)
{
    run_with_failing_allocations(build_and_read, NULL);
}
END_TEST

Suite *sqs_wire_suite(void)
{
    Suite *suite = suite_create("sqs_wire");
    TCase *requests = tcase_create("requests");
    tcase_add_checked_fixture(requests, set_up, tear_down);
    tcase_add_test(requests, a_send_holds_all_that_was_given);
    tcase_add_test(requests, a_send_is_checked);
    tcase_add_test(requests, a_send_is_bounded_in_bytes);
    tcase_add_test(requests, a_receive_asks_for_everything);
    tcase_add_test(requests, deletes_and_visibilities_carry_receipt_handles);
    suite_add_tcase(suite, requests);
    TCase *answers = tcase_create("answers");
    tcase_add_checked_fixture(answers, set_up, tear_down);
    tcase_add_test(answers, batch_results_come_in_the_order_of_the_request);
    tcase_add_test(answers, foreign_ids_are_ignored_and_a_failure_wins);
    tcase_add_test(answers, a_body_that_arrived_differently_is_a_failure);
    tcase_add_loop_test(answers, what_is_no_answer_is_refused, 0, (int)NOT_ANSWERS);
    tcase_add_test(answers, messages_are_read_whole);
    tcase_add_test(answers, a_damaged_body_is_marked);
    tcase_add_test(answers, no_messages_is_an_answer);
    tcase_add_loop_test(answers, refusals_are_understood, 0, (int)REFUSALS);
    tcase_add_test(answers, the_message_of_a_refusal_is_one_bounded_line);
    tcase_add_test(answers, survives_failing_allocations);
    suite_add_tcase(suite, answers);
    return suite;
}
