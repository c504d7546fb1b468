"""The embedded server on the real thing: what it survives, and who can reach it.

As root the server's own account is tested directly, and the way of an ordinary user through
child processes that run as `nobody`.
"""
