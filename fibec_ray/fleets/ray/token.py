"""The token that protects a Ray cluster.

Ray would write a new token with the user's umask, so that other users can often read it. These functions keep it at
mode 0600. Ray looks for it in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, and in ~/.ray/auth_token.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import MutableMapping
from contextlib import suppress
from os.path import isfile
from pathlib import Path

from fibec_ray.errors import ClusterError

HOW_TO_SET_A_TOKEN = (
    "put the cluster's token into ~/.ray/auth_token (chmod 600), or name its file in RAY_AUTH_TOKEN_PATH"
)


def has_token(environment: MutableMapping[str, str]) -> bool:
    """True if Ray finds a token. Raises ClusterError for a named file that is missing or a file that others can use."""
    if environment.get("RAY_AUTH_TOKEN"):
        return True
    named, path = environment.get("RAY_AUTH_TOKEN_PATH"), token_path(environment)
    if not isfile(path):
        if named:
            raise ClusterError(f"RAY_AUTH_TOKEN_PATH: {named}: no such file; {HOW_TO_SET_A_TOKEN}")
        return False
    if _is_foreign(path):
        raise ClusterError(f"{path}: belongs to another user, who knows this token; remove it; {HOW_TO_SET_A_TOKEN}")
    if _is_open(path):
        raise ClusterError(f"{path}: other users of this machine may use this token; run `chmod 600 {path}`")
    return True


def token_path(environment: MutableMapping[str, str]) -> Path:
    """The file in which Ray keeps its token."""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path(environment.get("HOME") or "~").expanduser() / ".ray" / "auth_token"


def ensure_token(environment: MutableMapping[str, str]) -> str | None:
    """Make sure that a new cluster gets a token that only this user can read. Returns a line about a repaired file.

    A new token goes to ~/.ray/auth_token, where Ray's own commands look for it. If the home folder cannot be written,
    the token stays in this process's environment. Raises ClusterError for a file that cannot be repaired.
    """
    if environment.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    note, path = protect_token(environment), token_path(environment)
    if not has_token(environment) or (not environment.get("RAY_AUTH_TOKEN") and _is_blank(path)):
        token = secrets.token_hex(32)
        try:
            _write(path, token)
        except OSError:
            environment["RAY_AUTH_TOKEN"] = token
        if not isfile(path):  # a folder or a link to nowhere has its name
            environment["RAY_AUTH_TOKEN"] = token
    return note


def protect_token(environment: MutableMapping[str, str]) -> str | None:
    """Take the token file's permissions away from other users. Returns a line if there were any."""
    path = token_path(environment)
    if environment.get("RAY_AUTH_TOKEN") or not isfile(path) or _is_foreign(path) or not _is_open(path):
        return None
    with suppress(OSError):  # a file of another user, or on a read-only disk; `has_token` says what to do
        path.chmod(0o600)
        return f"{path}: other users of this machine could use this Ray token; its mode is 0600 now"
    return None


def _write(path: Path, token: str) -> None:
    """All of it or nothing. A token that another process wrote first stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent)  # mode 0600 whatever the umask
    try:
        with os.fdopen(handle, "w") as file:
            file.write(token)
        if isfile(path) and _is_blank(path):
            os.replace(part, path)
        else:
            with suppress(FileExistsError):
                os.link(part, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)


def _is_blank(path: Path) -> bool:
    try:
        return not path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise ClusterError(f"{path}: this Ray token cannot be read ({error.strerror}); {HOW_TO_SET_A_TOKEN}") from error


def _is_foreign(path: Path) -> bool:
    """Neither this user's nor root's, as mounted secrets are."""
    return hasattr(os, "getuid") and path.stat().st_uid not in (os.getuid(), 0)


def _is_open(path: Path) -> bool:
    """Group or others have some permission."""
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
