-- Bytes that a process had the store write, for its quota.
ALTER TABLE process_status ADD COLUMN store_bytes INTEGER NOT NULL DEFAULT 0;
