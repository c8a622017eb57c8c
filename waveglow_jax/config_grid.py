"""How frames, groups, whitening blocks and training clips fit each other in a config.

The flow sees whole groups of samples. A mel of F frames therefore has ceil(F * hop / group) groups,
and the samples of the last one beyond F * hop are computed and then cut. The boundaries of frames
and groups meet once per period, every lcm(hop, group) samples.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from waveglow_jax.config_fields import must_divide
from waveglow_jax.errors import UserError

if TYPE_CHECKING:
    from waveglow_jax.config import WaveGlowConfig
    from waveglow_jax.config_data import DataConfig

_MOST_OVERLAP = 64
"""Beyond it, programs from a file of any source would not finish or would exceed the memory."""


def period_of(hop: int, group: int) -> int:
    """The fewest frames that consist of whole groups: 1 where the group divides the hop."""
    return group // math.gcd(hop, group)


def steps_of(frames: Any, hop: int, group: int) -> Any:
    """The number of groups that cover so many frames: an int, an array or a symbolic size."""
    if hop % group == 0:
        return frames * (hop // group)
    return (frames * hop + group - 1) // group


def block_of(glow: WaveGlowConfig) -> int:
    """The samples of which the forward pass takes a multiple: whole groups and whitening blocks."""
    return math.lcm(glow.n_group, glow.mel_whitening.block if glow.mel_whitening else 1)


def check_grid(glow: WaveGlowConfig, data: DataConfig) -> None:
    """Raises UserError, with both numbers, for an impossible combination of lengths."""
    hop, group, kernel = data.hop_length, glow.n_group, glow.upsample_kernel
    if kernel < hop:
        raise UserError(
            f"waveglow_config.upsample_kernel {kernel} is below data_config.hop_length {hop}: "
            "some samples would hear no frame"
        )
    for name, length in (
        ("waveglow_config.upsample_kernel", kernel),
        ("data_config.filter_length", data.filter_length),
    ):
        if length > _MOST_OVERLAP * hop:
            raise UserError(
                f"{name} {length} must be at most {_MOST_OVERLAP} times data_config.hop_length "
                f"{hop}: so many frames overlap in no voice"
            )
    if glow.conditioning == "group":
        _check_group_divides(
            group, hop, 'waveglow_config.conditioning "group"', 'take conditioning "sample"'
        )
        must_divide("waveglow_config.n_group", group, "waveglow_config.upsample_kernel", kernel)
    if glow.mel_whitening:
        _check_whitening(glow, data)
    if data.segment_length < block_of(glow):
        raise UserError(
            f"data_config.segment_length {data.segment_length} is below {block_of(glow)}, the "
            "fewest samples that the flow takes at once (waveglow_config.n_group, and whole blocks "
            "of mel_whitening)"
        )


def _check_whitening(glow: WaveGlowConfig, data: DataConfig) -> None:
    block, order = glow.whitening.block, glow.whitening.order
    name, half = "waveglow_config.mel_whitening", data.filter_length // 2
    _check_group_divides(glow.n_group, data.hop_length, name, "leave mel_whitening out")
    must_divide(f"{name}.block", block, "data_config.hop_length", data.hop_length)
    must_divide(f"{name}.block", block, "data_config.segment_length", data.segment_length)
    if max(block, order) > half:
        raise UserError(
            f"{name}: block {block} and order {order} must be at most half of "
            f"data_config.filter_length {data.filter_length}: the autocorrelation has no more lags"
        )
    if order > data.lead:
        raise UserError(
            f"{name}.order {order} must be at most {data.lead}, the samples that a training clip "
            "reads before its first one"
        )


def _check_group_divides(group: int, hop: int, needed_by: str, remedy: str) -> None:
    if hop % group:
        raise UserError(
            f"{needed_by}: waveglow_config.n_group {group} must divide data_config.hop_length "
            f"{hop}; change one of them, or {remedy}"
        )
