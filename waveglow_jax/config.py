"""Frozen hyper-parameters, and their JSON.

A file has the sections of the original's `config.json` (`waveglow_config`, `data_config`,
`train_config`), and `synthesis_config`; the original's own file loads unchanged. Every field is
checked here, once, so that no other file has to: an unknown field is refused by its name, a number
beyond its `BOUNDS` with these, an impossible combination with both numbers in the message.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from waveglow_jax.errors import UserError
from waveglow_jax.paths import local_path
from waveglow_jax.text import read_json

DTYPES = ("float32", "bfloat16", "float16")
LATENT: Literal["latent"] = "latent"
"""The consistency that searches for a typical z, in place of a number of corrections."""
MAX_CONSISTENCY = 10_000
MAX_PARAMETERS = 2**31
"""Of a voice in all: 8 GiB in float32, eight times the paper's model."""
MAX_REACH = 2**22
"""Samples to either side that a sample may depend on; the published weights' 24,480."""


@dataclass(frozen=True)
class Bounds:
    """Of a field: the lowest and highest value, and whether these themselves are left out."""

    low: float
    high: float
    above_low: bool = False
    below_high: bool = False

    def __str__(self) -> str:
        at_least = "above" if self.above_low else "at least"
        at_most = "below" if self.below_high else "at most"
        return f"{at_least} {self.low} and {at_most} {self.high}"

    def hold(self, value: float) -> bool:
        above = value > self.low if self.above_low else value >= self.low
        return above and (value < self.high if self.below_high else value <= self.high)


_NEVER = 10**9
# A file comes from anywhere: beyond these, nothing would end or fit into memory.
BOUNDS: dict[str, Bounds] = {
    "waveglow_config.n_mel_channels": Bounds(1, 1024),
    "waveglow_config.n_flows": Bounds(1, 64),
    "waveglow_config.n_group": Bounds(2, 1024),
    "waveglow_config.n_early_every": Bounds(1, _NEVER),
    "waveglow_config.n_early_size": Bounds(0, 1024),
    "waveglow_config.upsample_kernel": Bounds(1, 2**18),
    "waveglow_config.mel_whitening.block": Bounds(2, 2**16),
    "waveglow_config.mel_whitening.floor": Bounds(0, 1, above_low=True),
    "waveglow_config.mel_whitening.order": Bounds(0, 2**16),
    "waveglow_config.WN_config.n_layers": Bounds(1, 16),
    "waveglow_config.WN_config.n_channels": Bounds(1, 8192),
    "waveglow_config.WN_config.n_skip_channels": Bounds(0, 8192),
    "waveglow_config.WN_config.kernel_size": Bounds(1, 255),
    "data_config.segment_length": Bounds(1, 2**24),
    "data_config.sampling_rate": Bounds(1, 1_000_000),
    "data_config.filter_length": Bounds(1, 2**16),
    "data_config.hop_length": Bounds(1, 2**16),
    "data_config.win_length": Bounds(1, 2**16),
    "data_config.mel_fmin": Bounds(0, 500_000),
    "data_config.mel_fmax": Bounds(0, 500_000, above_low=True),
    "train_config.seed": Bounds(0, 2**32 - 1),
    "train_config.steps": Bounds(1, _NEVER),
    "train_config.epochs": Bounds(0, _NEVER),
    "train_config.batch_size": Bounds(1, 2**16),
    "train_config.learning_rate": Bounds(0, 1000, above_low=True),
    "train_config.warmup_steps": Bounds(0, _NEVER),
    "train_config.decay_start": Bounds(0, 1, below_high=True),
    "train_config.final_learning_rate": Bounds(0, 1000),
    "train_config.plateau_patience": Bounds(0, _NEVER),
    "train_config.plateau_learning_rate": Bounds(0, 1000, above_low=True),
    "train_config.sigma": Bounds(0, 100, above_low=True),
    "train_config.gradient_clip": Bounds(0, _NEVER),
    "train_config.ema_decay": Bounds(0, 1, below_high=True),
    "train_config.gradient_accumulation": Bounds(1, 2**16),
    "train_config.noise_std": Bounds(0, 1),
    "train_config.final_noise_std": Bounds(0, 1),
    "train_config.num_workers": Bounds(0, 256),
    "train_config.validation_fraction": Bounds(0, 1, below_high=True),
    "train_config.validation_clips": Bounds(1, 1_000_000),
    "train_config.iters_per_validation": Bounds(1, _NEVER),
    "train_config.iters_per_checkpoint": Bounds(1, _NEVER),
    "train_config.keep_checkpoints": Bounds(1, _NEVER),
    "train_config.synthesis_clips": Bounds(0, 1000),
    "train_config.synthesis_sigmas": Bounds(0, 100),
    "synthesis_config.sigma": Bounds(0, 100),
    "synthesis_config.consistency": Bounds(0, MAX_CONSISTENCY),
    "synthesis_config.bandwidth": Bounds(0, 1_000_000),
}
"""Of every field that is a number, or a list of numbers."""
CHOICES: dict[str, tuple[str, ...]] = {
    "waveglow_config.conditioning": ("sample", "group"),
    "train_config.wn_dtype": ("float32", "bfloat16"),
    "train_config.on_save_failure": ("stop", "continue"),
}
"""Of every field that is one of a few words."""
_MOST_SIGMAS = 100
_MOST_OVERLAP = 64
_MOST_SHOWN = 60


@dataclass(frozen=True)
class WNConfig:
    """WN, the dilated convolutional conditioner of a coupling.

    `n_channels` are the residual channels; `n_skip_channels` 0 means as many (the published
    weights: 256 and 256; the paper: 512 and 256).
    """

    n_layers: int = 8
    n_channels: int = 256
    n_skip_channels: int = 0
    kernel_size: int = 3

    @property
    def skip_channels(self) -> int:
        return self.n_skip_channels or self.n_channels

    @property
    def receptive_field(self) -> int:
        """Steps to either side that all layers span together: layer i spans 2^i (kernel // 2)."""
        return (2**self.n_layers - 1) * (self.kernel_size // 2)

    def n_parameters(self, half: int, conditioning: int) -> int:
        """The numbers in one WN, the norms of weight norm included; both arguments in channels."""

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
        _check_bounds(self, "waveglow_config.WN_config")
        if self.kernel_size % 2 == 0:
            raise UserError(
                f"waveglow_config.WN_config.kernel_size {self.kernel_size} is even: "
                "a centred convolution needs an odd one, such as 3"
            )


@dataclass(frozen=True)
class MelWhitening:
    """Whitening of the audio by the spectrum its mel tells, renewed every `block` samples.

    order 0 whitens each block by itself; above 0, a linear predictor of that order goes across the
    blocks' borders (`flow/whitening.py`). `floor` is the standard deviation of assumed noise.
    """

    block: int = 64
    floor: float = 0.002
    order: int = 0

    def check(self) -> None:
        _check_bounds(self, "waveglow_config.mel_whitening")
        if self.order == 1:
            raise UserError("waveglow_config.mel_whitening.order 1 must be 0 or at least 2")


@dataclass(frozen=True)
class WaveGlowConfig:
    """The flow. Defaults are the published weights'.

    `upsample_kernel` is in samples, for either `conditioning`: "sample" (the original: the mel
    is upsampled to the sample rate, then squeezed) or "group" (straight to the rate of groups).
    `alternating_halves`: in odd flows the second half conditions the first, as in the oldest
    published class.
    """

    n_mel_channels: int = 80
    n_flows: int = 12
    n_group: int = 8
    n_early_every: int = 4
    n_early_size: int = 2
    upsample_kernel: int = 1024
    conditioning: str = "sample"
    mel_whitening: MelWhitening | None = None
    alternating_halves: bool = False
    WN_config: WNConfig = field(default_factory=WNConfig)

    @property
    def WN(self) -> WNConfig:  # noqa: N802 - the network's name in the paper
        return self.WN_config

    @property
    def whitening(self) -> MelWhitening:
        """`mel_whitening`, where it is known that there is one."""
        assert self.mel_whitening is not None
        return self.mel_whitening

    @property
    def whitening_order(self) -> int:
        """The order of the whitening's predictor; 0 without one, and without whitening."""
        return self.mel_whitening.order if self.mel_whitening else 0

    def leaves_before(self, flow: int) -> bool:
        """Whether `n_early_size` channels leave before this flow."""
        return flow > 0 and flow % self.n_early_every == 0

    def channels(self, flow: int) -> int:
        """Channels that this flow works on."""
        return self.n_group - self.n_early_size * sum(map(self.leaves_before, range(flow + 1)))

    def exits(self) -> list[slice]:
        """z's channels by when they leave, in their order: before each flow that some leave
        before, then those that go all the way."""
        left = [self.n_group - self.channels(k) for k in range(self.n_flows)]
        borders = sorted({0, *left, self.n_group})
        return [slice(a, b) for a, b in pairwise(borders)]

    @property
    def n_parameters(self) -> int:
        """How many numbers `flow.waveglow.init` makes, the norms of weight norm among them."""
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
        """Samples to either side that the conditioners of all flows span together."""
        return self.n_flows * self.WN.receptive_field * self.n_group

    def halves_swapped(self, flow: int) -> bool:
        """Whether the second half conditions the first in this flow."""
        return self.alternating_halves and flow % 2 == 1

    def check(self) -> None:
        _check_bounds(self, "waveglow_config")
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
class DataConfig:
    """The audio and its mel; `segment_length` is a training clip, in samples."""

    training_files: str = ""
    segment_length: int = 16000
    sampling_rate: int = 22050
    filter_length: int = 1024
    hop_length: int = 256
    win_length: int = 1024
    mel_fmin: float = 0.0
    mel_fmax: float = 8000.0

    def check(self) -> None:
        _check_bounds(self, "data_config")
        if self.filter_length % 2:
            raise UserError(f"data_config.filter_length {self.filter_length} must be even")
        if self.win_length > self.filter_length:
            raise UserError(
                f"data_config.win_length {self.win_length} is above filter_length "
                f"{self.filter_length}: the window must fit into the FFT"
            )
        if not 0 <= self.mel_fmin < self.mel_fmax <= self.sampling_rate / 2:
            raise UserError(
                f"data_config: mel_fmin {self.mel_fmin} and mel_fmax {self.mel_fmax} must lie in "
                f"order between 0 and half the sampling_rate, {self.sampling_rate / 2:g} Hz"
            )


@dataclass(frozen=True)
class TrainConfig:
    """A training run. `batch_size` counts the clips of a step over all devices together.

    A run ends after `steps`, or after `epochs` if that is above 0 and comes sooner. The learning
    rate rises linearly over `warmup_steps`; from `decay_start` (a share of the run) it falls by a
    cosine to `final_learning_rate` (0: stays constant). `plateau_patience` above 0 drops it to
    `plateau_learning_rate` after that many validations in a row without a better one.
    `noise_std` is added to the training clips (never to their mels); from `decay_start` it
    falls geometrically to `final_noise_std` (0: stays constant).
    `on_save_failure` "continue" trains on where "stop" stops: when the disk does not take a
    checkpoint in the middle of the run.
    TensorBoard's clips come at the voice's own sigma (`SynthesisConfig`), then at each of
    `synthesis_sigmas`. `wandb_project`: of Weights & Biases, told as well.
    For larger batches than fit:
    `gradient_accumulation` computes each device's share of the batch in so many parts, one after
    another, which changes nothing but rounding; `checkpoint_flows` keeps of each flow only its
    input and computes the rest anew in the backward pass.
    """

    seed: int = 1234
    steps: int = 580_000
    epochs: int = 0
    batch_size: int = 24
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    decay_start: float = 0.5
    final_learning_rate: float = 0.0
    plateau_patience: int = 0
    plateau_learning_rate: float = 5e-5
    sigma: float = 1.0
    gradient_clip: float = 0.0
    ema_decay: float = 0.0
    wn_dtype: str = "float32"
    checkpoint_flows: bool = False
    gradient_accumulation: int = 1
    noise_std: float = 0.0
    final_noise_std: float = 0.0
    num_workers: int = 0
    validation_files: str = ""
    validation_fraction: float = 0.0
    validation_clips: int = 64
    iters_per_validation: int = 1000
    iters_per_checkpoint: int = 2000
    keep_checkpoints: int = 3
    on_save_failure: str = "stop"
    synthesis_clips: int = 2
    synthesis_sigmas: tuple[float, ...] = (0.6, 0.8, 1.0)
    wandb_project: str = ""

    def check(self) -> None:
        _check_bounds(self, "train_config")
        if len(self.synthesis_sigmas) > _MOST_SIGMAS:
            raise UserError(
                f"train_config.synthesis_sigmas has {len(self.synthesis_sigmas)} values; there may "
                f"be {_MOST_SIGMAS}"
            )
        if self.batch_size % self.gradient_accumulation:
            raise UserError(
                f"train_config.batch_size {self.batch_size} is not divided by "
                f"gradient_accumulation {self.gradient_accumulation}: its parts have as many clips"
            )


@dataclass(frozen=True)
class SynthesisConfig:
    """How the voice speaks where it is not told otherwise.

    `sigma` is its own temperature. `consistency` counts the corrections of the sample towards its
    mel (`synthesis/consistency.py`; 0: none). `bandwidth` is the highest frequency, in Hz, of the
    recordings that the voice was trained on: where the mel does not reach either, corrections
    silence what is beyond it (0: they leave it as the flow has it).
    """

    sigma: float = 0.6
    consistency: int = 0
    bandwidth: float = 0.0

    def check(self) -> None:
        _check_bounds(self, "synthesis_config")


@dataclass(frozen=True)
class Config:
    """Everything a run needs; hashable, so it can be a static argument of a jitted function."""

    waveglow: WaveGlowConfig = field(default_factory=WaveGlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    description: str = ""

    def __post_init__(self) -> None:
        self.waveglow.check()
        self.data.check()
        self.train.check()
        self.synthesis.check()
        hop, group = self.data.hop_length, self.waveglow.n_group
        _divides("waveglow_config.n_group", group, "data_config.hop_length", hop)
        segment = self.data.segment_length
        _divides("waveglow_config.n_group", group, "data_config.segment_length", segment)
        kernel = self.waveglow.upsample_kernel
        if kernel < hop:
            raise UserError(
                f"waveglow_config.upsample_kernel {kernel} is below data_config.hop_length {hop}: "
                "some samples would hear no frame"
            )
        for name, length in (
            ("waveglow_config.upsample_kernel", kernel),
            ("data_config.filter_length", self.data.filter_length),
        ):
            if length > _MOST_OVERLAP * hop:
                raise UserError(
                    f"{name} {length} must be at most {_MOST_OVERLAP} times data_config.hop_length "
                    f"{hop}: so many frames overlap in no voice"
                )
        if self.waveglow.conditioning == "group":
            _divides("waveglow_config.n_group", group, "waveglow_config.upsample_kernel", kernel)
        if self.waveglow.mel_whitening:
            block = self.waveglow.mel_whitening.block
            _divides("waveglow_config.mel_whitening.block", block, "data_config.hop_length", hop)
            _divides(
                "waveglow_config.mel_whitening.block", block, "data_config.segment_length", segment
            )
            half, order = self.data.filter_length // 2, self.waveglow.mel_whitening.order
            if max(block, order) > half:
                raise UserError(
                    f"waveglow_config.mel_whitening: block {block} and order {order} must be at "
                    f"most half of data_config.filter_length {self.data.filter_length}: the "
                    "autocorrelation has no more lags"
                )

    @property
    def clip_frames(self) -> int:
        """Mel frames of a training clip: those whose centre lies in it or at its end."""
        return self.data.segment_length // self.data.hop_length + 1


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a config file, or a preset by its name, such as "nvidia256".

    `overrides` maps dotted names, as `train.batch_size`, to values. Raises UserError if the file is
    missing, is no JSON, or holds an unknown or impossible field.
    """
    path = config_path(path)
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold a JSON object with the section waveglow_config")
    try:
        return config_from_dict(raw, overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@dataclass(frozen=True)
class FieldFacts:
    """A field as `--section.field VALUE` sets it: its dotted name, type, default as JSON has it,
    and what its values may be ("": anything of the type)."""

    name: str
    kind: str
    default: str
    values: str


def field_facts() -> list[FieldFacts]:
    """Of every field that a command line can set."""
    sections = {"waveglow": WaveGlowConfig, "data": DataConfig, "train": TrainConfig}
    return [
        facts
        for section, cls in {**sections, "synthesis": SynthesisConfig}.items()
        for facts in _field_facts(cls, f"{section}_config", section)
    ]


def _field_facts(cls: Any, where: str, shown: str) -> Iterator[FieldFacts]:
    for name, kind in get_type_hints(cls).items():
        default = getattr(cls, name, None)
        of_union = next((arg for arg in get_args(kind) if dataclasses.is_dataclass(arg)), None)
        if of_union is not None:
            yield FieldFacts(f"{shown}.{name}", "object", "null", "null, or the fields below")
        inner = of_union or kind
        if dataclasses.is_dataclass(inner):
            yield from _field_facts(inner, f"{where}.{name}", f"{shown}.{name}")
            continue
        is_list = get_origin(kind) is tuple
        told = f"list of {get_args(kind)[0].__name__}" if is_list else kind.__name__
        limits = CHOICES.get(f"{where}.{name}") or BOUNDS.get(f"{where}.{name}") or ""
        words = " or ".join(limits) if isinstance(limits, tuple) else str(limits)
        yield FieldFacts(f"{shown}.{name}", told, json.dumps(default), words)


def presets() -> dict[str, Path]:
    """The configs that come with the package, by their names."""
    package = Path(__file__).parent
    # A wheel has them inside the package, a checkout beside it.
    folders = (package / "configs", package.parent / "configs")
    folder = next((each for each in folders if each.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def config_path(named: str | Path) -> str:
    """The file that `named` means: itself, or where there is none, the preset of that name.

    Raises UserError for a name that is neither; a path is given back as it is.
    """
    path = local_path(named)
    if os.path.isfile(path):
        return path
    known = presets()
    if path in known:
        return str(known[path])
    if not os.path.exists(path) and Path(path).stem in known:
        raise UserError(f"{path}: no such file; give the preset by its name, {Path(path).stem}")
    if path == Path(path).stem and (not os.path.exists(path) or os.path.isdir(path)):
        names = ", ".join(known)
        raise UserError(f"{path}: no config file, and no preset; name a file, or one of {names}")
    return path


def config_from_dict(raw: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """The Config that JSON sections describe. Raises UserError as `load_config` does."""
    raw = _without_original_only_fields(json.loads(json.dumps(raw)))
    raw = _with_synthesis_sigma_moved(raw)
    for name, value in (overrides or {}).items():
        _override(raw, name, value)
    sections = ("waveglow_config", "data_config", "train_config", "synthesis_config")
    unknown = set(raw) - set(sections) - {"description"}
    if unknown:
        raise UserError(_unknown_field(min(unknown), [*sections, "description"]))
    if not isinstance(raw.get("description", ""), str):
        raise UserError("description must be a string")
    return Config(
        waveglow=_from_dict(WaveGlowConfig, raw.get("waveglow_config", {}), "waveglow_config"),
        data=_from_dict(DataConfig, raw.get("data_config", {}), "data_config"),
        train=_from_dict(TrainConfig, raw.get("train_config", {}), "train_config"),
        synthesis=_from_dict(SynthesisConfig, raw.get("synthesis_config", {}), "synthesis_config"),
        description=raw.get("description", ""),
    )


def config_to_dict(config: Config) -> dict[str, Any]:
    """JSON sections of a config; `config_from_dict` reads them back to an equal one."""
    return {
        "description": config.description,
        "waveglow_config": dataclasses.asdict(config.waveglow),
        "data_config": dataclasses.asdict(config.data),
        "train_config": {
            **dataclasses.asdict(config.train),
            "synthesis_sigmas": list(config.train.synthesis_sigmas),
        },
        "synthesis_config": dataclasses.asdict(config.synthesis),
    }


def config_to_json(config: Config) -> str:
    return json.dumps(config_to_dict(config), indent=2) + "\n"


def _without_original_only_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """The original's file in our names: what is said elsewhere here (--output, pmap) goes."""
    train = raw.get("train_config")
    raw.pop("dist_config", None)
    if not isinstance(train, dict):
        return raw
    if train.pop("checkpoint_path", ""):
        raise UserError(
            "train_config.checkpoint_path is not read: a run resumes from its own --output folder; "
            "take the field out"
        )
    train.pop("output_directory", None)
    train.pop("with_tensorboard", None)
    if "fp16_run" in train:
        train["wn_dtype"] = "bfloat16" if train.pop("fp16_run") else "float32"
    return raw


def _with_synthesis_sigma_moved(raw: dict[str, Any]) -> dict[str, Any]:
    """An older file in today's names: train_config.synthesis_sigma is synthesis_config.sigma now.

    Before any override is applied, which thus wins over what the file says under either name.
    """
    train = raw.get("train_config")
    if not isinstance(train, dict) or "synthesis_sigma" not in train:
        return raw
    synthesis = raw.setdefault("synthesis_config", {})
    if not isinstance(synthesis, dict):
        raise UserError("synthesis_config must be a JSON object")
    sigma = _typed(float, train.pop("synthesis_sigma"), "train_config.synthesis_sigma")
    if synthesis.setdefault("sigma", sigma) != sigma:
        raise UserError(
            f"train_config.synthesis_sigma {sigma} and synthesis_config.sigma "
            f"{json.dumps(synthesis['sigma'])} are the same setting and differ: take "
            "train_config.synthesis_sigma out"
        )
    return raw


def _override(raw: dict[str, Any], name: str, value: Any) -> None:
    section, *rest = name.split(".")
    section = section if section.endswith("_config") else f"{section}_config"
    if not rest:
        raise UserError(f"--{name}: name the section too, such as --train.{name}")
    if (section, rest) == ("train_config", ["synthesis_sigma"]):
        section, rest = "synthesis_config", ["sigma"]  # as it was called in older commands
    node = raw
    for key in (section, *rest[:-1]):
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UserError(f"--{name}: {key} has no fields")
    node[rest[-1]] = value


def _from_dict(cls: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise UserError(f"{where} must be a JSON object")
    types = get_type_hints(cls)
    unknown = set(raw) - set(types)
    if unknown:
        known = [f"{where}.{name}" for name in types]
        raise UserError(_unknown_field(f"{where}.{min(unknown)}", known))
    return cls(**{key: _typed(types[key], value, f"{where}.{key}") for key, value in raw.items()})


def _typed(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, UnionType):
        if value is None:
            return None
        kind = next(arg for arg in get_args(kind) if arg is not NoneType)
    if dataclasses.is_dataclass(kind):
        return _from_dict(kind, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise UserError(
                f"{where} is {_shown(json.dumps(value))}: it must be a list, such as [0.6, 1]"
            )
        return tuple(_typed(get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    # JSON writes 1e-4 and 8000.0 as numbers of either kind; true is not a number here.
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # which is beyond the bounds of every field
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(
            f"{where} is {_shown(json.dumps(value))}: it must be of type {kind.__name__}"
        )
    return value


def _unknown_field(name: str, known: list[str]) -> str:
    import difflib

    field = name.rpartition(".")[2]
    elsewhere = [
        f"{section}.{field}"
        for section, kind in _SECTIONS.items()
        if any(each.name == field for each in dataclasses.fields(kind))
    ]
    close = elsewhere or difflib.get_close_matches(name, known, n=1)
    return f"{name} is no known field" + (f"; did you mean {close[0]}?" if close else "")


_SECTIONS: dict[str, Any] = {
    "waveglow_config": WaveGlowConfig,
    "waveglow_config.WN_config": WNConfig,
    "waveglow_config.mel_whitening": MelWhitening,
    "data_config": DataConfig,
    "train_config": TrainConfig,
    "synthesis_config": SynthesisConfig,
}


def _check_bounds(fields: Any, where: str) -> None:
    for name, value in vars(fields).items():
        choices = CHOICES.get(f"{where}.{name}", (value,))
        if value not in choices:
            words = " or ".join(map(repr, choices))
            raise UserError(f"{where}.{name} {_shown(repr(value))} must be {words}")
        bounds = BOUNDS.get(f"{where}.{name}")
        if bounds is None:
            continue
        for i, each in enumerate(value if isinstance(value, tuple) else [value]):
            if not bounds.hold(each):
                place = f"[{i}]" if isinstance(value, tuple) else ""
                raise UserError(f"{where}.{name}{place} {_shown(str(each))} must be {bounds}")


def _shown(text: str) -> str:
    """A value as a message shows it, which a file may have made of any length."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _divides(name: str, divisor: int, of_name: str, number: int) -> None:
    if number % divisor:
        raise UserError(f"{name} {divisor} must divide {of_name} {number}")
