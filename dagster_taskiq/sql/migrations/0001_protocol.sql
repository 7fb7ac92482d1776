-- The tables of the protocol.  Every move between their states is a statement of src/core/dtq_store_sql.h; what no
-- move may produce is refused here.

CREATE TABLE dagster_taskiq_migrations (
    number integer PRIMARY KEY CHECK (number >= 1),
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- Generations of claims and of coordinators: one sequence for both, so that no number is ever given twice.
CREATE SEQUENCE dagster_taskiq_generations AS bigint NO CYCLE;

CREATE TABLE dagster_taskiq_runs (
    run_id text PRIMARY KEY,
    generation bigint NOT NULL UNIQUE,
    previous_generation bigint,
    coordinator text NOT NULL,
    state text NOT NULL CHECK (state IN ('active', 'cancelling', 'ended')),
    lease timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    CONSTRAINT dagster_taskiq_runs_ended CHECK ((state = 'ended') = (ended_at IS NOT NULL)),
    CONSTRAINT dagster_taskiq_runs_takeover CHECK (previous_generation < generation),
    -- A channel name is an identifier: 63 bytes with its prefix dtq_run_.
    CONSTRAINT dagster_taskiq_runs_channel CHECK (octet_length(replace(run_id, '-', '')) BETWEEN 1 AND 55)
);

CREATE INDEX dagster_taskiq_runs_open ON dagster_taskiq_runs (created_at) WHERE state <> 'ended';
CREATE INDEX dagster_taskiq_runs_prune ON dagster_taskiq_runs (ended_at) WHERE state = 'ended';

CREATE TABLE dagster_taskiq_steps (
    run_id text NOT NULL REFERENCES dagster_taskiq_runs ON DELETE CASCADE,
    step_key text NOT NULL CHECK (step_key <> ''),
    attempt integer NOT NULL CHECK (attempt >= 1),
    state text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'claimed', 'succeeded', 'failed', 'cancelled', 'lost')),
    queue text NOT NULL,
    enqueued_by text NOT NULL,                    -- nonce of the enqueue that made the row
    queued_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz,                          -- of the last repeated sending
    sends integer NOT NULL DEFAULT 0 CHECK (sends >= 0),
    generation bigint,                            -- of the last claim, also when the row is queued again
    lease timestamptz,
    owner text,                                   -- identity of the worker that holds or held the claim
    nonce text,
    worker_name text,
    host text,
    boot_id text,
    pid integer,
    pid_start text,
    delivery_id text,
    deliveries integer,
    cancel_requested boolean NOT NULL DEFAULT false,
    claimed_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    events text,
    error text,
    reason text,
    PRIMARY KEY (run_id, step_key, attempt),
    CONSTRAINT dagster_taskiq_steps_queued CHECK (state <> 'queued'
        OR (lease IS NULL AND owner IS NULL AND nonce IS NULL AND claimed_at IS NULL AND started_at IS NULL
            AND NOT cancel_requested)),
    CONSTRAINT dagster_taskiq_steps_claim CHECK ((claimed_at IS NULL
            AND state IN ('queued', 'cancelled') AND lease IS NULL AND owner IS NULL AND nonce IS NULL)
        OR (claimed_at IS NOT NULL
            AND generation IS NOT NULL AND lease IS NOT NULL AND owner IS NOT NULL AND nonce IS NOT NULL)),
    CONSTRAINT dagster_taskiq_steps_started CHECK (started_at IS NULL OR claimed_at IS NOT NULL),
    CONSTRAINT dagster_taskiq_steps_succeeded CHECK (state <> 'succeeded' OR started_at IS NOT NULL),
    CONSTRAINT dagster_taskiq_steps_cancelled CHECK (state <> 'cancelled' OR claimed_at IS NULL OR cancel_requested),
    CONSTRAINT dagster_taskiq_steps_lost CHECK (state <> 'lost' OR reason IS NOT NULL),
    CONSTRAINT dagster_taskiq_steps_finished CHECK ((finished_at IS NOT NULL) = (state NOT IN ('queued', 'claimed'))),
    CONSTRAINT dagster_taskiq_steps_result CHECK (finished_at IS NOT NULL OR (events IS NULL AND error IS NULL)),
    -- A channel name is an identifier: 63 bytes with its prefix dtq_worker_.
    CONSTRAINT dagster_taskiq_steps_owner CHECK (octet_length(owner) BETWEEN 1 AND 52)
)
-- Renewals change only the lease, which no index holds: with room on the page they stay in place.
WITH (fillfactor = 80);

-- At most one attempt of a step is alive.
CREATE UNIQUE INDEX dagster_taskiq_steps_live ON dagster_taskiq_steps (run_id, step_key)
    WHERE state IN ('queued', 'claimed');
-- A generation holds at most one claim; also the step process's question whether it still does.
CREATE UNIQUE INDEX dagster_taskiq_steps_generation ON dagster_taskiq_steps (generation) WHERE state = 'claimed';
-- S1: the claims of a run.
CREATE INDEX dagster_taskiq_steps_claims ON dagster_taskiq_steps (run_id) WHERE state = 'claimed';
-- S2: what was last sent longest ago.
CREATE INDEX dagster_taskiq_steps_resend ON dagster_taskiq_steps (run_id, (coalesce(sent_at, queued_at)))
    WHERE state = 'queued';
-- S2's deficit and the question who serves a queue.
CREATE INDEX dagster_taskiq_steps_depth ON dagster_taskiq_steps (queue, state, queued_at)
    WHERE state IN ('queued', 'claimed');

CREATE TABLE dagster_taskiq_workers (
    identity text PRIMARY KEY CHECK (octet_length(identity) BETWEEN 1 AND 52),
    name text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    boot_id text NOT NULL,
    queues text[] NOT NULL,
    slots integer NOT NULL CHECK (slots >= 0),
    busy integer NOT NULL DEFAULT 0 CHECK (busy >= 0),
    ttl interval NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now()
);

-- Large or repeated parts of payloads, by the SHA-256 of their UTF-8.
CREATE TABLE dagster_taskiq_parts (
    digest text PRIMARY KEY,
    content text NOT NULL,
    used_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dagster_taskiq_parts_digest CHECK (digest = encode(sha256(convert_to(content, 'UTF8')), 'hex'))
);

CREATE INDEX dagster_taskiq_parts_prune ON dagster_taskiq_parts (used_at);
