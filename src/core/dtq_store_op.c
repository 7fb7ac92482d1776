/* Operations of the store: making them, and reading their results.  Nothing here touches the connection. */
#include <stdio.h>
#include <string.h>

#include "dtq_alloc.h"
#include "dtq_buf.h"
#include "dtq_limits.h"
#include "dtq_store_priv.h"
#include "dtq_store_sql.h"

/* dtq_store.c keeps one bit for each. */
_Static_assert(sizeof statements / sizeof statements[0] <= 64, "more statements than bits");

/* ---- the table of statements ------------------------------------------------------------------------------------- */

const struct dtq_statement *dtq_statement_table(size_t *count)
{
    *count = sizeof statements / sizeof statements[0];
    return statements;
}

const struct dtq_statement *dtq_statement_find(const char *name)
{
    for (size_t i = 0; i < sizeof statements / sizeof statements[0]; i++) {
        if (strcmp(statements[i].name, name) == 0)
            return &statements[i];
    }
    return NULL;
}

size_t dtq_statement_index(const struct dtq_statement *statement)
{
    return (size_t)(statement - statements);
}

/* ---- parameters -------------------------------------------------------------------------------------------------- */

static void add_item(struct dtq_buf *out, const struct dtq_param *item)
{
    if (!item->data) {
        dtq_buf_add_str(out, "NULL");
        return;
    }
    dtq_buf_add_char(out, '"');
    for (size_t i = 0; i < item->length; i++) {
        if (item->data[i] == '"' || item->data[i] == '\\')
            dtq_buf_add_char(out, '\\');
        dtq_buf_add_char(out, item->data[i]);
    }
    dtq_buf_add_char(out, '"');
}

enum dtq_code dtq_pg_array(const struct dtq_param *items, size_t count, struct dtq_buf *out, struct dtq_error *err)
{
    dtq_buf_add_char(out, '{');
    for (size_t i = 0; i < count; i++) {
        if (i)
            dtq_buf_add_char(out, ',');
        add_item(out, &items[i]);
    }
    dtq_buf_add_char(out, '}');
    return dtq_buf_check(out, err, "an array parameter");
}

/* Pointers and text in one block. */
static enum dtq_code copy_values(struct dtq_store_op *op, const struct dtq_param *params, size_t count,
                                 struct dtq_error *err)
{
    size_t size = count * sizeof(char *);
    for (size_t i = 0; i < count; i++) {
        if (!params[i].data)
            continue;
        if (memchr(params[i].data, '\0', params[i].length))
            return dtq_error_set(err, DTQ_INVALID_ARGUMENT,
                                 "parameter %zu of %s holds a NUL, which PostgreSQL's text cannot", i + 1,
                                 op->statement->name);
        size += params[i].length + 1;
    }
    op->values = dtq_malloc(size);
    if (!op->values)
        return dtq_error_no_memory(err);
    char *text = (char *)(op->values + count);
    for (size_t i = 0; i < count; i++) {
        op->values[i] = NULL;
        if (!params[i].data)
            continue;
        memcpy(text, params[i].data, params[i].length);
        text[params[i].length] = '\0';
        op->values[i] = text;
        text += params[i].length + 1;
    }
    op->value_count = (int)count;
    return DTQ_OK;
}

/* ---- constructors ------------------------------------------------------------------------------------------------ */

static void op_destroy(struct dtq_op *op)
{
    struct dtq_store_op *mine = (struct dtq_store_op *)op;
    PQclear(mine->result);
    dtq_free(mine->values);
    dtq_free(mine->text);
    dtq_free(mine);
}

static struct dtq_store_op *op_new(struct dtq_store *store, enum dtq_store_op_kind kind, int timeout_ms,
                                   struct dtq_error *err)
{
    static const struct dtq_op_class op_class = {DTQ_OP_STORE, op_destroy};
    struct dtq_store_op *op = dtq_calloc(1, sizeof *op);
    if (!op) {
        dtq_error_no_memory(err);
        return NULL;
    }
    dtq_op_init(&op->op, &op_class, dtq_store_source(store));
    op->op.deadline_ms = dtq_store_deadline_ms(store, timeout_ms);
    op->kind = kind;
    return op;
}

struct dtq_store_op *dtq_store_run(struct dtq_store *store, const struct dtq_statement *statement,
                                   const struct dtq_param *params, int timeout_ms, struct dtq_error *err)
{
    struct dtq_store_op *op = op_new(store, DTQ_STORE_STATEMENT, timeout_ms, err);
    if (!op)
        return NULL;
    op->statement = statement;
    if (copy_values(op, params, strlen(statement->params), err)) {
        op_destroy(&op->op);
        return NULL;
    }
    return op;
}

static struct dtq_store_op *text_op(struct dtq_store *store, enum dtq_store_op_kind kind, struct dtq_slice text,
                                    int timeout_ms, struct dtq_error *err)
{
    struct dtq_store_op *op = op_new(store, kind, timeout_ms, err);
    if (!op)
        return NULL;
    op->text = dtq_strndup(text.data ? text.data : "", text.length);
    if (!op->text) {
        dtq_error_no_memory(err);
        op_destroy(&op->op);
        return NULL;
    }
    return op;
}

static struct dtq_store_op *channel_op(struct dtq_store *store, enum dtq_store_op_kind kind, const char *channel,
                                       int timeout_ms, struct dtq_error *err)
{
    size_t length = strlen(channel);
    if (length == 0 || length > DTQ_PG_NAME_BYTES_MAX) {
        dtq_error_set(err, DTQ_INVALID_ARGUMENT, "a channel name has 1 to %d bytes", DTQ_PG_NAME_BYTES_MAX);
        return NULL;
    }
    return text_op(store, kind, dtq_slice(channel, length), timeout_ms, err);
}

struct dtq_store_op *dtq_store_listen(struct dtq_store *store, const char *channel, int timeout_ms,
                                      struct dtq_error *err)
{
    return channel_op(store, DTQ_STORE_LISTEN, channel, timeout_ms, err);
}

struct dtq_store_op *dtq_store_unlisten(struct dtq_store *store, const char *channel, int timeout_ms,
                                        struct dtq_error *err)
{
    return channel_op(store, DTQ_STORE_UNLISTEN, channel, timeout_ms, err);
}

struct dtq_store_op *dtq_store_script(struct dtq_store *store, struct dtq_slice sql, int timeout_ms,
                                      struct dtq_error *err)
{
    if (sql.length && memchr(sql.data, '\0', sql.length)) {
        dtq_error_set(err, DTQ_INVALID_ARGUMENT, "the script holds a NUL");
        return NULL;
    }
    return text_op(store, DTQ_STORE_SCRIPT, sql, timeout_ms, err);
}

char *dtq_store_listen_sql(const char *verb, const char *channel)
{
    struct dtq_buf sql;
    dtq_buf_init(&sql, 256);
    dtq_buf_add_str(&sql, verb);
    dtq_buf_add_str(&sql, " \"");
    for (const char *c = channel; *c; c++) {
        if (*c == '"')
            dtq_buf_add_char(&sql, '"');
        dtq_buf_add_char(&sql, *c);
    }
    dtq_buf_add_char(&sql, '"');
    return dtq_buf_take(&sql, NULL);
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

size_t dtq_store_op_rows(const struct dtq_store_op *op)
{
    return op->result ? (size_t)PQntuples(op->result) : 0;
}

const struct dtq_statement *dtq_store_op_statement(const struct dtq_store_op *op)
{
    return op->statement;
}

struct dtq_slice dtq_store_op_value(const struct dtq_store_op *op, size_t row, size_t column)
{
    int r = (int)row, c = (int)column;
    if (!op->result || r >= PQntuples(op->result) || c >= PQnfields(op->result) || PQgetisnull(op->result, r, c))
        return dtq_slice(NULL, 0);
    return dtq_slice(PQgetvalue(op->result, r, c), (size_t)PQgetlength(op->result, r, c));
}
