-- Conversations that began an epoch of their own; all others are in the archive's.
CREATE TABLE conversation_epochs (
    conversation_id TEXT    PRIMARY KEY,
    epoch           INTEGER NOT NULL CHECK (epoch > 0)
) WITHOUT ROWID;
