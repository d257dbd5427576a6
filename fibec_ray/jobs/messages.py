"""Ray's messages in terms of our own commands: flags that users of fibec-ray do not have are translated."""

from __future__ import annotations

import re
from collections.abc import Mapping

TOO_LARGE = (
    "code, data and backbone of the job are larger than Ray takes along; put data or backbone on storage that every "
    "node sees and give the absolute path, or submit with --installed"
)
NO_NODE = (
    "the cluster has no node ready to start a job; wait until `ray status` on its head lists one, then submit again"
)
NO_DASHBOARD = (
    "Ray's dashboard is not installed here; install it with `pip install 'ray[default]'` in the version of the cluster"
)
NO_START = (
    "the job's driver did not start in time; the cluster may have no free CPU or memory for it (`ray status` on its "
    "head)"
)
NO_FILES = "the cluster could not unpack the job's files; check the free disk of its nodes (\\g<why>)"
DIED = (
    "the job's driver was killed; the cluster's head may have run out of memory (`fibec-ray plan` shows what a run "
    "takes)"
)
TRANSLATIONS: Mapping[str, str] = {
    r"Package size .*exceeds the maximum size": TOO_LARGE,
    r"submission_id \S+ already exists": "a job of this name exists; choose another --name",
    r"No available agent": NO_NODE,
    r"require the ray\[default\]": NO_DASHBOARD,
    r"Ray version (\S+) is running on the cluster": "the cluster runs Ray \\1, which has no jobs; use a newer version",
    r"failed to start within|could not be scheduled": NO_START,
    r"runtime_env setup failed: (?P<why>.{0,200})": NO_FILES,
    r"Job supervisor actor died": DIED,
    r"Failed to connect to Ray at address": "no job server answers there; is the cluster up and its dashboard on?",
}
"""Pattern in Ray's message -> what it means to a user of fibec-ray."""


def in_our_words(message: str) -> str:
    """The translation of a message of Ray's; the message itself if it needs none."""
    for pattern, words in TRANSLATIONS.items():
        if found := re.search(pattern, message):
            return found.expand(words)
    return message
