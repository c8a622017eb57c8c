"""WaveGlow in float64 NumPy, from a state dict with the original's names: plain loops, no JAX.

It follows the original's `glow.py` (github.com/NVIDIA/waveglow), channels first, and shares no code
with the package. Arrays: audio `[T]`; mel `[M, F]`; z `[G, N]`; log_det a float. One rule is ours:
where the last group ends after the last frame, that frame is repeated.
"""

from dataclasses import dataclass

import numpy as np

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """The hyper-parameters that a state dict does not contain, and those that `random_state`
    takes."""

    hop: int
    group: int
    bins: int = 5
    flows: int = 2
    early_every: int = 1
    early_size: int = 2
    layers: int = 3
    channels: int = 8
    kernel: int = 7
    upsample_kernel: int = 1024


def random_state(shape: Shape, seed: int = 0) -> State:
    """Float32 tensors with which no layer is the identity, by the names of published files."""
    rng = np.random.default_rng(seed)
    bins, width = shape.bins, shape.channels
    state = {
        "upsample.weight": 0.1 * rng.normal(size=(bins, bins, shape.upsample_kernel)),
        "upsample.bias": 0.1 * rng.normal(size=bins),
    }

    def layer(name: str, out: int, seen: int, taps: int) -> None:
        state[f"{name}.weight_v"] = rng.normal(size=(out, seen, taps))
        state[f"{name}.weight_g"] = rng.uniform(0.8, 1.6, size=(out, 1, 1))
        state[f"{name}.bias"] = 0.1 * rng.normal(size=out)

    left = shape.group
    for k in range(shape.flows):
        if k and k % shape.early_every == 0:
            left -= shape.early_size
        rotation = np.linalg.qr(rng.normal(size=(left, left)))[0]
        state[f"convinv.{k}.conv.weight"] = (rotation * rng.uniform(0.8, 1.2, left))[:, :, None]
        layer(f"WN.{k}.start", width, left // 2, 1)
        layer(f"WN.{k}.cond_layer", 2 * width * shape.layers, bins * shape.group, 1)
        for i in range(shape.layers):
            layer(f"WN.{k}.in_layers.{i}", 2 * width, width, shape.kernel)
            last = i == shape.layers - 1
            layer(f"WN.{k}.res_skip_layers.{i}", width if last else 2 * width, width, 1)
        state[f"WN.{k}.end.weight"] = 0.1 * rng.normal(size=(left, width, 1))
        state[f"WN.{k}.end.bias"] = 0.1 * rng.normal(size=left)
    return {name: tensor.astype(np.float32) for name, tensor in state.items()}


def forward(state: State, shape: Shape, audio: np.ndarray, mel: np.ndarray):
    """`(z, log_det)` of the audio's whole groups; an incomplete last group is dropped."""
    x = unfolded(np.asarray(audio, np.float64)[None], shape.group)
    n = x.shape[1]
    cond = conditioning(state, shape, mel, n)
    left, log_det = [], 0.0
    for k in range(shape.flows):
        if k and k % shape.early_every == 0:
            left.append(x[: shape.early_size])
            x = x[shape.early_size :]
        weight = np.asarray(state[f"convinv.{k}.conv.weight"], np.float64)[:, :, 0]
        x = weight @ x
        log_det += n * np.log(abs(np.linalg.det(weight)))
        half = len(x) // 2
        out = wn(state, shape, k, x[:half], cond)
        log_s = out[half:]
        x = np.concatenate([x[:half], np.exp(log_s) * x[half:] + out[:half]])
        log_det += log_s.sum()
    return np.concatenate([*left, x]), log_det


def inverse(state: State, shape: Shape, z: np.ndarray, mel: np.ndarray) -> np.ndarray:
    """The audio of all groups, `[N * G]`."""
    z = np.asarray(z, np.float64)
    cond = conditioning(state, shape, mel, z.shape[1])
    early = sum(1 for k in range(1, shape.flows) if k % shape.early_every == 0) * shape.early_size
    x = z[early:]
    for k in reversed(range(shape.flows)):
        half = len(x) // 2
        out = wn(state, shape, k, x[:half], cond)
        x = np.concatenate([x[:half], (x[half:] - out[:half]) / np.exp(out[half:])])
        weight = np.asarray(state[f"convinv.{k}.conv.weight"], np.float64)[:, :, 0]
        x = np.linalg.solve(weight, x)
        if k and k % shape.early_every == 0:
            early -= shape.early_size
            x = np.concatenate([z[early : early + shape.early_size], x])
    return x.T.reshape(-1)


def unfolded(x: np.ndarray, group: int) -> np.ndarray:
    """`[C, T] -> [C * group, T // group]`: channel c * group + position, as `unfold` gives it."""
    channels, length = x.shape
    out = np.zeros((channels * group, length // group))
    for n in range(length // group):
        for c in range(channels):
            for position in range(group):
                out[c * group + position, n] = x[c, n * group + position]
    return out


def conditioning(state: State, shape: Shape, mel: np.ndarray, n: int) -> np.ndarray:
    """`[M, F] -> [M * G, n]`: upsampled, cut to the audio's length, in groups."""
    mel = np.asarray(mel, np.float64)
    while mel.shape[1] * shape.hop < n * shape.group:
        mel = np.concatenate([mel, mel[:, -1:]], axis=1)
    weight = np.asarray(state["upsample.weight"], np.float64)
    taps = weight.shape[2]
    up = np.zeros((weight.shape[1], (mel.shape[1] - 1) * shape.hop + taps))
    for frame in range(mel.shape[1]):
        for seen in range(mel.shape[0]):
            up[:, frame * shape.hop : frame * shape.hop + taps] += mel[seen, frame] * weight[seen]
    up += np.asarray(state["upsample.bias"], np.float64)[:, None]
    return unfolded(up[:, : n * shape.group], shape.group)


def wn(state: State, shape: Shape, k: int, half: np.ndarray, cond: np.ndarray) -> np.ndarray:
    """WN of flow k: `[C, N]`, `[M * G, N] -> [2 C, N]`, shift before log_s."""
    name, width = f"WN.{k}", shape.channels
    x = convolution(state, f"{name}.start", half)
    cond = convolution(state, f"{name}.cond_layer", cond)
    skip = np.zeros_like(x)
    for i in range(shape.layers):
        act = convolution(state, f"{name}.in_layers.{i}", x, 2**i)
        act = act + cond[2 * width * i : 2 * width * (i + 1)]
        act = np.tanh(act[:width]) / (1 + np.exp(-act[width:]))
        both = convolution(state, f"{name}.res_skip_layers.{i}", act)
        if i < shape.layers - 1:
            x = x + both[:width]
            both = both[width:]
        skip = skip + both
    return convolution(state, f"{name}.end", skip)


def convolution(state: State, name: str, x: np.ndarray, dilation: int = 1) -> np.ndarray:
    """A centred convolution `[C, N] -> [C_out, N]` that sees zeros beyond the ends."""
    if f"{name}.weight" in state:
        weight = np.asarray(state[f"{name}.weight"], np.float64)
    else:
        v = np.asarray(state[f"{name}.weight_v"], np.float64)
        norm = np.sqrt((v**2).sum(axis=(1, 2), keepdims=True))
        weight = v / norm * np.asarray(state[f"{name}.weight_g"], np.float64)
    n, taps = x.shape[1], weight.shape[2]
    out = np.zeros((len(weight), n)) + np.asarray(state[f"{name}.bias"], np.float64)[:, None]
    for tap in range(taps):
        shift = (tap - taps // 2) * dilation
        first, last = max(0, -shift), min(n, n - shift)
        if first < last:
            out[:, first:last] += weight[:, :, tap] @ x[:, first + shift : last + shift]
    return out
