-- Conversations that began an epoch of their own; all others are in the archive's.
CREATE TABLE IF NOT EXISTS conversation_epochs (
    conversation_id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    epoch           INT UNSIGNED NOT NULL
) ENGINE = InnoDB;
