"""Rows as programs ask them that know no task of ours: a prompt, and a text or one of some words as its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fibec_ray.data.encode import Prompt


@dataclass(frozen=True)
class Questions:
    """N prompts with their answers: texts, or words that are the same for all prompts."""

    prompts: Sequence[Prompt]
    responses: Sequence[str] = ()
    """N answers in text; () with words"""
    words: Sequence[str] = ()
    """one for each class; () with answers in text"""
    labels: Sequence[int] = ()
    """N positions of the right word"""
