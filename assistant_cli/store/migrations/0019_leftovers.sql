-- What only programs of before version 16 call goes, and what they left waiting.

DROP FUNCTION IF EXISTS assistant.update_board(jsonb);
DROP FUNCTION IF EXISTS assistant.write_with_others(bigint, text, bigint);
DROP FUNCTION IF EXISTS assistant.collect(bigint, boolean);
DROP FUNCTION IF EXISTS assistant.lock_queue_at_once();
DROP FUNCTION IF EXISTS assistant.write_after_waiting(jsonb);
DROP FUNCTION IF EXISTS assistant.write_waiting(jsonb);
DROP FUNCTION IF EXISTS assistant.lock_leases_of_waiting();
DROP TABLE IF EXISTS assistant.board_waiting;
