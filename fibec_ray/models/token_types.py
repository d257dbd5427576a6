"""Whether a backbone tells token types apart (second text of a pair from the first)."""

from __future__ import annotations

from fibec_ray.errors import ModelError
from fibec_ray.models.architecture import inputs_of
from fibec_ray.models.spec import Backbone


def takes_types(spec: Backbone, highest: int) -> bool:
    """True if the model's scores depend on token types up to `highest`. Raises ModelError if it has too few of them.

    Some families have no table of types and add the embedding of the token with that number (GPT-2): to them a type of
    0 is more than none.
    """
    names, config = inputs_of(spec)
    if "token_type_ids" not in names:
        return False
    size: int | None = getattr(config, "type_vocab_size", None)
    if size is None:
        return True
    if size == 0 or highest == 0:  # DeBERTa without a table ignores them
        return False
    if highest >= size:
        raise ModelError(
            f"backbone.tokenizer: gives tokens of {highest + 1} types, and the backbone knows {size} "
            "(type_vocab_size); choose the backbone's own tokenizer"
        )
    return True
