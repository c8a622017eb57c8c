"""The whole model with random weights: against its Jacobian, quadrature, and unbatched runs."""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from compiling import quick_jit

from waveglow_jax.config import Config, config_from_dict, load_config
from waveglow_jax.flow.likelihood import log_likelihood, loss, loss_constant
from waveglow_jax.flow.waveglow import (
    forward,
    init,
    inverse,
    inverse_prepared,
    latent_noise,
    parameter_shapes,
    prepare_inverse,
)

HOP, BINS, BATCH = 16, 5, 2


def small(**waveglow) -> Config:
    wn = {"n_layers": 2, "n_channels": 4, **waveglow.pop("WN_config", {})}
    data = {
        "segment_length": 64,
        "hop_length": HOP,
        "filter_length": 64,
        "win_length": 64,
        "mel_fmax": 8000,
        **waveglow.pop("data", {}),
    }
    glow = {
        "n_mel_channels": BINS,
        "n_flows": 3,
        "n_group": 8,
        "n_early_every": 1,
        "n_early_size": 2,
        "upsample_kernel": 64,
        **waveglow,
        "WN_config": wn,
    }
    return config_from_dict({"waveglow_config": glow, "data_config": data})


WHITENING = {"block": 16, "floor": 0.002}
PUBLISHED = small()
GROUP = small(conditioning="group")
VOICE = small(conditioning="group", mel_whitening=WHITENING)
PREDICTING = small(conditioning="group", mel_whitening={**WHITENING, "order": 12})

# config, samples, mel frames
MODELS = {
    "published": (PUBLISHED, 32, 2),
    "group conditioning": (GROUP, 32, 2),
    "whitening, one more frame": (VOICE, 32, 3),
    "predicting, one more frame": (PREDICTING, 32, 3),
    "no early outputs, one more frame": (small(n_early_size=0, n_flows=2), 32, 3),
    "more residual than skip channels": (small(WN_config={"n_skip_channels": 3}), 32, 2),
    "last frame not filled": (small(n_early_every=2), 24, 2),
}
every_model = pytest.mark.parametrize("name", MODELS)


def lively(config: Config, seed: int = 0):
    """Random float64 parameters; those of `init` preserve volume and do not depend on the mel."""
    rng = np.random.default_rng(seed)

    def of(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "conv":
            return np.linalg.qr(rng.normal(size=leaf.shape))[0] + 0.2 * noise
        return 0.4 * noise

    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    return jax.tree_util.tree_map_with_path(of, shapes)


def inputs(config: Config, samples: int, frames: int, batch: int = BATCH, seed: int = 1):
    """Float64 audio, mel and a latent."""
    rng = np.random.default_rng(seed)
    group = config.waveglow.n_group
    return (
        rng.normal(size=(batch, samples)),
        rng.normal(size=(batch, frames, BINS)),
        rng.normal(size=(batch, samples // group, group)),
    )


def to(dtype, tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


@cache
def both_ways(config: Config, dtype: str):
    return (
        quick_jit(lambda params, audio, mel: forward(params, config, audio, mel, dtype=dtype)),
        quick_jit(lambda params, z, mel: inverse(params, config, z, mel, dtype=dtype)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [(name, "float64", 1e-9) for name in MODELS]
    # In float32, three of the models suffice.
    + [(name, "float32", 1e-3) for name in list(MODELS)[:3]],
)
def test_round_trips_and_log_dets_cancel(name, dtype, tolerance):
    config, samples, frames = MODELS[name]
    ahead, back = both_ways(config, dtype)
    with jax.enable_x64(dtype == "float64"):
        params, (audio, mel, z) = to(dtype, (lively(config), inputs(config, samples, frames)))
        encoded, log_det = ahead(params, audio, mel)
        again, inverse_log_det = back(params, encoded, mel)
        assert encoded.shape == z.shape
        assert log_det.shape == inverse_log_det.shape == (BATCH,)
        assert encoded.dtype == log_det.dtype == again.dtype == inverse_log_det.dtype == dtype
        np.testing.assert_allclose(again, audio, rtol=0, atol=tolerance)
        np.testing.assert_allclose(log_det, -inverse_log_det, rtol=0, atol=30 * tolerance)
        decoded, inverse_log_det = back(params, z, mel)
        again, log_det = ahead(params, decoded, mel)
        np.testing.assert_allclose(again, z, rtol=0, atol=tolerance)
        np.testing.assert_allclose(log_det, -inverse_log_det, rtol=0, atol=30 * tolerance)


@pytest.mark.slow
@every_model
def test_log_det_is_that_of_the_jacobian(name):
    config, samples, frames = MODELS[name]
    with jax.enable_x64(True):
        params, (audio, mel, _) = to("float64", (lively(config), inputs(config, samples, frames)))

        def latent(audio, mel):
            z, _ = forward(params, config, audio[None], mel[None], dtype="float64")
            return z.reshape(-1)

        # The Jacobian of the second signal alone, which must not depend on the first one.
        jacobian = np.asarray(quick_jit(jax.jacrev(latent))(audio[1], mel[1]))
        _, log_det = both_ways(config, "float64")[0](params, audio, mel)
        assert float(log_det[1]) == pytest.approx(np.linalg.slogdet(jacobian)[1], abs=1e-8)
        assert abs(float(log_det[1])) > 0.1
        # The Jacobian is not trivially triangular: most inputs influence the last output.
        assert np.count_nonzero(np.abs(jacobian[-1]) > 1e-12) > samples // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["published", "whitening, one more frame"])
def test_one_of_a_batch_is_itself_alone(name):
    config, samples, frames = MODELS[name]
    ahead, back = both_ways(config, "float32")
    params, (audio, mel, z) = to("float32", (lively(config), inputs(config, samples, frames)))
    # The other signals change places in the batch, and the same program runs.
    other = [BATCH - 1, *range(BATCH - 1)]
    for direction, x in ((ahead, audio), (back, z)):
        y, log_det = direction(params, x, mel)
        for i in range(BATCH):
            beside = jnp.where(
                jnp.arange(BATCH)[:, None, None] == i, mel, 3 * mel[jnp.array(other)]
            )
            keep = (jnp.arange(BATCH) == i).reshape(-1, *[1] * (x.ndim - 1))
            alone, alone_log_det = direction(params, jnp.where(keep, x, 5 * x), beside)
            np.testing.assert_array_equal(alone[i], y[i])
            np.testing.assert_array_equal(alone_log_det[i], log_det[i])


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("config", [PUBLISHED, PREDICTING], ids=["published", "voice"])
def test_padding_is_not_heard(config, direction):
    lengths, frames = (2, 3), 3
    rng = np.random.default_rng(2)
    params = to("float32", lively(config))
    if direction == "forward":
        shape, steps = (HOP,), HOP
        run = quick_jit(lambda x, mel, mask: forward(params, config, x, mel, mask=mask))
    else:
        prepared = prepare_inverse(params)
        shape, steps = (HOP // 8, 8), HOP // 8
        run = quick_jit(lambda x, mel, mask: inverse_prepared(prepared, config, x, mel, mask=mask))
    # The mel's padding repeats its last frame; the signal's padding is loud noise.
    mels = [np.float32(rng.normal(size=(n, BINS))) for n in lengths]
    mel = np.stack([m[np.minimum(np.arange(frames), len(m) - 1)] for m in mels])
    x = 20 * rng.normal(size=(len(lengths), frames * steps, *shape[1:])).astype(np.float32)
    for i, n in enumerate(lengths):
        x[i, : n * steps] /= 20
    mask = np.float32(np.arange(frames * HOP // 8) < np.array(lengths)[:, None] * HOP // 8)
    y, log_det = run(x, mel, mask)
    unmasked, unmasked_log_det = run(x, mel, None)
    for i, n in enumerate(lengths):
        expected, expected_log_det = run(x[i : i + 1, : n * steps], mels[i][None], None)
        expected, expected_log_det = np.asarray(expected[0]), float(expected_log_det[0])
        own = slice(n * HOP) if direction == "inverse" else slice(n * HOP // 8)
        scale = max(1, np.abs(expected).max())
        assert np.abs(y[i, own] - expected).max() <= 1e-5 * scale
        assert float(log_det[i]) == pytest.approx(expected_log_det, rel=1e-5, abs=1e-4)
        # Without a mask the padding must change the result, or this tests nothing.
        assert (np.abs(unmasked[i, own] - expected).max() > 1e-3 * scale) == (n < frames)
        assert (abs(float(unmasked_log_det[i]) - expected_log_det) > 0.1) == (n < frames)


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["sample", "group"])
@pytest.mark.parametrize("whitening", [None, {"block": 2, "floor": 0.02}])
def test_the_density_integrates_to_one(conditioning, whitening):
    config = small(
        n_group=2,
        n_early_size=0,
        upsample_kernel=4,
        conditioning=conditioning,
        mel_whitening=whitening,
        data={"hop_length": 2},
    )
    sigma, side = 0.8, 301
    with jax.enable_x64(True):
        params = to("float64", lively(config, 3))
        mel = jnp.asarray(np.random.default_rng(4).normal(size=(1, 1, BINS)) - 2)

        @quick_jit
        def samples(z):
            def of_one(z):
                return inverse(params, config, z[None, None], mel, dtype="float64")[0][0]

            return jax.vmap(of_one)(z)

        @quick_jit
        def density(points):
            def of_one(audio):
                z, log_det = forward(params, config, audio[None], mel, dtype="float64")
                return jnp.exp(2 * log_likelihood(z, log_det, sigma)[0])

            return jax.vmap(of_one)(points)

        # The box that holds the samples, enlarged by half on either side.
        drawn = np.asarray(samples(sigma * np.random.default_rng(5).normal(size=(2000, 2))))
        low, high = drawn.min(axis=0), drawn.max(axis=0)
        low, high = low - (high - low) / 2, high + (high - low) / 2
        axes = [np.linspace(low[i], high[i], side) for i in range(2)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        cell = np.prod([axis[1] - axis[0] for axis in axes])
        total = float(np.sum(density(points)) * cell)
    assert total == pytest.approx(1, abs=1e-3)


def test_loss_and_log_likelihood():
    rng = np.random.default_rng(6)
    with jax.enable_x64(True):
        z, log_det = jnp.asarray(rng.normal(size=(3, 4, 8))), jnp.asarray(rng.normal(size=3))
        for sigma in (1.0, 0.6):
            per_sample = np.asarray(log_likelihood(z, log_det, sigma))
            normal = scipy.stats.norm(scale=sigma).logpdf(np.asarray(z)).sum(axis=(1, 2))
            np.testing.assert_allclose(per_sample, (normal + log_det) / 32, rtol=1e-12)
            of_batch = float(loss(z, log_det, sigma))
            assert per_sample.mean() == pytest.approx(-(of_batch + loss_constant(sigma)))
            original = (z**2).sum() / (2 * sigma**2) - log_det.sum()
            assert of_batch == pytest.approx(float(original) / (3 * 4 * 8))
    assert loss_constant(1.0) == pytest.approx(0.9189385332046727)


@cache
def fresh(config: Config, seed: int = 0):
    return quick_jit(init, static_argnums=1)(jax.random.key(seed), config)


@pytest.mark.slow
def test_a_fresh_model_only_rotates():
    params = fresh(PUBLISHED)
    for k, flow in enumerate(params["flows"]):
        W = np.asarray(flow["conv"], np.float64)
        assert W.shape == (8 - 2 * k, 8 - 2 * k)
        np.testing.assert_allclose(W @ W.T, np.eye(len(W)), atol=1e-6)
        assert np.linalg.det(W) == pytest.approx(1, abs=1e-6)
        assert np.abs(W - np.eye(len(W))).max() > 0.2
        assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(flow))
        assert not np.any(flow["wn"]["end"]["kernel"])
        assert not np.any(flow["wn"]["end"]["bias"])
        for layer in ("start", "in_layer_0", "cond_layer_1", "res_skip_layer_1"):
            v, g = (np.asarray(flow["wn"][layer][part]) for part in "vg")
            np.testing.assert_allclose(g, np.sqrt((v**2).sum(axis=(0, 1))), rtol=1e-5)
            assert np.all(g > 0)
    audio, mel, _ = to("float32", inputs(PUBLISHED, 32, 2))
    z, log_det = both_ways(PUBLISHED, "float32")[0](params, audio, mel)
    np.testing.assert_allclose(log_det, np.zeros(BATCH), atol=1e-4)
    # By hand: the rotations of a new model, and the order in which its channels leave.
    x, left = np.asarray(audio, np.float64).reshape(BATCH, 4, 8), []
    for k, flow in enumerate(params["flows"]):
        if k > 0:
            left.append(x[:, :, :2])
            x = x[:, :, 2:]
        x = np.einsum("oi,bni->bno", np.asarray(flow["conv"], np.float64), x)
    np.testing.assert_allclose(z, np.concatenate([*left, x], axis=-1), atol=1e-5)


@pytest.mark.slow
def test_weights_start_anew_for_every_flow_and_seed():
    flows = [fresh(PUBLISHED, seed)["flows"] for seed in (0, 1)]
    for k in range(3):
        assert np.abs(flows[0][k]["conv"] - flows[1][k]["conv"]).max() > 0.05
    # These kernels have the same shape in every flow and layer.
    kernels = [
        np.asarray(flow["wn"][f"in_layer_{i}"]["v"])
        for of_seed in flows
        for flow in of_seed
        for i in (0, 1)
    ]
    assert all(np.abs(a - b).max() > 0.05 for i, a in enumerate(kernels) for b in kernels[:i])


def test_early_channels_are_untouched_by_later_flows():
    """Channels that leave before flow k are first in z, and only flows before k reach them."""
    config, samples, frames = MODELS["published"]
    params, (audio, mel, _) = to("float32", (lively(config), inputs(config, samples, frames)))
    ahead = both_ways(config, "float32")[0]
    z, _ = ahead(params, audio, mel)
    for k in range(3):
        flows = list(params["flows"])
        flows[k] = jax.tree.map(lambda leaf: leaf * 1.1, flows[k])
        changed, _ = ahead({**params, "flows": flows}, audio, mel)
        np.testing.assert_array_equal(changed[:, :, : 2 * k], z[:, :, : 2 * k])
        assert np.all(np.abs(changed[:, :, 2 * k :] - z[:, :, 2 * k :]).max(axis=(0, 1)) > 1e-3)


@pytest.mark.slow
def test_latent_noise_depends_on_seed_and_frame_alone():
    steps = HOP // 8
    long = np.asarray(latent_noise(3, PUBLISHED, 2000))
    assert long.shape == (2000 * steps, 8)
    assert long.dtype == np.float32
    for frames in (1, 7):
        np.testing.assert_array_equal(latent_noise(3, PUBLISHED, frames), long[: frames * steps])
    other = np.asarray(latent_noise(4, PUBLISHED, 2000))
    assert abs(np.corrcoef(long.ravel(), other.ravel())[0, 1]) < 0.02
    # Nor may a neighbouring seed give the same noise shifted by a frame.
    assert abs(np.corrcoef(long[steps:].ravel(), other[:-steps].ravel())[0, 1]) < 0.02
    assert len(np.unique(long)) > 0.99 * long.size
    values = long.ravel().astype(np.float64)
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    assert scipy.stats.kstest(values, "norm").pvalue > 1e-3
    frames = long.reshape(2000, -1)
    between = np.corrcoef(frames.T) - np.eye(frames.shape[1])
    assert np.abs(between).max() < 0.12
    assert abs(np.corrcoef(frames[1:].ravel(), frames[:-1].ravel())[0, 1]) < 0.02


def objective(config, params, audio, mel, **how):
    return loss(*forward(params, config, audio, mel, **how))


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    config, samples, frames = MODELS["whitening, one more frame"]
    rng = np.random.default_rng(7)
    with jax.enable_x64(True):
        at = to("float64", (lively(config), *inputs(config, samples, frames)[:2]))
        of = quick_jit(jax.value_and_grad(lambda at: objective(config, *at, dtype="float64")))
        slopes = of(at)[1]
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))
        params = slopes[0]
        silent = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if not np.any(leaf)
        ]
        assert silent == [], "parameters that no gradient reaches"
        parts = {
            "conv": lambda path: path[-1] == jax.tree_util.DictKey("conv"),
            "wn": lambda path: jax.tree_util.DictKey("wn") in path,
            "upsample": lambda path: jax.tree_util.DictKey("upsample") in path,
            "audio": lambda path: path[0].idx == 1,
            "mel": lambda path: path[0].idx == 2,
        }
        for name, chosen in parts.items():
            towards = jax.tree_util.tree_map_with_path(
                lambda path, leaf, chosen=chosen: rng.normal(size=leaf.shape) * chosen(path), at
            )
            norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(towards)))
            ours = sum(jax.tree.leaves(jax.tree.map(lambda s, t: np.sum(s * t), slopes, towards)))

            def moved(step, towards=towards, norm=norm):
                return float(of(jax.tree.map(lambda a, t: a + step / norm * t, at, towards))[0])

            step = 1e-3
            near, far = (moved(s) - moved(-s) for s in (step, 2 * step))
            numeric = (8 * near - far) / (12 * step)
            assert float(ours) / norm == pytest.approx(numeric, rel=1e-5), name


@pytest.mark.slow
def test_vmap_and_checkpointing_change_nothing():
    config, samples, frames = MODELS["group conditioning"]
    with jax.enable_x64(True):
        params, (audio, mel, _) = to("float64", (lively(config), inputs(config, samples, frames)))
        of = partial(objective, config, dtype="float64")
        plain = quick_jit(jax.value_and_grad(of))(params, audio, mel)
        again = quick_jit(jax.value_and_grad(partial(of, checkpoint_flows=True)))(
            params, audio, mel
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-13), plain, again)
        ahead = both_ways(config, "float64")[0]
        stacked = (jnp.stack([audio, -audio]), jnp.stack([mel, mel + 1]))
        mapped = jax.vmap(ahead, in_axes=(None, 0, 0))(params, *stacked)
        for i in range(2):
            z, log_det = ahead(params, stacked[0][i], stacked[1][i])
            np.testing.assert_allclose(mapped[0][i], z, rtol=0, atol=1e-12)
            np.testing.assert_allclose(mapped[1][i], log_det, rtol=0, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.12), ("float16", 0.008)])
def test_low_precision_inside_wn_is_near(dtype, bound):
    """The bounds are three times the measured errors, 0.041 and 0.0027."""
    config, samples, frames = MODELS["published"]
    params, (audio, mel, z) = to("float32", (lively(config), inputs(config, samples, frames)))
    for direction, x in enumerate((audio, z)):
        exact, exact_log_det = both_ways(config, "float32")[direction](params, x, mel)
        y, log_det = both_ways(config, dtype)[direction](params, x, mel)
        assert y.dtype == log_det.dtype == "float32"
        error = np.abs(y - exact).max()
        log_det_error = np.abs(log_det - exact_log_det).max()
        assert 0 < error <= bound
        assert 0 < log_det_error <= bound


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_product_of_the_networks_is_in_low_precision(dtype):
    """Errors would not prove it: rounding the upsampler alone makes errors as large."""
    config, samples, frames = MODELS["published"]
    params, (audio, mel, z) = to("float32", (lively(config), inputs(config, samples, frames)))
    for direction, x in enumerate((audio, z)):
        program = both_ways(config, dtype)[direction].lower(params, x, mel).as_text()
        products = [line.split(": (")[1] for line in program.splitlines() if "dot_general" in line]
        short = {"bfloat16": "xbf16>", "float16": "xf16>"}[dtype]
        # Products of weights, once per call, are not counted.
        products = [line for line in products if f"-> tensor<{BATCH}x" in line]
        rounded = [operands.split(" ->")[0].count(short) for operands in products]
        flows = config.waveglow.n_flows
        # The flow's own 1x1 convolutions, and nothing else, stay in float32.
        assert rounded.count(0) == flows
        assert rounded.count(2) == len(products) - flows
        assert rounded.count(2) >= 3 * flows * config.waveglow.WN.n_layers


@pytest.mark.parametrize(
    ("audio", "mel", "says"),
    [
        ((1, 30), (1, 2, 5), ["30", "8"]),
        ((1, 24), (1, 2, 5), ["24", "16"]),
        ((1, 32), (1, 2, 4), ["4", "5"]),
        ((2, 32), (1, 2, 5), ["2", "1"]),
        ((1, 32), (1, 1, 5), ["1 mel", "32", "2 are needed"]),
        ((1, 32), (1, 4, 5), ["4 mel", "32", "2 are needed"]),
        ((32,), (1, 2, 5), ["(32,)", "(1, 2, 5)"]),
        ((1, 32), (2, 5), ["(1, 32)", "(2, 5)"]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(audio, mel, says):
    params = jax.eval_shape(lambda: init(jax.random.key(0), VOICE))
    with pytest.raises(ValueError, match=r".") as refusal:
        jax.eval_shape(
            lambda params: forward(params, VOICE, jnp.zeros(audio), jnp.zeros(mel)), params
        )
    for part in says:
        assert part in str(refusal.value)


@pytest.mark.parametrize("name", ["nvidia256", "voice", "tiny"])
def test_parameter_shapes_are_those_of_init(name):
    config = load_config(Path(__file__).parent.parent / "configs" / f"{name}.json")
    ours, theirs = parameter_shapes(config), jax.eval_shape(lambda: init(jax.random.key(0), config))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
