-- The process of a worker, so that other workers of its host can see that it is dead.

ALTER TABLE dagster_taskiq_workers ADD COLUMN pid_start text NOT NULL DEFAULT '';

CREATE INDEX dagster_taskiq_workers_host ON dagster_taskiq_workers (boot_id);
-- The claims of a worker.
CREATE INDEX dagster_taskiq_steps_by_owner ON dagster_taskiq_steps (owner) WHERE state = 'claimed';
