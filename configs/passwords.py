"""Passwords in URLs, which only the server may see, and no reader of a log or a configuration."""

from __future__ import annotations

import re

HIDDEN = "***"
_USER = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<user>[^\s/'\"]*)@")
_QUERY = re.compile(r"(?P<name>[A-Za-z][\w+.-]*://[^\s?'\"]*\?)(?P<values>[^\s'\"#]*)")
_USER_ONLY = ("ftp", "sftp", "ssh", "smb", "hdfs", "webhdfs")  # what stands there alone is a name; elsewhere, a token
_NO_USER = ("github",)  # github://owner:repository@branch/


def hide_passwords(text: str) -> str:
    """Return a text whose URLs have *** for passwords, tokens and the values of queries (such as signatures)."""
    return _QUERY.sub(_hidden_values, _USER.sub(_hidden_user, text))


def has_hidden(text: str) -> bool:
    """Whether a password was hidden in a URL: it leads nowhere then."""
    return "://" in text and HIDDEN in text


def _hidden_user(match: "re.Match[str]") -> str:
    scheme, user = match["scheme"], match["user"]
    protocol = scheme.lower().rpartition("::")[2]
    if protocol in _NO_USER:
        return match[0]
    name, colon, _ = user.partition(":")
    if not colon:
        return match[0] if protocol in _USER_ONLY else f"{scheme}://{HIDDEN}@"
    return f"{scheme}://{name}:{HIDDEN}@"


def _hidden_values(match: "re.Match[str]") -> str:
    values = [f"{part.partition('=')[0]}={HIDDEN}" if "=" in part else HIDDEN for part in match["values"].split("&")]
    return match["name"] + "&".join(values)
