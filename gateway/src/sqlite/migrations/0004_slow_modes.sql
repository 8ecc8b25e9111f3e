-- Seconds a user waits between two messages in a room; 0: none.
ALTER TABLE rooms ADD COLUMN slow_mode_s INTEGER NOT NULL DEFAULT 0 CHECK (slow_mode_s >= 0);
