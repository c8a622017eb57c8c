"""Comparison with numbers that the original computed once (tests/data)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import close, expected, golden_config, golden_params

from waveglow_jax.audio.mel import log_mel
from waveglow_jax.config import Config, MelWhitening, WaveGlowConfig
from waveglow_jax.flow.bijections import total_log_det
from waveglow_jax.flow.likelihood import loss
from waveglow_jax.flow.steps import CONVOLUTION, COUPLING
from waveglow_jax.flow.waveglow import encode, forward, inverse
from waveglow_jax.flow.whitening import whitening_factors, whitening_forward


@pytest.fixture(scope="module")
def golden():
    values = expected("expected.npz")
    values["mel"] = values["mel"].transpose(0, 2, 1)
    values["z"] = values["z"].transpose(0, 2, 1)
    return values


def test_forward_and_loss(golden):
    z, log_det = forward(golden_params(), golden_config(), golden["audio"], golden["mel"])
    close(z, golden["z"], 1e-4)
    close(log_det.sum(), golden["log_s_sum"].sum() + golden["log_det_W"][0], 1e-4)
    close(loss(z, log_det, sigma=1.0), golden["loss"], 1e-4)


def test_log_determinants_flow_by_flow(golden):
    z, log_dets = encode(golden_params(), golden_config(), golden["audio"], golden["mel"])
    conv_log_dets = []
    for each in log_dets:
        total = total_log_det(each.local, z.shape[:2]).sum()
        if each.kind == COUPLING.kind:
            close(total, golden["log_s_sum"][each.flow], 1e-4)
        else:
            assert each.kind == CONVOLUTION.kind
            conv_log_dets.append(total)
    close(conv_log_dets[1:], golden["log_det_W"][1:], 1e-4)
    # The original adds the later ones up in the first one's place: the golden entry is the total.
    close(sum(conv_log_dets), golden["log_det_W"][0], 1e-4)


def test_gradients(golden):
    config = golden_config()

    def objective(params):
        return loss(*forward(params, config, golden["audio"], golden["mel"]))

    ours = jax.jit(jax.grad(objective))(golden_params())
    flows = ours["flows"]
    for name, gradient in {
        "upsample.weight": ours["upsample"]["kernel"].transpose(1, 2, 0),
        "convinv.0.conv.weight": flows[0]["conv"][:, :, None],
        "WN.0.start.weight_g": flows[0]["wn"]["start"]["g"][:, None, None],
        "WN.0.start.weight_v": flows[0]["wn"]["start"]["v"].transpose(2, 1, 0),
        "WN.1.in_layers.1.weight_v": flows[1]["wn"]["in_layer_1"]["v"].transpose(2, 1, 0),
        "WN.1.in_layers.1.weight_g": flows[1]["wn"]["in_layer_1"]["g"][:, None, None],
        "WN.0.end.weight": flows[0]["wn"]["end"]["kernel"].transpose(2, 1, 0),
        "WN.1.end.bias": flows[1]["wn"]["end"]["bias"],
    }.items():
        close(gradient, golden[f"grad:{name}"], 1e-3)
    assert len([key for key in golden if key.startswith("grad:")]) == 8


def test_reverse_pass(golden):
    noises = [golden[f"infer_z{i}"].transpose(0, 2, 1) for i in (2, 1, 0)]
    z = golden["infer_sigma"].astype(np.float32) * np.concatenate(noises, axis=-1)
    audio, _ = inverse(golden_params(), golden_config(), z, golden["mel"])
    close(audio, golden["infer_audio"], 1e-4)


def test_mel():
    values = expected("mel_expected.npz")
    ours = log_mel(jnp.asarray(values["wav"]), Config())
    assert ours.shape == values["mel"].T.shape
    assert np.max(np.abs(np.asarray(ours) - values["mel"].T)) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
def test_mel_whitening(block, dtype, tolerance):
    values = expected("whitening_expected.npz")
    whitening = MelWhitening(block=block, floor=float(values["floor"]))
    config = Config(waveglow=WaveGlowConfig(mel_whitening=whitening))
    with jax.enable_x64(dtype == "float64"):
        mel = jnp.asarray(values["mel"][None], dtype)
        wav = jnp.asarray(values["wav"][None], dtype)
        y, log_det = whitening_forward(whitening_factors(mel, config, wav.shape[1]), wav)
        assert y.dtype == dtype
        close(y[0], values[f"y_{block}"], tolerance)
        close(log_det[0].sum(), values[f"log_det_{block}"], tolerance)
