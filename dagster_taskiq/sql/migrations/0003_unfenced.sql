-- Coordinators before this one whose connections to Dagster's event log have not been ended yet.

ALTER TABLE dagster_taskiq_runs ADD COLUMN unfenced bigint[] NOT NULL DEFAULT '{}';
