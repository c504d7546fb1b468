-- A trigger function that acts with its owner's rights may be put on no table but ours: whoever
-- puts it on one of their own, which takes no right here, chooses what it is given. Firing one
-- takes no right.
REVOKE EXECUTE ON FUNCTION
    assistant.stamp_kv(), assistant.notify_kv(), assistant.notify_kv_everything(),
    assistant.record_board(), assistant.stamp_sender(), assistant.limit_waiting(),
    assistant.drop_partial_reply()
FROM PUBLIC;
