"""Data parallelism over the devices of all processes; the only file that uses pmap.

The state is replicated and has no device axis; a batch's arrays are `[D, B / devices, ...]` for
the D devices of this process, which get their rows of the global batch of B.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.training.batch import Batch
from waveglow_jax.training.step import TrainState, train_step, validation_step

AXIS = "devices"


@dataclass(frozen=True)
class Layout:
    """The devices of a run in the order of the batch's rows, grouped by process."""

    devices: tuple[jax.Device, ...]

    @staticmethod
    def of_all_processes() -> "Layout":
        return Layout(tuple(sorted(jax.devices(), key=lambda d: (d.process_index, d.id))))

    @property
    def local(self) -> tuple[jax.Device, ...]:
        """The devices of this process."""
        here = jax.process_index()
        return tuple(device for device in self.devices if device.process_index == here)

    @property
    def n_processes(self) -> int:
        return len({device.process_index for device in self.devices})

    def rows(self, batch_size: int) -> range:
        """The rows of a global batch that this process reads."""
        per_device = batch_size // len(self.devices)
        first = self.devices.index(self.local[0]) * per_device
        return range(first, first + len(self.local) * per_device)


def parallel_train_step(
    config: Config, total_steps: int, devices: Sequence[jax.Device]
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step` over the devices. It donates its input state: use the returned one.

    The metrics include the sums of the batch's notes over all devices.
    """
    check_batch(config, len(devices))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        notes = jax.lax.psum(batch.notes or {}, AXIS)
        clips = batch._replace(notes=None)
        state, metrics = train_step(state, clips, config, total_steps, AXIS)
        return state, {**metrics, **notes}

    parallel = jax.pmap(
        step,
        AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )
    return _in_turn(parallel, devices)


def parallel_validation_step(
    config: Config, devices: Sequence[jax.Device]
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """`validation_step` over the devices."""
    parallel = jax.pmap(
        lambda params, batch: validation_step(params, batch, config, AXIS),
        AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=devices,
    )
    return _in_turn(parallel, devices)


def _in_turn(step: Callable[..., Any], devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """Makes calls on several CPU devices wait for one another.

    CPU devices share few threads, and two concurrent calls can deadlock waiting for threads.
    """
    if len(devices) == 1 or devices[0].platform != "cpu":
        return step
    return lambda *arguments: jax.block_until_ready(step(*arguments))


def replicate(state: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy of the state on each of this process's devices, with the sharding that the step
    returns, so that the step is compiled only once."""
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def split(batch: Batch, n_devices: int) -> Batch:
    """Reshapes every array: `[B, ...] -> [devices, B / devices, ...]`."""
    return jax.tree.map(lambda v: v.reshape(n_devices, -1, *v.shape[1:]), batch)


def check_batch(config: Config, n_devices: int) -> None:
    """Raises UserError unless devices times gradient_accumulation divides the batch size."""
    train = config.train
    batch, parts = train.batch_size, train.gradient_accumulation
    unit = n_devices * parts
    if batch % unit:
        each = f", {parts} parts each (train_config.gradient_accumulation)" if parts > 1 else ""
        raise UserError(
            f"train_config.batch_size {batch} is not divided by the {n_devices} devices{each}: "
            f"take {batch // unit * unit or unit} or {(batch // unit + 1) * unit} "
            "(--train.batch_size N)"
        )
