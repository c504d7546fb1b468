"""The two agents, and the loop they share."""
