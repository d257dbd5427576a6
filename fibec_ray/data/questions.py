"""Rows of a task as prompts with answers, for programs that do not know our tasks, such as lm_eval."""

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
    """N positions in `words` of the right answers"""
