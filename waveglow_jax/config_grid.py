"""How frames, groups, whitening blocks and training clips fit each other in a config.

The flow sees whole groups of samples and, with mel whitening, whole whitening blocks: whole units
of lcm(group, block) samples. A mel of F frames therefore has ceil(F * hop / unit) units, and the
samples of the last one beyond F * hop are computed and then cut. The boundaries of frames and units
meet once per period, every lcm(hop, unit) samples.
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


def unit_of(glow: WaveGlowConfig) -> int:
    """The number of samples in multiples of which the flow takes audio: whole groups and blocks."""
    return math.lcm(glow.n_group, glow.mel_whitening.block if glow.mel_whitening else 1)


def period_of(hop: int, unit: int) -> int:
    """The fewest frames that consist of whole units: 1 where the unit divides the hop."""
    return unit // math.gcd(hop, unit)


def units_of(frames: Any, hop: int, unit: int) -> Any:
    """The number of units that cover this number of frames: an int, an array or a symbolic size."""
    if hop % unit == 0:
        return frames * (hop // unit)
    return (frames * hop + unit - 1) // unit


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
        if hop % group:
            raise UserError(
                f'waveglow_config.conditioning "group": waveglow_config.n_group {group} must '
                f"divide data_config.hop_length {hop}; change one of them, or take conditioning "
                '"sample"'
            )
        must_divide("waveglow_config.n_group", group, "waveglow_config.upsample_kernel", kernel)
    if glow.mel_whitening:
        _check_whitening(glow, data)
    if data.segment_length < unit_of(glow):
        raise UserError(
            f"data_config.segment_length {data.segment_length} is below {unit_of(glow)}, the "
            "fewest samples that the flow takes at once (waveglow_config.n_group, and whole blocks "
            "of mel_whitening)"
        )


def _check_whitening(glow: WaveGlowConfig, data: DataConfig) -> None:
    block, order = glow.whitening.block, glow.whitening.order
    name, half = "waveglow_config.mel_whitening", data.filter_length // 2
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
