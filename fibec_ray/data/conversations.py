"""Conversations as text, in the layout of Anthropic's HH-RLHF: turns of a human and an assistant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}
"""How the usual roles are written; other roles are written as they are."""
CUE = "Assistant:"
"""Ends a prompt; the response follows."""
BETWEEN = "\n\n"

Message = Mapping[str, str]
"""With a role and a content."""


def prompt_of(messages: Sequence[Message]) -> str:
    """The turns of a conversation, and the cue for the answer."""
    turns = [f"{NAMES.get(each['role'], each['role'])}: {each['content'].strip()}" for each in messages]
    return BETWEEN.join([*turns, CUE])


def asked(text: str) -> str:
    """The prompt for one question."""
    return prompt_of([{"role": "user", "content": text}])


def reply(text: str) -> str:
    """A response as it follows the cue."""
    return f" {text.strip()}"


def split_dialogues(first: str, second: str) -> tuple[str, str, str]:
    """(prompt, first response, second response) of two dialogues, split at the last cue that both have in common.

    Raises ValueError if they have none.
    """
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    at = first.rfind(CUE, 0, common)
    if at < 0:
        raise ValueError(f"the two dialogues have no {CUE!r} in common")
    end = at + len(CUE)
    return first[:end].lstrip(), first[end:], second[end:]
