"""Frozen hyper-parameters, and their JSON.

A file has the sections of the original's `config.json` (`waveglow_config`, `data_config`,
`train_config`), and `synthesis_config`; the original's own file loads unchanged. This module checks
every field once, so that no other module has to. An error message names an unknown field, gives the
limits that a value exceeds (they stand beside its field), or gives both numbers of an impossible
combination.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from waveglow_jax.config_data import DataConfig, MelConfig, convention_of, spell_out_mel
from waveglow_jax.config_fields import (
    NEVER,
    Bounds,
    FieldFacts,
    OneOf,
    check_limits,
    facts_of,
    read_section,
    unknown_field,
)
from waveglow_jax.config_grid import check_grid, period_of, unit_of, units_of
from waveglow_jax.config_names import as_typed, in_our_names, override
from waveglow_jax.config_train import TrainConfig
from waveglow_jax.conventions import Convention
from waveglow_jax.errors import UserError
from waveglow_jax.presets import config_path
from waveglow_jax.text import read_json

DTYPES = ("float32", "bfloat16", "float16")
LATENT: Literal["latent"] = "latent"
"""The `consistency` that selects the search for a typical z instead of a number of corrections."""
MAX_CONSISTENCY = 10_000
# Config files may come from any source: beyond the bounds of the fields below, programs would not
# finish or would exceed the memory.
MAX_PARAMETERS = 2**31
"""The most parameters of a voice: 8 GiB in float32, eight times the paper's model."""
MAX_REACH = 2**22
"""The most samples to either side that a sample may depend on (published weights: 24,480)."""


@dataclass(frozen=True)
class WNConfig:
    """WN, the dilated convolutional conditioner of a coupling.

    `n_channels` counts the residual channels; `n_skip_channels` 0 means equally many (the published
    weights have 256 and 256, the paper 512 and 256).
    """

    n_layers: Annotated[int, Bounds(1, 16)] = 8
    n_channels: Annotated[int, Bounds(1, 8192)] = 256
    n_skip_channels: Annotated[int, Bounds(0, 8192)] = 0
    kernel_size: Annotated[int, Bounds(1, 255)] = 3

    @property
    def skip_channels(self) -> int:
        return self.n_skip_channels or self.n_channels

    @property
    def receptive_field(self) -> int:
        """Steps to either side that all layers span together; layer i adds 2^i (kernel // 2)."""
        return (2**self.n_layers - 1) * (self.kernel_size // 2)

    def n_parameters(self, half: int, conditioning: int) -> int:
        """The number of parameters of one WN, weight norm's norms included.

        Both arguments are in channels.
        """

        def layer(seen: int, features: int) -> int:
            return (seen + 2) * features  # weights, bias and norm

        channels, skip = self.n_channels, self.skip_channels
        layers = self.n_layers * (
            layer(self.kernel_size * channels, 2 * channels)
            + layer(conditioning, 2 * channels)
            + layer(channels, channels + skip)
        ) - layer(channels, channels)  # the last layer has no residual
        return layer(half, channels) + layers + (skip + 1) * 2 * half

    def check(self) -> None:
        if self.kernel_size % 2 == 0:
            raise UserError(
                f"waveglow_config.WN_config.kernel_size {self.kernel_size} is even: "
                "a centred convolution needs an odd one, such as 3"
            )


@dataclass(frozen=True)
class MelWhitening:
    """Whitening of the audio by the spectrum that its mel gives, updated every `block` samples.

    `order` 0 whitens each block by itself; above 0, a linear predictor of that order runs across
    block borders (`flow/whitening.py`). `floor` is the standard deviation of the assumed noise.
    """

    block: Annotated[int, Bounds(2, 2**16)] = 64
    floor: Annotated[float, Bounds(0, 1, above_low=True)] = 0.002
    order: Annotated[int, Bounds(0, 2**16)] = 0

    def check(self) -> None:
        if self.order == 1:
            raise UserError("waveglow_config.mel_whitening.order 1 must be 0 or at least 2")


@dataclass(frozen=True)
class WaveGlowConfig:
    """The flow. The defaults are those of the published weights.

    `upsample_kernel` is in samples for both kinds of `conditioning`: "sample" (the original: the
    mel is upsampled to the sample rate, then squeezed) and "group" (the mel is upsampled directly
    to the rate of groups). `alternating_halves`: in odd flows the second half conditions the first,
    as in the oldest published class.
    """

    n_mel_channels: Annotated[int, Bounds(1, 1024)] = 80
    n_flows: Annotated[int, Bounds(1, 64)] = 12
    n_group: Annotated[int, Bounds(2, 1024)] = 8
    n_early_every: Annotated[int, Bounds(1, NEVER)] = 4
    n_early_size: Annotated[int, Bounds(0, 1024)] = 2
    upsample_kernel: Annotated[int, Bounds(1, 2**18)] = 1024
    conditioning: Annotated[str, OneOf("sample", "group")] = "sample"
    mel_whitening: MelWhitening | None = None
    alternating_halves: bool = False
    WN_config: WNConfig = field(default_factory=WNConfig)

    @property
    def WN(self) -> WNConfig:  # noqa: N802 - the network's name in the paper
        return self.WN_config

    @property
    def whitening(self) -> MelWhitening:
        """`mel_whitening`, for callers that know that it is not None."""
        assert self.mel_whitening is not None
        return self.mel_whitening

    @property
    def whitening_order(self) -> int:
        """The order of the whitening's predictor; 0 without a predictor or without whitening."""
        return self.mel_whitening.order if self.mel_whitening else 0

    def leaves_before(self, flow: int) -> bool:
        """Whether an early output of `n_early_size` channels precedes this flow."""
        return flow > 0 and flow % self.n_early_every == 0

    def channels(self, flow: int) -> int:
        """The number of channels that this flow transforms."""
        return self.n_group - self.n_early_size * sum(map(self.leaves_before, range(flow + 1)))

    def exits(self) -> list[slice]:
        """z's channels as slices, in order: each early output, then the last flow's channels."""
        left = [self.n_group - self.channels(k) for k in range(self.n_flows)]
        borders = sorted({0, *left, self.n_group})
        return [slice(a, b) for a, b in pairwise(borders)]

    @property
    def n_parameters(self) -> int:
        """The number of parameters that `flow.waveglow.init` creates.

        It includes the norms of weight norm.
        """
        mels, taps, conditioning = self.n_mel_channels, self.upsample_kernel, self.n_mel_channels
        if self.conditioning == "group":
            taps //= self.n_group
        else:
            conditioning *= self.n_group
        widths = [self.channels(k) for k in range(self.n_flows)]
        flows = sum(c * c + self.WN.n_parameters(c // 2, conditioning) for c in widths)
        return mels + taps * mels * mels + flows

    @property
    def reach(self) -> int:
        """Context of all flows' conditioners together, in samples to either side."""
        return self.n_flows * self.WN.receptive_field * self.n_group

    def halves_swapped(self, flow: int) -> bool:
        """Whether the second half conditions the first in this flow."""
        return self.alternating_halves and flow % 2 == 1

    def check(self) -> None:
        for name in ("n_group", "n_early_size"):
            if getattr(self, name) % 2:
                raise UserError(
                    f"waveglow_config.{name} {getattr(self, name)} is odd: "
                    "a coupling halves the channels, so it must be even"
                )
        left = self.channels(self.n_flows - 1)
        if left < 2:
            raise UserError(
                f"waveglow_config: {self.n_group - left} channels leave early, but n_group is "
                f"{self.n_group}: at least 2 must stay for the last flow (lower n_early_size "
                f"{self.n_early_size} or raise n_early_every {self.n_early_every})"
            )
        self.WN_config.check()
        if self.mel_whitening:
            self.mel_whitening.check()
        if self.n_parameters > MAX_PARAMETERS:
            raise UserError(
                f"waveglow_config describes {self.n_parameters:,} parameters, and there may be "
                f"{MAX_PARAMETERS:,}: lower n_flows, n_mel_channels, upsample_kernel or WN_config"
            )
        if self.reach > MAX_REACH:
            raise UserError(
                f"waveglow_config: a sample would depend on {self.reach:,} others to either side, "
                f"and there may be {MAX_REACH:,}: lower n_flows {self.n_flows}, n_group "
                f"{self.n_group}, WN_config.n_layers {self.WN.n_layers} or WN_config.kernel_size "
                f"{self.WN.kernel_size}"
            )


@dataclass(frozen=True)
class SynthesisConfig:
    """The voice's defaults for synthesis.

    `sigma` is its own temperature. `consistency` counts the corrections of the sample towards its
    mel (`synthesis/consistency.py`; 0: none). `bandwidth` is the highest frequency, in Hz, of the
    recordings that the voice was trained on. Corrections silence the frequencies above it that the
    mel does not cover either (0: they leave the flow's output there unchanged).
    """

    sigma: Annotated[float, Bounds(0, 100)] = 0.6
    consistency: Annotated[int, Bounds(0, MAX_CONSISTENCY)] = 0
    bandwidth: Annotated[float, Bounds(0, 1_000_000)] = 0.0


_SECTIONS: dict[str, Any] = {
    "waveglow_config": WaveGlowConfig,
    "data_config": DataConfig,
    "train_config": TrainConfig,
    "synthesis_config": SynthesisConfig,
}


@dataclass(frozen=True)
class Config:
    """All settings of a run; hashable, so it can be a static argument of a jitted function."""

    waveglow: WaveGlowConfig = field(default_factory=WaveGlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    description: str = ""

    def __post_init__(self) -> None:
        for name in _SECTIONS:
            check_limits(getattr(self, name.removesuffix("_config")), name)
        self.waveglow.check()
        self.data.check()
        self.train.check()
        check_grid(self.waveglow, self.data)
        if self.train.altered_mels:
            self.train.altered_mels.check(self.clip_frames, self.waveglow.n_mel_channels)

    @property
    def period(self) -> int:
        """The fewest frames that consist of whole blocks: 1 where `block` divides the hop."""
        return period_of(self.data.hop_length, self.block)

    def steps_of(self, frames: Any) -> Any:
        """The number of groups, in whole blocks, that cover this number of frames; the last block
        may end after them."""
        return units_of(frames, self.data.hop_length, self.block) * (
            self.block // self.waveglow.n_group
        )

    def whole_frames(self, n_samples: int) -> int:
        """The largest number of frames, in whole periods, that this number of samples contains."""
        frames = n_samples // self.data.hop_length
        return frames - frames % self.period

    @property
    def block(self) -> int:
        """The number of samples in multiples of which the flow takes audio: whole groups and, with
        mel whitening, whole whitening blocks."""
        return unit_of(self.waveglow)

    @property
    def clip_samples(self) -> int:
        """The number of samples of a training clip that the flow sees: all whole blocks in it."""
        return self.data.segment_length - self.data.segment_length % self.block

    @property
    def convention(self) -> Convention:
        """The convention of the mel, a row of the table if one matches."""
        return convention_of(self.data, self.waveglow.n_mel_channels)

    @property
    def clip_frames(self) -> int:
        """The number of mel frames of a training clip.

        Centred frames: those whose centre lies in the clip or at its end. Frames half a hop late:
        as many as cover the clip, since a recording's last hop has no frame after it.
        """
        samples, hop = self.clip_samples, self.data.hop_length
        return -(-samples // hop) if self.data.mel.late else samples // hop + 1

    @property
    def clip_span(self) -> int:
        """The number of samples, from the clip's start on, that the recording must have, so that
        all frames of the clip exist."""
        late = self.data.mel.late
        return self.clip_frames * self.data.hop_length if late else self.data.segment_length

    @property
    def clip_length(self) -> int:
        """The number of samples that a clip's frames include: the clip with its context on either
        side."""
        return (self.clip_frames - 1) * self.data.hop_length + self.data.filter_length


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a config file, or a preset by its name, such as "nvidia256".

    `overrides` maps dotted names, such as `train.batch_size`, to values. Raises UserError if the
    file is missing, is not JSON, or holds an unknown or impossible field. An error that the
    overrides cause names the override as it is typed on the command line.
    """
    path = config_path(path)
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold a JSON object with the section waveglow_config")
    try:
        return config_from_dict(raw, overrides)
    except UserError as error:
        if overrides and str(error) != _fault_of(raw):
            raise UserError(as_typed(str(error), overrides, path)) from None
        raise UserError(f"{path}: {error}") from None


def _fault_of(raw: Mapping[str, Any]) -> str:
    """What is wrong with a file's JSON by itself; "" if nothing is."""
    try:
        config_from_dict(raw)
    except UserError as error:
        return str(error)
    return ""


def field_facts() -> list[FieldFacts]:
    """The facts of every field, by its name on the command line: `--section.field VALUE`."""
    return [
        facts
        for name, section in _SECTIONS.items()
        for facts in facts_of(section, name.removesuffix("_config"))
    ]


_NAMES_OF_MEL = ("data.mel", "data_config.mel")


def config_from_dict(raw: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """The Config that JSON sections describe. Raises UserError as `load_config` does."""
    raw = in_our_names(json.loads(json.dumps(raw)))
    spell_out_mel(raw)
    # A convention's name comes first, whatever the order given: other fields change the row's.
    changes = sorted((overrides or {}).items(), key=lambda change: change[0] not in _NAMES_OF_MEL)
    for name, value in changes:
        override(raw, name, value, _SECTIONS)
        spell_out_mel(raw, replacing=True)
    unknown = set(raw) - set(_SECTIONS) - {"description"}
    if unknown:
        raise UserError(unknown_field(min(unknown), [*_SECTIONS, "description"], _SECTIONS))
    if not isinstance(raw.get("description", ""), str):
        raise UserError("description must be a string")
    sections = {
        name.removesuffix("_config"): read_section(_SECTIONS, name, raw.get(name, {}))
        for name in _SECTIONS
    }
    return Config(description=raw.get("description", ""), **sections)


def config_to_dict(config: Config) -> dict[str, Any]:
    """JSON sections of a config; `config_from_dict` converts them back to an equal config."""
    data = dataclasses.asdict(config.data)
    if config.data.mel == MelConfig():  # older releases of this package do not know the field
        del data["mel"]
    return {
        "description": config.description,
        "waveglow_config": dataclasses.asdict(config.waveglow),
        "data_config": data,
        "train_config": {
            **dataclasses.asdict(config.train),
            "synthesis_sigmas": list(config.train.synthesis_sigmas),
        },
        "synthesis_config": dataclasses.asdict(config.synthesis),
    }


def config_to_json(config: Config) -> str:
    return json.dumps(config_to_dict(config), indent=2) + "\n"
