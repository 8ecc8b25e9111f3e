-- Each statement can be repeated: MySQL commits every one of them by itself, so a kill may leave some of them done.

CREATE TABLE IF NOT EXISTS archive_meta (
    id    TINYINT UNSIGNED NOT NULL PRIMARY KEY,
    epoch INT UNSIGNED     NOT NULL
) ENGINE = InnoDB;

-- A conversation's messages lie side by side in the order they are read: a page of history is one range of the key.
CREATE TABLE IF NOT EXISTS messages (
    conversation_id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    seq             BIGINT UNSIGNED   NOT NULL,
    message_id      BINARY(16)        NOT NULL,
    sender_id       BIGINT UNSIGNED   NOT NULL,
    sent_at_ms      BIGINT UNSIGNED   NOT NULL,
    content_type    SMALLINT UNSIGNED NOT NULL,
    body            BLOB              NOT NULL,
    PRIMARY KEY (conversation_id, seq),
    UNIQUE KEY messages_id (message_id)
) ENGINE = InnoDB;

-- For people and other programs; the gateway asks the key.
CREATE OR REPLACE SQL SECURITY INVOKER VIEW conversations AS
    SELECT conversation_id, MAX(seq) AS last_seq FROM messages GROUP BY conversation_id;

CREATE TABLE IF NOT EXISTS members (
    user_id         BIGINT UNSIGNED NOT NULL,
    conversation_id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    joined_at_ms    BIGINT UNSIGNED NOT NULL,
    PRIMARY KEY (user_id, conversation_id),
    KEY members_of (conversation_id, user_id)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS receipts (
    user_id         BIGINT UNSIGNED NOT NULL,
    conversation_id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    delivered_seq   BIGINT UNSIGNED NOT NULL,
    read_seq        BIGINT UNSIGNED NOT NULL,
    PRIMARY KEY (user_id, conversation_id)
) ENGINE = InnoDB;

-- name_key is the name in lower case by Unicode's rules, made by the gateway. It is bytes: a collation would take
-- letters for equal that differ by more than case, and ignore spaces at the end.
CREATE TABLE IF NOT EXISTS users (
    user_id       BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name          VARCHAR(128) CHARACTER SET utf8mb4 NOT NULL,
    name_key      VARBINARY(512)  NOT NULL,
    password_hash VARCHAR(255) CHARACTER SET ascii NOT NULL,
    created_at_ms BIGINT UNSIGNED NOT NULL,
    UNIQUE KEY users_name (name_key)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS rooms (
    room_id       BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name          VARCHAR(128) CHARACTER SET utf8mb4 NOT NULL,
    owner_id      BIGINT UNSIGNED NOT NULL,
    capacity      INT UNSIGNED    NOT NULL,
    member_count  INT UNSIGNED    NOT NULL,
    created_at_ms BIGINT UNSIGNED NOT NULL
) ENGINE = InnoDB;
