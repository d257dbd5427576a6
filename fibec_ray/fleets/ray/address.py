"""fleet.address: find a cluster to join, and check that a Ray head answers there."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import psutil

from fibec_ray.environment import read
from fibec_ray.errors import ConfigError
from fibec_ray.fleets.ray.scratch import is_scratch

CONNECT_TIMEOUT_S = 5
HELP = "give the HOST:PORT that `ray start --head` printed, or auto on a machine of the cluster, or leave it out"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""The first bytes of an HTTP/2 client: preface and empty settings. Ray's head is an HTTP/2 server."""
SETTINGS, SETTINGS_AT, LONGEST_HEADER = 4, 3, 9
"""Type of the frame that a server answers with, offset of the type, and bytes of a frame's header."""


def resolve(address: str) -> str:
    """HOST:PORT of the cluster. `auto` is RAY_ADDRESS, or the cluster that runs on this machine.

    Raises ConfigError without a cluster, or for an address that is not HOST:PORT.
    """
    where = read("RAY_ADDRESS") or address if address == "auto" else address
    found = _running() if where == "auto" else where
    if found is None:
        raise ConfigError(
            "fleet.address: auto: no Ray cluster runs on this machine, and RAY_ADDRESS is not set; start one with "
            "`ray start --head`, or leave fleet.address out to start a local cluster for this run"
        )
    host, colon, port = found.rpartition(":")
    if not colon or not re.fullmatch(r"\[[^\]/]+\]|[^\[\]/:@\s]+", host) or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"fleet.address: {found}: is not the HOST:PORT of a Ray head; {HELP}")
    return found


def refuse_silence(address: str) -> None:
    """Raise ConfigError unless a Ray head answers. Ray itself would keep trying for a minute."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S) as connection:
            if (read("RAY_USE_TLS") or "0").lower() in ("1", "true"):
                return
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.sendall(PREFACE)
            header = connection.makefile("rb").read(LONGEST_HEADER)  # of the first frame; less if no more comes
            if len(header) < LONGEST_HEADER or header[SETTINGS_AT] != SETTINGS:
                raise ConfigError(f"fleet.address: {address}: what answers there is not a Ray head; {HELP}")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"fleet.address: {address}: no Ray head answers there ({error}); {HELP}") from error


def _running() -> str | None:
    """The address of the cluster that this machine belongs to, ignoring local clusters of other runs."""
    from ray._private.services import canonicalize_bootstrap_address, find_gcs_addresses

    try:
        found: str | None = canonicalize_bootstrap_address("auto")
    except ConnectionError:
        return None
    private = private_addresses()
    return found if found not in private else min(find_gcs_addresses() - private, default=None)


def private_addresses() -> set[str]:
    """Addresses of local clusters that runs on this machine started for themselves."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ()).split()  # a process with a title of its own has one word
        flags = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if "gcs-address" in flags and "temp-dir" in flags and is_scratch(Path(flags["temp-dir"])):
            found.add(flags["gcs-address"])
    return found
