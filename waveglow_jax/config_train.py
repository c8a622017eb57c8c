"""The hyper-parameters of a training run: the section `train_config` of a config file."""

from dataclasses import dataclass
from typing import Annotated

from waveglow_jax.config_fields import NEVER, Bounds, OneOf
from waveglow_jax.errors import UserError

_MOST_SIGMAS = 100


@dataclass(frozen=True)
class AlteredMels:
    """Random alterations that make the mels of training clips resemble an acoustic model's.

    A clip is altered with `probability`. The other fields are the largest strengths: every altered
    clip draws each of its own strengths uniformly between 0 and that (`training/altered_mels.py`).
    `smoothing_frames` and `smoothing_bands` are the standard deviations of a Gaussian blur over
    time and over bands; `dropout_frames` and `dropout_bands` are the lengths of a range that loses
    its detail, because its mean replaces it; `jitter` is the standard deviation of added noise, in
    units of the mel's values. A strength of 0 switches its alteration off.
    """

    probability: Annotated[float, Bounds(0, 1, above_low=True)] = 0.5
    smoothing_frames: Annotated[float, Bounds(0, 16)] = 2.0
    smoothing_bands: Annotated[float, Bounds(0, 16)] = 1.0
    dropout_frames: Annotated[int, Bounds(0, 1024)] = 4
    dropout_bands: Annotated[int, Bounds(0, 1024)] = 8
    jitter: Annotated[float, Bounds(0, 10)] = 0.2

    def check(self, n_frames: int, n_bands: int) -> None:
        """Raises UserError if a range is longer than a clip's mel `[n_frames, n_bands]`."""
        for name, length, size, of_what in (
            ("dropout_frames", self.dropout_frames, n_frames, "frames of a training clip"),
            ("dropout_bands", self.dropout_bands, n_bands, "bands of the mel"),
        ):
            if length > size:
                raise UserError(
                    f"train_config.altered_mels.{name} {length} must be at most {size}, the number "
                    f"of {of_what}"
                )


@dataclass(frozen=True)
class TrainConfig:
    """A training run. `batch_size` counts the clips per step over all devices together.

    A run ends after `steps`, or after `epochs` if that is above 0 and comes sooner. The learning
    rate rises linearly over `warmup_steps`; from `decay_start` (a share of the run) it falls along
    a cosine to `final_learning_rate` (0: it stays constant). `plateau_patience` above 0 drops it to
    `plateau_learning_rate` after that many validations in a row without a better one.
    Noise of the standard deviation `noise_std` is added to the training clips (never to their
    mels); from `decay_start` it falls geometrically to `final_noise_std` (0: it stays constant).
    `altered_mels` alters the mels of training clips (null: it does not), never their audio.
    `on_save_failure` decides whether the run stops ("stop") or goes on ("continue") if a checkpoint
    in the middle of the run cannot be saved.
    TensorBoard gets clips at the voice's own sigma (`SynthesisConfig`), then at each of
    `synthesis_sigmas`. `wandb_project` names a Weights & Biases project that gets the log as well.
    Two fields allow larger batches than the memory holds at once: `gradient_accumulation` computes
    each device's share of the batch in that many parts, one after another, which changes nothing
    but rounding; `checkpoint_flows` saves only each flow's input as a residual and recomputes the
    rest in the backward pass.
    """

    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 1234
    steps: Annotated[int, Bounds(1, NEVER)] = 580_000
    epochs: Annotated[int, Bounds(0, NEVER)] = 0
    batch_size: Annotated[int, Bounds(1, 2**16)] = 24
    learning_rate: Annotated[float, Bounds(0, 1000, above_low=True)] = 1e-4
    warmup_steps: Annotated[int, Bounds(0, NEVER)] = 0
    decay_start: Annotated[float, Bounds(0, 1, below_high=True)] = 0.5
    final_learning_rate: Annotated[float, Bounds(0, 1000)] = 0.0
    plateau_patience: Annotated[int, Bounds(0, NEVER)] = 0
    plateau_learning_rate: Annotated[float, Bounds(0, 1000, above_low=True)] = 5e-5
    sigma: Annotated[float, Bounds(0, 100, above_low=True)] = 1.0
    gradient_clip: Annotated[float, Bounds(0, NEVER)] = 0.0
    ema_decay: Annotated[float, Bounds(0, 1, below_high=True)] = 0.0
    wn_dtype: Annotated[str, OneOf("float32", "bfloat16")] = "float32"
    checkpoint_flows: bool = False
    gradient_accumulation: Annotated[int, Bounds(1, 2**16)] = 1
    noise_std: Annotated[float, Bounds(0, 1)] = 0.0
    final_noise_std: Annotated[float, Bounds(0, 1)] = 0.0
    altered_mels: AlteredMels | None = None
    num_workers: Annotated[int, Bounds(0, 256)] = 0
    validation_files: str = ""
    validation_fraction: Annotated[float, Bounds(0, 1, below_high=True)] = 0.0
    validation_clips: Annotated[int, Bounds(1, 1_000_000)] = 64
    iters_per_validation: Annotated[int, Bounds(1, NEVER)] = 1000
    iters_per_checkpoint: Annotated[int, Bounds(1, NEVER)] = 2000
    keep_checkpoints: Annotated[int, Bounds(1, NEVER)] = 3
    on_save_failure: Annotated[str, OneOf("stop", "continue")] = "stop"
    synthesis_clips: Annotated[int, Bounds(0, 1000)] = 2
    synthesis_sigmas: tuple[Annotated[float, Bounds(0, 100)], ...] = (0.6, 0.8, 1.0)
    wandb_project: str = ""

    def check(self) -> None:
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
