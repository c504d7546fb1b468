"""What an agent is, the two that are built in, and the loop that every agent runs in."""
