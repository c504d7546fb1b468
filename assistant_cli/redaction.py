"""Keeping secrets out of what others say: a model's command, or its server, may repeat them."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

_NAME_OF_SECRET = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD)S?$|(^|_)(KEY|TOKEN|SECRET|PASS\w*|CREDENTIALS?)(_|$)",
    re.IGNORECASE,
)
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]+(?=@)")
_SECRETS_OF_DSN = "(?:ssl)?password|scram_(?:client|server)_key|oauth_client_secret"
_PASSWORD_IN_DSN = re.compile(
    rf"\b((?:{_SECRETS_OF_DSN})\s*=\s*)(?:'(?:[^'\\]|\\.)*'|[^\s'&]+)", re.IGNORECASE
)
_SHORTEST = 6
"""A shorter secret may stand in any text as an ordinary word, and is not replaced."""


def without_secrets(text: str, password: str | None = None) -> str:
    """A text without the keys in this process's environment, passwords in DSNs, or a password."""
    named = {value for name, value in os.environ.items() if _NAME_OF_SECRET.search(name)}
    secrets = {password or "", *named}
    text = _PASSWORD_IN_URL.sub(r"\1:[secret]", text)
    text = _PASSWORD_IN_DSN.sub(r"\1[secret]", text)
    # The longest first: one may be the beginning of another.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, "[secret]").replace(quote(secret, safe=""), "[secret]")
    return text
