-- Rows get a number that stays, whatever compacts the file, and message ids an index of their own, which is written a bucket
-- at a time: see ids.rs.
DROP VIEW conversations;
CREATE TABLE messages_numbered (
    row             INTEGER PRIMARY KEY,
    conversation_id TEXT    NOT NULL,
    seq             INTEGER NOT NULL,
    message_id      BLOB    NOT NULL,
    sender_id       INTEGER NOT NULL,
    sent_at_ms      INTEGER NOT NULL,
    content_type    INTEGER NOT NULL,
    body            BLOB    NOT NULL
);
INSERT INTO messages_numbered
    SELECT rowid, conversation_id, seq, message_id, sender_id, sent_at_ms, content_type, body FROM messages ORDER BY rowid;
DROP TABLE messages;
ALTER TABLE messages_numbered RENAME TO messages;
CREATE UNIQUE INDEX messages_place ON messages (conversation_id, seq);

CREATE VIEW conversations AS
    SELECT conversation_id, MAX(seq) AS last_seq FROM messages GROUP BY conversation_id;

CREATE TABLE message_ids (
    message_id BLOB    PRIMARY KEY,
    row        INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO message_ids SELECT message_id, row FROM messages ORDER BY message_id;

-- Messages up to row indexed_to are in message_ids. So are those up to row round_from whose id's first byte is below
-- next_bucket. Others may be.
ALTER TABLE archive_meta ADD COLUMN indexed_to INTEGER NOT NULL DEFAULT 0;
ALTER TABLE archive_meta ADD COLUMN round_from INTEGER NOT NULL DEFAULT 0;
ALTER TABLE archive_meta ADD COLUMN next_bucket INTEGER NOT NULL DEFAULT 0;
UPDATE archive_meta SET indexed_to = (SELECT COALESCE(MAX(row), 0) FROM messages);
UPDATE archive_meta SET round_from = indexed_to;
