"""WaveGlow in plain eager PyTorch, written for `python -m waveglow_jax benchmark --against torch`.

It is written the usual way: one convolution per layer, one for the conditioning of all layers of a
flow, and weight norm as a parametrization while training, folded for synthesis. Arrays: audio
`[B, T]`, mel `[B, M, F]`, z `[B, T / G, G]`; all others are channels-first as usual in PyTorch.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from waveglow_jax.config import Config


class WN(nn.Module):
    """The conditioner of a coupling: `[B, C, N]`, `[B, D, N]` -> `[B, 2 C, N]`."""

    def __init__(self, config: Config, n_half: int):
        super().__init__()
        wn = config.waveglow.WN
        self.channels, self.skips = wn.n_channels, wn.skip_channels
        n_mel = config.waveglow.n_mel_channels * config.waveglow.n_group
        self.start = nn.Conv1d(n_half, self.channels, 1)
        self.cond = nn.Conv1d(n_mel, 2 * self.channels * wn.n_layers, 1)
        self.in_layers, self.res_skip = nn.ModuleList(), nn.ModuleList()
        for i in range(wn.n_layers):
            reach = 2**i * (wn.kernel_size // 2)
            layer = nn.Conv1d(
                self.channels, 2 * self.channels, wn.kernel_size, dilation=2**i, padding=reach
            )
            residual = self.channels if i < wn.n_layers - 1 else 0
            self.in_layers.append(layer)
            self.res_skip.append(nn.Conv1d(self.channels, residual + self.skips, 1))
        self.end = nn.Conv1d(self.skips, 2 * n_half, 1)

    def forward(self, x: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        h, conditioning = self.start(x), self.cond(mel)
        skip_sum = None
        for i, (in_layer, res_skip) in enumerate(zip(self.in_layers, self.res_skip, strict=True)):
            at = 2 * self.channels * i
            gates = in_layer(h) + conditioning[:, at : at + 2 * self.channels]
            filtered, gate = gates.chunk(2, dim=1)
            out = res_skip(torch.tanh(filtered) * torch.sigmoid(gate))
            if i < len(self.in_layers) - 1:
                h = h + out[:, : self.channels]
                out = out[:, self.channels :]
            skip_sum = out if skip_sum is None else skip_sum + out
        return self.end(skip_sum)


class TorchWaveGlow(nn.Module):
    """The published architecture, without whitening; the mel is upsampled to the sample rate."""

    def __init__(self, config: Config):
        super().__init__()
        glow = config.waveglow
        self.config = config
        bins = glow.n_mel_channels
        self.upsample = nn.ConvTranspose1d(bins, bins, glow.upsample_kernel, config.data.hop_length)
        self.convs = nn.ParameterList(
            nn.Parameter(torch.eye(glow.channels(k))) for k in range(glow.n_flows)
        )
        self.wns = nn.ModuleList(WN(config, glow.channels(k) // 2) for k in range(glow.n_flows))

    def conditioning(self, mel: torch.Tensor, n_samples: int) -> torch.Tensor:
        """`[B, M, F] -> [B, M * G, N]`."""
        up = self.upsample(mel)[:, :, :n_samples]
        up = up.unfold(2, self.config.waveglow.n_group, self.config.waveglow.n_group)
        return up.permute(0, 1, 3, 2).reshape(up.shape[0], -1, up.shape[2])

    def forward(self, audio: torch.Tensor, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Audio to `(z, log_det)`."""
        glow = self.config.waveglow
        mel = self.conditioning(mel, audio.shape[1])
        x = audio.unfold(1, glow.n_group, glow.n_group).transpose(1, 2)
        left, log_det = [], torch.zeros(audio.shape[0], device=audio.device)
        for k, (weight, wn) in enumerate(zip(self.convs, self.wns, strict=True)):
            if glow.leaves_before(k):
                left.append(x[:, : glow.n_early_size])
                x = x[:, glow.n_early_size :]
            x = functional.conv1d(x, weight[:, :, None])
            log_det = log_det + x.shape[2] * torch.linalg.slogdet(weight)[1]
            a, b = x.chunk(2, dim=1)
            shift, log_s = wn(a, mel).chunk(2, dim=1)
            x = torch.cat([a, torch.exp(log_s) * b + shift], dim=1)
            log_det = log_det + log_s.sum(dim=(1, 2))
        return torch.cat([*left, x], dim=1).transpose(1, 2), log_det

    @torch.no_grad()
    def inverse(self, z: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """z to audio `[B, T]`; the flow's stream stays in float32.

        `ready_for_synthesis` must be called before.
        """
        glow, dtype = self.config.waveglow, self.upsample.weight.dtype
        mel = self.conditioning(mel.to(dtype), z.shape[1] * glow.n_group)
        z = z.transpose(1, 2)
        entered = glow.n_group - glow.channels(glow.n_flows - 1)
        x = z[:, entered:]
        for k in reversed(range(glow.n_flows)):
            a, b = x.chunk(2, dim=1)
            shift, log_s = self.wns[k](a.to(dtype), mel).float().chunk(2, dim=1)
            x = functional.conv1d(
                torch.cat([a, (b - shift) * torch.exp(-log_s)], dim=1), self.inverses[k]
            )
            if glow.leaves_before(k):
                entered -= glow.n_early_size
                x = torch.cat([z[:, entered : entered + glow.n_early_size], x], dim=1)
        return x.transpose(1, 2).reshape(x.shape[0], -1)

    def ready_for_synthesis(self, dtype: torch.dtype) -> "TorchWaveGlow":
        """Computes every W^-1 once, in float32, and casts WN and the upsampler to `dtype`."""
        self.inverses = [torch.linalg.inv(w.detach())[:, :, None].contiguous() for w in self.convs]
        self.upsample.to(dtype)
        self.wns.to(dtype)
        return self.eval()


def from_params(params: dict, config: Config) -> TorchWaveGlow:
    """A model with our parameters, as kernels without weight norm (see `with_weight_norm`)."""
    model = TorchWaveGlow(config)
    with torch.no_grad():
        # Our kernel is [taps, in, out], with taps in the order of the output samples.
        kernel, bias = (_tensor(params["upsample"][name]) for name in ("kernel", "bias"))
        model.upsample.weight.copy_(kernel.permute(1, 2, 0))
        model.upsample.bias.copy_(bias)
        for flow, weight, wn in zip(params["flows"], model.convs, model.wns, strict=True):
            weight.copy_(_tensor(flow["conv"]))
            layers = flow["wn"]
            _set(wn.start, [layers["start"]])
            _set(wn.end, [layers["end"]])
            _set(wn.cond, [layers[f"cond_layer_{i}"] for i in range(len(wn.in_layers))])
            for i in range(len(wn.in_layers)):
                _set(wn.in_layers[i], [layers[f"in_layer_{i}"]])
                _set(wn.res_skip[i], [layers[f"res_skip_layer_{i}"]])
    return model


def _set(conv: nn.Conv1d, layers: Iterable[dict]) -> None:
    """Sets a convolution from one or more layers, whose output channels are concatenated.

    Each layer is `{kernel [taps, in, out], bias}` or `{v, g, bias}`.
    """
    kernels, biases = [], []
    for layer in layers:
        if "v" in layer:
            v, g = _tensor(layer["v"]), _tensor(layer["g"])
            kernel = v * (g / v.square().sum(dim=(0, 1)).sqrt())
        else:
            kernel = _tensor(layer["kernel"])
        kernels.append(kernel.permute(2, 1, 0))
        biases.append(_tensor(layer["bias"]))
    conv.weight.copy_(torch.cat(kernels))
    conv.bias.copy_(torch.cat(biases))


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def with_weight_norm(model: TorchWaveGlow) -> TorchWaveGlow:
    """The model for training: every convolution of WN but the last as direction and norm."""
    for wn in model.wns:
        for conv in (wn.start, wn.cond, *wn.in_layers, *wn.res_skip):
            parametrizations.weight_norm(conv)
    return model


class Trainer:
    """Plain training steps: the negative log-likelihood loss, its gradients, and Adam."""

    def __init__(self, model: TorchWaveGlow):
        self.model = with_weight_norm(model)
        train = model.config.train
        self.sigma = train.sigma
        self.optimizer = torch.optim.Adam(model.parameters(), train.learning_rate)

    def step(self, audio: torch.Tensor, mel: torch.Tensor) -> float:
        """audio `[B, T]`, mel `[B, M, F]` -> the loss before the optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(audio, mel)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def loss_of(self, audio: torch.Tensor, mel: torch.Tensor) -> float:
        """The loss, without an optimizer step."""
        return float(self._loss(audio, mel))

    def _loss(self, audio: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        z, log_det = self.model(audio, mel)
        return (z.square().sum() / (2 * self.sigma**2) - log_det.sum()) / z.numel()
