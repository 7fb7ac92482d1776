/*
 * Every cap of the core in one place.  A cap that comes from a service names its document.
 */
#ifndef DTQ_LIMITS_H
#define DTQ_LIMITS_H

/* SQS: "Amazon SQS message quotas" (SQS Developer Guide). */
#define DTQ_SQS_BATCH_MAX 10
#define DTQ_SQS_MESSAGE_BYTES_MAX 1048576 /* 1 MiB */
#define DTQ_SQS_WAIT_S_MAX 20
#define DTQ_SQS_DELAY_S_MAX 900
#define DTQ_SQS_VISIBILITY_S_MAX 43200
#define DTQ_SQS_ATTRIBUTES_MAX 10

/* One HTTP answer: ten messages of 1 MiB, JSON-escaped six-fold at the very worst, stay below. */
#define DTQ_HTTP_BODY_BYTES_MAX 67108864 /* 64 MiB */
#define DTQ_HTTP_HEADER_BYTES_MAX 65536  /* 64 KiB */

/* JSON from outside. */
#define DTQ_JSON_DEPTH_MAX 64

/* One step task on the queue, and one part of it stored in PostgreSQL. */
#define DTQ_PAYLOAD_BYTES_MAX 921600   /* 900 KiB */
#define DTQ_PAYLOAD_INLINE_BYTES 16384 /* 16 KiB */
#define DTQ_PAYLOAD_PARTS_MAX 16
#define DTQ_PART_BYTES_MAX 268435456 /* 256 MiB */

/* PostgreSQL: NAMEDATALEN - 1 bounds a channel name and application_name; a NOTIFY payload is
 * shorter than 8000 bytes (NOTIFY, PostgreSQL documentation). */
#define DTQ_PG_NAME_BYTES_MAX 63
#define DTQ_PG_NOTIFY_BYTES_MAX 7999

#endif
