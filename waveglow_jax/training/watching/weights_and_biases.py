"""Sends a run's figures, clips and pictures to Weights & Biases as well (extra `wandb`)."""

import os
import uuid
from pathlib import Path

import numpy as np

from waveglow_jax.config import Config, config_to_dict
from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import write_text


class WeightsAndBiases:
    """Stands in for TensorBoard's writer in `Monitor`, for `train_config.wandb_project`.

    A resumed run continues under the id in RUN/wandb_id.txt; steps repeated after a kill are not
    recorded twice. WANDB_MODE=offline and the library's other variables work as usual. Raises
    UserError if the library or a login is missing.
    """

    def __init__(self, run: Path, config: Config):
        project = config.train.wandb_project
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"train_config.wandb_project {project!r} asks for Weights & Biases, which is not "
                "installed: pip install 'waveglow-jax[wandb]'"
            ) from None
        identity = run / "wandb_id.txt"
        if not identity.exists():
            write_text(identity, uuid.uuid4().hex)
        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=project,
                name=os.path.basename(os.path.realpath(run)),
                id=identity.read_text(encoding="utf-8").strip(),
                dir=str(run),
                config=config_to_dict(config),
                resume="allow",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"train_config.wandb_project {project!r}: {' '.join(str(error).split())[:200]}; "
                "run `wandb login`, or set WANDB_MODE=offline"
            ) from None

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self._run.log({tag: value}, step=step)

    def add_audio(self, tag: str, audio: np.ndarray, step: int, rate: int) -> None:
        self._run.log({tag: self._wandb.Audio(audio, sample_rate=rate)}, step=step)

    def add_image(self, tag: str, pixels: np.ndarray, step: int, **_: str) -> None:
        self._run.log({tag: self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        self._run.finish()
