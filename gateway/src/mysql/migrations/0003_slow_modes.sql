-- Rooms in slow mode: the seconds a user waits between two messages; in all others none. A table of its own, because a
-- migration that was cut off is repeated, and MySQL adds no column "if not exists".
CREATE TABLE IF NOT EXISTS room_slow_modes (
    room_id     BIGINT UNSIGNED NOT NULL PRIMARY KEY,
    slow_mode_s INT UNSIGNED    NOT NULL
) ENGINE = InnoDB;
