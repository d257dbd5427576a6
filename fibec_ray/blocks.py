"""Finds the blocks of a backbone by the shape of its module tree.

Most architectures have one list of `num_hidden_layers` transformer blocks. Swin and ConvNeXt have a list of stages, and
each stage has a list of blocks of its own; `depths` says how many. An encoder-decoder has the blocks of its encoder,
then those of its decoder.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fibec_ray.errors import ModelError

SHARED = "albert_layer_groups"
"""ALBERT's blocks. Each runs several times in a pass."""


def blocks_of(module: Any) -> nn.ModuleList:
    """The list of transformer blocks. Raises ModelError if the architecture has none."""
    count = getattr(module.config, "num_hidden_layers", None)
    if has_stages(module.config):
        raise ModelError(
            f"method.peft: {type(module).__name__} has its blocks in several stages, where they differ in size; choose "
            "lora"
        )
    if has_decoder(module.config):
        return nn.ModuleList(find_blocks(module))
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise ModelError(f"method.peft: {type(module).__name__} does not keep its {count} blocks in a list; choose lora")


def has_stages(config: Any) -> bool:
    """True if blocks are in several stages."""
    return isinstance(getattr(config, "depths", None), list | tuple)


def has_decoder(config: Any) -> bool:
    """True for encoder-decoders."""
    return bool(getattr(config, "is_encoder_decoder", False))


def num_blocks(config: Any) -> int:
    """Number of blocks, those of all stages together, or of encoder and decoder."""
    if has_stages(config):
        return sum(config.depths)
    return int(config.num_hidden_layers) + (_num_decoder_blocks(config) if has_decoder(config) else 0)


def _num_decoder_blocks(config: Any) -> int:
    """Of an encoder-decoder: T5's setting, or that of the BART family."""
    return int(getattr(config, "num_decoder_layers", None) or config.decoder_layers)


def block_paths(module: Any) -> list[str]:
    """Paths of the blocks of all stages, in the order in which they run; empty for an architecture without stages."""
    if not has_stages(module.config):
        return []
    depths = list(module.config.depths)
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and len(child) == len(depths):
            found = [_list_of(stage, depth) for stage, depth in zip(child, depths, strict=True)]
            if all(found):
                return [
                    f"{name}.{i}.{inside}.{j}"
                    for i, (inside, depth) in enumerate(zip(found, depths, strict=True))
                    for j in range(depth)
                ]
    return []


def _list_of(stage: nn.Module, depth: int) -> str | None:
    """Name of the list of blocks in a stage: the only one of that length, or the one called layers or blocks."""
    fitting = [name for name, part in stage.named_children() if isinstance(part, nn.ModuleList) and len(part) == depth]
    return next((name for name in fitting if len(fitting) == 1 or name in ("layers", "blocks")), None)


def find_blocks(module: Any) -> list[nn.Module]:
    """The blocks in the order in which they run, ALBERT's once each; empty if they are not modules of their own."""
    if has_stages(module.config):
        return [module.get_submodule(path) for path in block_paths(module)]
    count = module.config.num_hidden_layers
    if has_decoder(module.config):
        stacks = (module.get_encoder(), count), (module.get_decoder(), _num_decoder_blocks(module.config))
        return [block for stack, length in stacks for block in _only_list(stack, length)]
    for child in module.modules():
        lists = {name: part for name, part in child.named_children() if isinstance(part, nn.ModuleList)}
        if SHARED in lists:
            return list(lists[SHARED])
        fitting = [part for part in lists.values() if len(part) == count]
        if len(fitting) == 1:  # XLM has a list for each part of its blocks
            return list(fitting[0])
        if fitting:
            return []
    return []


def _only_list(stack: nn.Module, count: int) -> nn.ModuleList:
    """The list of blocks of an encoder or a decoder."""
    return next(child for child in stack.children() if isinstance(child, nn.ModuleList) and len(child) == count)
