"""Find a cluster's job server and check that it is safe to talk to, before Ray is imported."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable, MutableMapping
from urllib.parse import urlsplit

from fibec_ray.environment import read
from fibec_ray.errors import ClusterError
from fibec_ray.fleets.ray.token import HOW_TO_SET_A_TOKEN, has_token

DEFAULT = "http://127.0.0.1:8265"
CONNECT_TIMEOUT_S = 5
ENVIRONMENT = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def settle(
    address: str | None,
    environment: MutableMapping[str, str] = os.environ,
    warn: Callable[[str], None] = lambda text: None,
) -> str:
    """The job server's URL, after checking that it answers and setting up the token.

    address: None takes that of the environment, or this machine's. Ray prefers the environment to a
    given address, so the variables are removed. warn: gets a line when secrets travel in clear text. Raises
    ClusterError.
    """
    found = [environment.pop(name, None) for name in ENVIRONMENT]
    url = as_url(address or next((text for text in found if text and text != "auto"), DEFAULT))
    use_token(url, environment)
    secrets = environment["RAY_AUTH_MODE"] == "token" or "@" in urlsplit(url).netloc
    if secrets and urlsplit(url).scheme == "http" and not is_loopback(url):
        warn(
            f"--address: {without_secrets(url)}: the token goes there in clear text; use https, or a tunnel "
            "(`ssh -L 8265:127.0.0.1:8265 HEAD`, `kubectl port-forward`) and 127.0.0.1"
        )
    refuse_silence(url)
    return url


def without_secrets(url: str) -> str:
    """The URL for messages, without user, password, query and fragment. Also for text that is not a valid URL."""
    scheme, mark, rest = url.rpartition("://")
    return scheme + mark + re.split(r"[?#]", rest.rpartition("@")[2], maxsplit=1)[0]


def as_url(address: str) -> str:
    """`head:8265` -> `http://head:8265`. Raises ClusterError for text that cannot be a job server's URL."""
    url = address.rstrip("/") if "://" in address else f"http://{address.rstrip('/')}"
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        whole = whole and not re.search(r"[\s\x00-\x1f\x7f]", url) and not (parts.query or parts.fragment)
    except ValueError:
        whole = False
    if not whole:
        raise ClusterError(
            f"--address: {without_secrets(address)}: not the URL of a job server; give http://HOST:8265 or "
            "https://HOST, where the cluster's dashboard is (not ray:// and not the port 6379 of `ray start`)"
        )
    return url


def use_token(url: str, environment: MutableMapping[str, str]) -> None:
    """Turn on Ray's token mode if there is a token. Raises ClusterError if one is needed and missing."""
    if (read("RAY_AUTH_MODE", environment) or "token") == "token" and has_token(environment):
        environment["RAY_AUTH_MODE"] = "token"
        return
    if not is_loopback(url) and urlsplit(url).scheme == "http":
        raise ClusterError(
            f"--address: {without_secrets(url)}: anyone who reaches a job server without a token runs code on its "
            f"cluster, so plain http beyond this machine needs a token; {HOW_TO_SET_A_TOKEN}; or open a tunnel (`ssh "
            "-L 8265:127.0.0.1:8265 HEAD`, `kubectl port-forward`) and use 127.0.0.1"
        )
    environment["RAY_AUTH_MODE"] = "disabled"


def is_loopback(url: str) -> bool:
    """True for an address of this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_silence(url: str) -> None:
    """Raises ClusterError at once if nothing listens; an HTTP client would try for minutes."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterError(
            f"--address: {without_secrets(url)}: nothing answers ({error}); is the cluster up, its dashboard on, and "
            "the tunnel to it open (`ray dashboard CLUSTER.yaml`, `ssh -L`, `kubectl port-forward`)?"
        ) from error
