/*
 * An SQS endpoint that answers canned bodies: what is measured against it is the client alone.
 *
 *     stub_canned BODY-FILE
 *
 * Every message has BODY-FILE's text.  Batches are answered with the Ids of the request, all of them successful; a
 * receive brings as many messages as it asks for, at once.  Nothing is kept and no signature is looked at.  Listens on
 * the loopback, prints its port, and ends with its standard input.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/evp.h>

#define CONNECTIONS_MAX 256
#define REQUEST_BYTES_MAX (4 * 1024 * 1024)
#define BODY_BYTES_MAX (256 * 1024)
#define MESSAGES_MAX 10
#define UUID "5fea7756-0ea4-451a-a703-a558b933e274"
/* As long as AWS's own. */
#define HANDLE                                                                                                         \
    "AQEBzbVv8Qk4mT0uJ6LxgK9cR2dYwN1hS7fPqEaXoZiCtBvMlGrUjDyHsWnKeOpFA3x5V8bQ4z6T1m0uJ7LgK9cR2dYwN1hS7fPqEaXoZiCtB"    \
    "vMlGrUjDyHsWnKeOpFA3x5V8bQ4z6T1m0uJ7LgK9cR2dYwN1hS7fPqEaXoZiCtBvMlGrUjDyHsWnKeOpFA3x5V8bQ4z6T1m0uJ7LgK9cR2dYw="

struct connection {
    char *text; /* what has been read and not used */
    size_t length;
};

static struct pollfd sockets[CONNECTIONS_MAX]; /* standard input, the listener, connections */
static struct connection connections[CONNECTIONS_MAX];
static nfds_t socket_count;
static char digest[33];
static char *received[MESSAGES_MAX + 1]; /* the answer with so many messages */
static char *answer;
static size_t answer_size;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void *allocate(size_t size)
{
    void *block = malloc(size);
    if (!block)
        fail("malloc");
    return block;
}

/* ---- what is said ------------------------------------------------------------------------------------------------ */

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    char *text = allocate(BODY_BYTES_MAX + 1);
    if (!file)
        fail(path);
    text[fread(text, 1, BODY_BYTES_MAX, file)] = '\0';
    fclose(file);
    return text;
}

static void set_digest(const char *text)
{
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    if (EVP_Digest(text, strlen(text), bytes, &size, EVP_md5(), NULL) != 1)
        fail("MD5");
    for (unsigned i = 0; i < 16; i++)
        snprintf(digest + 2 * i, 3, "%02x", bytes[i]);
}

static char *escape(const char *text)
{
    char *escaped = allocate(2 * strlen(text) + 1), *at = escaped;
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            *at++ = '\\';
        *at++ = *text;
    }
    *at = '\0';
    return escaped;
}

static void prepare_messages(const char *body)
{
    char *escaped = escape(body);
    size_t size = (strlen(escaped) + 1024) * MESSAGES_MAX;
    for (int count = 1; count <= MESSAGES_MAX; count++) {
        char *out = received[count] = allocate(size), *end = out + size;
        out += snprintf(out, (size_t)(end - out), "{\"Messages\":[");
        for (int i = 0; i < count; i++)
            out += snprintf(out, (size_t)(end - out),
                            "%s{\"MessageId\":\"" UUID "\",\"ReceiptHandle\":\"" HANDLE "\",\"MD5OfBody\":\"%s\","
                            "\"Body\":\"%s\",\"Attributes\":{\"SenderId\":\"AIDASSYFHUBOBT7F4XT75\","
                            "\"ApproximateFirstReceiveTimestamp\":\"1677112433437\",\"ApproximateReceiveCount\":\"1\","
                            "\"SentTimestamp\":\"1677112427387\"}}",
                            i ? "," : "", digest, escaped);
        snprintf(out, (size_t)(end - out), "]}");
    }
    free(escaped);
}

/* All entries of a request were successful; extra is what each says beside its Id. */
static void say_successful(const char *request, const char *extra)
{
    static const char mark[] = "\"Id\":";
    char *out = answer, *end = answer + answer_size;
    out += snprintf(out, (size_t)(end - out), "{\"Successful\":[");
    const char *comma = "";
    for (const char *at = strstr(request, mark); at; at = strstr(at, mark)) {
        at += strlen(mark);
        at += strspn(at, " \"");
        out += snprintf(out, (size_t)(end - out), "%s{\"Id\":\"%.*s\"%s}", comma, (int)strcspn(at, "\""), at, extra);
        comma = ",";
    }
    snprintf(out, (size_t)(end - out), "]}");
}

static const char *say_messages(const char *request)
{
    static const char key[] = "\"MaxNumberOfMessages\":";
    const char *at = strstr(request, key);
    int count = at ? atoi(at + strlen(key)) : 1;
    return received[count < 1 || count > MESSAGES_MAX ? 1 : count];
}

/* The body that answers a request. */
static const char *say(const char *header, const char *request)
{
    char sent[128];
    const char *target = strcasestr(header, "\r\nx-amz-target:");
    const char *action = target ? strstr(target, "AmazonSQS.") : NULL;
    action = action ? action + strlen("AmazonSQS.") : "";
    snprintf(sent, sizeof sent, ",\"MessageId\":\"" UUID "\",\"MD5OfMessageBody\":\"%s\"", digest);
    if (strncmp(action, "SendMessageBatch", 16) == 0)
        say_successful(request, sent);
    else if (strncmp(action, "SendMessage", 11) == 0)
        snprintf(answer, answer_size, "{%s}", sent + 1);
    else if (strncmp(action, "ReceiveMessage", 14) == 0)
        return say_messages(request);
    else if (strncmp(action, "DeleteMessageBatch", 18) == 0)
        say_successful(request, "");
    else if (strncmp(action, "GetQueueUrl", 11) == 0)
        snprintf(answer, answer_size, "{\"QueueUrl\":\"http://%.*s/123456789012/bench\"}",
                 (int)strcspn(strcasestr(header, "\r\nhost: ") + 8, "\r"), strcasestr(header, "\r\nhost: ") + 8);
    else
        return "{}";
    return answer;
}

/* ---- connections ------------------------------------------------------------------------------------------------- */

static bool send_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        data += sent;
        length -= (size_t)sent;
    }
    return true;
}

static bool reply(int fd, const char *body)
{
    static char text[BODY_BYTES_MAX * 2 * MESSAGES_MAX + 1024];
    int length = snprintf(text, sizeof text,
                          "HTTP/1.1 200 OK\r\nx-amzn-RequestId: " UUID "\r\nDate: Mon, 23 Nov 2026 22:00:00 GMT\r\n"
                          "Content-Type: application/x-amz-json-1.0\r\nContent-Length: %zu\r\n"
                          "connection: keep-alive\r\n\r\n%s",
                          strlen(body), body);
    return send_all(fd, text, (size_t)length);
}

static size_t content_length(const char *header)
{
    const char *field = strcasestr(header, "\r\ncontent-length:");
    return field ? strtoul(field + strlen("\r\ncontent-length:"), NULL, 10) : 0;
}

/* Answer every whole request that has been read; false when the connection is to be closed. */
static bool answer_requests(int fd, struct connection *connection)
{
    for (;;) {
        connection->text[connection->length] = '\0';
        char *end = strstr(connection->text, "\r\n\r\n");
        if (!end)
            return true;
        end[2] = '\0';
        size_t whole = (size_t)(end + 4 - connection->text) + content_length(connection->text);
        if (connection->length < whole) {
            end[2] = '\r';
            return connection->length < REQUEST_BYTES_MAX;
        }
        char after = connection->text[whole];
        connection->text[whole] = '\0';
        bool went_out = reply(fd, say(connection->text, end + 4));
        connection->text[whole] = after;
        connection->length -= whole;
        memmove(connection->text, connection->text + whole, connection->length);
        if (!went_out)
            return false;
    }
}

static bool serve(int fd, struct connection *connection)
{
    ssize_t got = recv(fd, connection->text + connection->length, REQUEST_BYTES_MAX - connection->length, 0);
    if (got <= 0)
        return false;
    connection->length += (size_t)got;
    return answer_requests(fd, connection);
}

static void add_connection(int fd)
{
    int at_once = 1;
    if (socket_count == CONNECTIONS_MAX) {
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof at_once);
    connections[socket_count].text = allocate(REQUEST_BYTES_MAX + 1);
    connections[socket_count].length = 0;
    sockets[socket_count].fd = fd;
    sockets[socket_count++].events = POLLIN;
}

/* The last one takes its place. */
static void drop_connection(nfds_t index)
{
    close(sockets[index].fd);
    free(connections[index].text);
    socket_count--;
    sockets[index] = sockets[socket_count];
    connections[index] = connections[socket_count];
}

static int listen_on_loopback(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) || listen(fd, CONNECTIONS_MAX) ||
        getsockname(fd, (struct sockaddr *)&address, &length))
        fail("the socket");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int count, char **arguments)
{
    if (count != 2) {
        fprintf(stderr, "usage: stub_canned BODY-FILE\n");
        return 2;
    }
    char *body = read_file(arguments[1]);
    set_digest(body);
    prepare_messages(body);
    free(body);
    answer_size = 64 * 1024;
    answer = allocate(answer_size);
    sockets[0] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
    sockets[1] = (struct pollfd){.fd = listen_on_loopback(), .events = POLLIN};
    socket_count = 2;
    while (poll(sockets, socket_count, -1) > 0 && !sockets[0].revents) {
        for (nfds_t i = socket_count - 1; i >= 2; i--) {
            if (sockets[i].revents && !serve(sockets[i].fd, &connections[i]))
                drop_connection(i);
        }
        if (sockets[1].revents)
            add_connection(accept(sockets[1].fd, NULL, NULL));
    }
    return 0;
}
