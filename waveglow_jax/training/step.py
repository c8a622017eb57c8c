"""One training step on one device's share of the batch: state in, `(state, metrics)` out.

Here a `Batch` has the B rows of one device. If it has no mel, the mel of the clips is computed.
"""

from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from waveglow_jax.audio.mel import log_mel_of_padded
from waveglow_jax.config import Config, TrainConfig
from waveglow_jax.errors import UserError
from waveglow_jax.flow.likelihood import log_likelihood, loss
from waveglow_jax.flow.steps import COUPLING
from waveglow_jax.flow.waveglow import (
    Params,
    encode,
    forward,
    init,
    parameter_shapes,
    sum_over_steps,
)
from waveglow_jax.training.altered_mels import altered_mels
from waveglow_jax.training.batch import Batch
from waveglow_jax.trees import named, unravelled
from waveglow_jax.weights.moments import Moments

LANES = 128
"""Number of columns of a TPU tile."""


@flax.struct.dataclass
class TrainState:
    """What a step reads and updates; a checkpoint contains all of it.

    `step` counts the batches seen, including skipped updates; `skipped` counts all skipped updates
    and `bad_in_a_row` the most recent consecutive ones. `ema` is the running mean of the
    parameters, None if `ema_decay` is 0.
    """

    step: jax.Array
    params: Params
    optimizer: Any
    ema: Params | None
    learning_rate_scale: jax.Array
    skipped: jax.Array
    bad_in_a_row: jax.Array

    @property
    def voice(self) -> Params:
        """The parameters for validation and synthesis."""
        return self.params if self.ema is None else self.ema


def optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """Global-norm clipping, if configured, and Adam.

    It takes all parameters as one vector (`ravel_pytree`), which XLA compiles to one fusion instead
    of hundreds. The step applies the learning rate.
    """
    clip = [optax.clip_by_global_norm(train.gradient_clip)] if train.gradient_clip else []
    return optax.chain(*clip, optax.scale_by_adam())


def init_state(
    config: Config, params: Params | None = None, moments: Moments | None = None
) -> TrainState:
    """The state before the first step: weights from the config's seed unless given, and
    Adam's moments if given for these weights.

    Raises UserError if the shapes of the weights are not those of the config.
    """
    train = config.train
    if params is None:
        params = init(jax.random.key(train.seed), config)
    _check_shapes(params, config)
    params = jax.tree.map(jnp.array, params)  # a copy: the first step donates the state
    adam = optimizer(train).init(ravel_pytree(params)[0])
    if moments is not None:
        for tree in (moments.mean, moments.square):
            _check_shapes(tree, config)
        mean, square = (ravel_pytree(tree)[0] for tree in (moments.mean, moments.square))
        count = jnp.asarray(moments.count, jnp.int32)
        adam = optax.tree.set(adam, count=count, mu=mean, nu=square)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=adam,
        ema=jax.tree.map(jnp.copy, params) if train.ema_decay else None,
        learning_rate_scale=jnp.ones(()),
        skipped=jnp.zeros((), jnp.int32),
        bad_in_a_row=jnp.zeros((), jnp.int32),
    )


def _check_shapes(params: Params, config: Config) -> None:
    wanted, given = (
        {name: leaf.shape for name, leaf in named(tree).items()}
        for tree in (parameter_shapes(config), params)
    )
    for name in sorted(wanted.keys() | given.keys()):
        if given.get(name) != wanted.get(name):
            raise UserError(
                f"the weights to start from do not fit the config: {name} is "
                f"{given.get(name, 'missing')}, the config asks for {wanted.get(name, 'none')}; "
                "take the config.json beside the weights"
            )


def train_step(
    state: TrainState, batch: Batch, config: Config, total_steps: int, axis: str
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Does one Adam step with gradients averaged over the devices of `axis`.

    If the loss or the gradient is not finite, only the counters change.
    """
    train = config.train
    noise = schedule(train, total_steps, state.step).noise
    value, gradients = _value_and_gradients(state.params, batch, config, state.step, noise)
    value, gradients = jax.lax.pmean((value, ravel_pytree(gradients)[0]), axis)
    gradient_norm = jnp.linalg.norm(gradients)
    good = jnp.isfinite(value) & jnp.isfinite(gradient_norm)

    rate = schedule(train, total_steps, state.step).learning_rate * state.learning_rate_scale
    updates, new_optimizer = optimizer(train).update(gradients, state.optimizer)
    new_params = jax.tree.map(
        lambda p, u: p - rate * u, state.params, unravelled(updates, state.params, _shaped)
    )
    decay = jnp.minimum(train.ema_decay, (1 + state.step) / (10 + state.step))
    new_ema = state.ema and jax.tree.map(
        lambda e, p: decay * e + (1 - decay) * p, state.ema, new_params
    )

    def if_good(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    state = replace(
        state,
        step=state.step + 1,
        params=if_good(new_params, state.params),
        optimizer=if_good(new_optimizer, state.optimizer),
        ema=if_good(new_ema, state.ema),
        skipped=state.skipped + ~good,
        bad_in_a_row=jnp.where(good, 0, state.bad_in_a_row + 1),
    )
    metrics = {
        "loss": value,
        "gradient_norm": gradient_norm,
        "update_norm": jnp.where(good, rate * jnp.linalg.norm(updates), 0.0),
        "parameter_norm": optax.tree.norm(state.params),
        "learning_rate": rate,
        "skipped": state.skipped,
        "bad_in_a_row": state.bad_in_a_row,
    }
    return state, metrics


def _shaped(part: jax.Array, leaf: jax.Array) -> jax.Array:
    if leaf.shape[-1] < LANES:
        # Otherwise XLA reshapes the whole vector before slicing it, to `[size / 4, 4]` for a W:
        # padded to a TPU's tiles, that takes 32 times the memory.
        part = jax.lax.optimization_barrier(part)
    return part.reshape(leaf.shape)


def _value_and_gradients(
    params: Params, batch: Batch, config: Config, step: jax.Array, noise: jax.Array
) -> tuple[jax.Array, Params]:
    """The loss and its gradients, accumulated over parts of the device's clips.

    All `gradient_accumulation` parts have the same number of clips, so the mean over the parts is
    the mean over all clips.
    """
    train = config.train

    def of_clips(clips: Batch) -> tuple[jax.Array, Params]:
        audio, past, mel = _clips(clips, config, step, noise)
        if train.altered_mels:
            mel = altered_mels(mel, clips.index, step, train, train.altered_mels)
        keywords: dict[str, Any] = {
            "dtype": jnp.dtype(train.wn_dtype),
            "checkpoint_flows": train.checkpoint_flows,
        }

        def objective(params: Params) -> jax.Array:
            z, log_det = forward(params, config, audio, mel, past=past, **keywords)
            return loss(z, log_det, train.sigma)

        return jax.value_and_grad(objective)(params)

    n_parts = train.gradient_accumulation
    if n_parts == 1:
        return of_clips(batch)
    parts = jax.tree.map(lambda leaf: leaf.reshape(n_parts, -1, *leaf.shape[1:]), batch)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(lambda t, p: t + p / n_parts, total, of_clips(part)), None

    nothing = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    return jax.lax.scan(add, nothing, parts)[0]


def validation_step(
    params: Params, batch: Batch, config: Config, axis: str
) -> dict[str, jax.Array]:
    """Sums over all devices' clips, weighted by `weight` `[B]`, and each flow's largest |log_s|.

    The sums are those of nats per sample, of the mean z and z^2 of each channel `[G]`, and of the
    weights; max_log_s is `[flows]`. The clips get the noise of the start of training, the same at
    every call, so that the figures are comparable.
    """
    audio, past, mel = _clips(batch, config, jnp.zeros((), jnp.int32), config.train.noise_std)
    z, log_dets = encode(params, config, audio, mel, past=past)
    log_det = sum_over_steps(log_dets, z, None)
    log_s = [each.local for each in log_dets if each.kind == COUPLING.kind]
    max_log_s = jnp.stack([jnp.abs(of_flow).max() for of_flow in log_s])
    weight = batch.weight
    shares = weight[:, None, None] / z.shape[1]
    sums = {
        "nats": jnp.sum(log_likelihood(z, log_det, config.train.sigma) * weight),
        "weight": jnp.sum(weight),
        "z": jnp.sum(z * shares, axis=(0, 1)),
        "z_squared": jnp.sum(z * z * shares, axis=(0, 1)),
    }
    return {**jax.lax.psum(sums, axis), "max_log_s": jax.lax.pmax(max_log_s, axis)}


def _clips(
    batch: Batch, config: Config, step: jax.Array, noise: jax.Array | float
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Audio `[B, clip_samples]` with noise, the `[B, order]` samples before it that a predicting
    whitening reads (None without one), and mel `[B, F, M]` without noise."""
    data, train = config.data, config.train
    mel = log_mel_of_padded(batch.clips, config) if batch.mel is None else batch.mel
    lead = data.lead
    order = config.waveglow.whitening_order
    audio = batch.clips[:, lead - order : lead + config.clip_samples]
    if train.noise_std:
        # Keyed by step and index in the global batch, hence independent of the number of devices.
        key = jax.random.fold_in(jax.random.key(train.seed), step)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch.index)
        audio = audio + noise * jax.vmap(lambda k: jax.random.normal(k, audio.shape[1:]))(keys)
    return audio[:, order:], audio[:, :order] if order else None, mel


@flax.struct.dataclass
class Schedule:
    learning_rate: jax.Array
    noise: jax.Array


def schedule(train: TrainConfig, total_steps: int, step: jax.Array) -> Schedule:
    """The learning rate and noise at a step, as `TrainConfig` describes them."""
    start = train.decay_start * total_steps
    passed = jnp.clip((step - start) / max(total_steps - start, 1), 0.0, 1.0)
    rate = jnp.asarray(train.learning_rate)
    if train.final_learning_rate:
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * passed))
        rate = train.final_learning_rate + (rate - train.final_learning_rate) * cosine
    if train.warmup_steps:
        rate = rate * jnp.minimum(1.0, (step + 1) / train.warmup_steps)
    noise = jnp.asarray(train.noise_std)
    if train.final_noise_std:
        noise = noise * (train.final_noise_std / train.noise_std) ** passed
    return Schedule(rate, noise)
