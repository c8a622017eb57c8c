"""WN and the upsampler, compared with loops over time and channels in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from compiling import quick_jit

from waveglow_jax.config import config_from_dict
from waveglow_jax.flow.upsampler import (
    Upsampler,
    conditioning_channels,
    squeeze_conditioning,
    upsampler_network,
)
from waveglow_jax.flow.weight_norm import split_weight_norm, weight_norm
from waveglow_jax.flow.wn import WN
from waveglow_jax.flow.wn_kernels import (
    _low_precision_outputs,
    _outputs,
    _weights,
    kernels_for,
    matmul,
    wn_on,
)


def lively(shapes, seed):
    """Random parameters instead of initial ones, whose zero layers and biases would hide faults."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), shapes)


def shapes_of(network, *inputs):
    of_rng = jax.eval_shape(lambda: network.init(jax.random.key(0), *map(jnp.zeros, inputs)))
    return of_rng["params"]


def brute_convolution(x, kernel, bias, dilation=1):
    """`[N, C_in] -> [N, C_out]`, zeros beyond the ends."""
    n_steps, taps = len(x), len(kernel)
    out = np.zeros((n_steps, len(bias)))
    for n in range(n_steps):
        for o in range(len(bias)):
            out[n, o] = bias[o]
            for k in range(taps):
                at = n + (k - taps // 2) * dilation
                if 0 <= at < n_steps:
                    for c in range(x.shape[1]):
                        out[n, o] += x[at, c] * kernel[k, c, o]
    return out


def brute_wn(params, x, conditioning, n_layers, channels, skips):
    def layer(name, x, dilation=1):
        return brute_convolution(x, params[name]["kernel"], params[name]["bias"], dilation)

    h = layer("start", x)
    skip_sum = np.zeros((len(x), skips))
    for i in range(n_layers):
        gates = layer(f"in_layer_{i}", h, 2**i) + layer(f"cond_layer_{i}", conditioning)
        out = np.zeros((len(x), channels))
        for c in range(channels):
            sigmoid = 1 / (1 + np.exp(-gates[:, channels + c]))
            out[:, c] = np.tanh(gates[:, c]) * sigmoid
        both = layer(f"res_skip_layer_{i}", out)
        if i < n_layers - 1:
            h = h + both[:, :channels]
            skip_sum += both[:, channels:]
        else:
            skip_sum += both
    return layer("end", skip_sum)


N_OUT, N_IN, N_COND = 4, 2, 3
# layers, channels, skip channels, kernel size
WNS = [(3, 4, 4, 3), (3, 3, 5, 3), (2, 4, 2, 5), (1, 2, 3, 1)]


def network_and_params(layers, channels, skips, kernel_size):
    network = WN(N_OUT, layers, channels, skips, kernel_size, jnp.float64)
    shapes = shapes_of(network, (1, 1, N_IN), (1, 1, N_COND))
    return network, lively(shapes, layers * channels)


@pytest.mark.parametrize("sizes", WNS, ids=str)
def test_wn_is_the_loops(sizes):
    layers, channels, skips, _ = sizes
    rng = np.random.default_rng(1)
    # Signals shorter and longer than the span of the last dilation.
    for n_steps in (3, 11):
        x, conditioning = rng.normal(size=(2, n_steps, N_IN)), rng.normal(size=(2, n_steps, N_COND))
        with jax.enable_x64(True):
            network, params = network_and_params(*sizes)
            ours = quick_jit(network.apply)({"params": params}, x, conditioning)
            assert ours.dtype == "float64"
        for i in range(2):
            theirs = brute_wn(params, x[i], conditioning[i], layers, channels, skips)
            np.testing.assert_allclose(ours[i], theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("sizes", WNS[1:3], ids=str)
def test_a_masked_wn_is_the_unpadded_one(sizes):
    layers, channels, skips, _ = sizes
    rng = np.random.default_rng(2)
    lengths, n_steps = (4, 9, 6), 9
    # The values after the end are loud noise.
    x = 10 * rng.normal(size=(3, n_steps, N_IN))
    conditioning = 10 * rng.normal(size=(3, n_steps, N_COND))
    mask = np.arange(n_steps) < np.array(lengths)[:, None]
    with jax.enable_x64(True):
        network, params = network_and_params(*sizes)
        ours = quick_jit(network.apply)({"params": params}, x, conditioning, mask)
        bare = np.asarray(quick_jit(network.apply)({"params": params}, x, conditioning))
    for i, n in enumerate(lengths):
        theirs = brute_wn(params, x[i, :n], conditioning[i, :n], layers, channels, skips)
        np.testing.assert_allclose(ours[i, :n], theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())
        leaked = np.abs(bare[i, :n] - theirs).max()
        assert (leaked > 1e-3) == (n < n_steps), "without a mask the padding must be heard"


@pytest.mark.slow
@pytest.mark.parametrize("sizes", WNS, ids=str)
def test_the_accelerators_form_is_the_loops(sizes):
    """On this CPU it gives the results of the loops, masked or not, and the other form's
    gradients."""
    layers, channels, skips, _ = sizes
    rng = np.random.default_rng(14)
    lengths, n_steps = (11, 7), 11
    x, conditioning = rng.normal(size=(2, n_steps, N_IN)), rng.normal(size=(2, n_steps, N_COND))
    mask = np.arange(n_steps) < np.array(lengths)[:, None]
    cotangent = rng.normal(size=(2, n_steps, N_OUT)) * mask[:, :, None]
    with jax.enable_x64(True):
        _, params = network_and_params(*sizes)

        def both_ways(form):
            def total(*inputs):
                out = form(*inputs, mask, jnp.float64)
                return jnp.sum(out * cotangent), out

            gradient = jax.grad(total, (0, 1, 2), has_aux=True)
            return quick_jit(gradient)(params, x, conditioning)

        ours, out = both_ways(partial(wn_on, backend="tpu"))
        theirs, _ = both_ways(partial(wn_on, backend="cpu"))
        bare = quick_jit(partial(wn_on, mask=None, dtype="float64", backend="tpu"))(
            params, x, conditioning
        )
    for i, n in enumerate(lengths):
        brute = brute_wn(params, x[i, :n], conditioning[i, :n], layers, channels, skips)
        np.testing.assert_allclose(out[i, :n], brute, rtol=0, atol=1e-12 * np.abs(brute).max())
        if n == n_steps:
            np.testing.assert_allclose(bare[i], brute, rtol=0, atol=1e-12 * np.abs(brute).max())
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(np.abs(b).max(), 1))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize(
    ("layers", "batch", "phases", "masked"),
    # Few and many clips take different branches; with one layer there is no residual connection.
    [(2, 9, 1, True), (3, 2, 1, True), (2, 2, 4, False), (1, 2, 1, False)],
)
def test_the_gradient_by_hand_is_autodiffs(layers, batch, phases, masked, backend):
    """They are compared in float64, where rounding is negligible."""
    rng = np.random.default_rng(16)
    n_steps = 12
    x = rng.normal(size=(batch, n_steps, N_IN + 1))
    conditioning = rng.normal(size=(batch, n_steps // phases, N_COND))
    mask = np.arange(n_steps) < rng.integers(4, n_steps, size=(batch, 1)) if masked else None
    cotangent = rng.normal(size=(batch, n_steps, N_OUT))
    with jax.enable_x64(True):
        network = WN(N_OUT, layers, 4, 5, 3, jnp.float64)
        shapes = shapes_of(network, (1, phases, N_IN), (1, 1, N_COND))
        how = kernels_for(backend, "float64", "float64")
        weights = _weights(lively(shapes, 17), how)

        def of(form):
            def total(weights, x, conditioning):
                out = form(weights, x, conditioning, mask, how)
                return jnp.sum(out * cotangent)

            return quick_jit(jax.grad(total, (0, 1, 2)))(weights, x, conditioning)

        ours, theirs = of(_low_precision_outputs), of(_outputs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(np.abs(b).max(), 1))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize(("of_parameters", "batch"), [("float32", 9), ("bfloat16", 2)])
def test_gradients_in_bfloat16_are_near(of_parameters, batch, backend):
    """Gradients by hand, and by autodiff where the parameters themselves are bfloat16."""
    rng = np.random.default_rng(18)
    x, conditioning = rng.normal(size=(batch, 40, N_IN)), rng.normal(size=(batch, 40, N_COND))
    cotangent = rng.normal(size=(batch, 40, N_OUT))
    network = WN(N_OUT, 3, 16, 12, 3)
    params = lively(shapes_of(network, (1, 1, N_IN), (1, 1, N_COND)), 19)

    def gradients(kind, dtype):
        inputs = jax.tree.map(lambda leaf: jnp.asarray(0.5 * leaf, kind), (params, x, conditioning))

        def total(params, x, conditioning):
            return jnp.sum(
                wn_on(params, x, conditioning, None, dtype, backend) * jnp.asarray(cotangent, kind)
            )

        return quick_jit(jax.grad(total, (0, 1, 2)))(*inputs)

    exact, rounded = gradients("float32", "float32"), gradients(of_parameters, "bfloat16")
    errors = []
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert a.dtype == of_parameters
        errors.append(np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b))
    # The error comes from hundreds of roundings to 8 bits, most of them independent.
    assert 1e-4 < max(errors) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_accelerators_form_rounds_no_more_than_its_dtype(dtype):
    sizes = (3, 16, 12, 3)
    rng = np.random.default_rng(15)
    x, conditioning = rng.normal(size=(1, 60, N_IN)), rng.normal(size=(1, 60, N_COND))
    with jax.enable_x64(True):
        _, params = network_and_params(*sizes)
        params = jax.tree.map(lambda leaf: 0.5 * leaf, params)
        form = partial(wn_on, mask=None, dtype=jnp.float64, backend="tpu")
        exact = np.asarray(quick_jit(form)(params, x, conditioning))
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, x, conditioning))
    for backend in ("tpu", "cpu", "gpu"):
        form = partial(wn_on, mask=None, dtype=jnp.dtype(dtype), backend=backend)
        out = quick_jit(form)(*narrow)
        assert out.dtype == np.float32
        error = np.sqrt(np.mean((np.asarray(out, np.float64) - exact) ** 2) / np.mean(exact**2))
        assert error < (1e-6 if dtype == "float32" else 1e-2)
        assert dtype == "float32" or error > 1e-5, "nothing was rounded"


def test_a_new_wn_is_zero():
    network = WN(N_OUT, 1, 4, 4, 3)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 5, N_IN)).astype(np.float32)
    conditioning = rng.normal(size=(1, 5, N_COND)).astype(np.float32)
    out, params = quick_jit(network.init_with_output)(jax.random.key(0), x, conditioning)
    assert out.shape == (1, 5, N_OUT)
    assert not np.any(out)
    kernel = np.asarray(params["params"]["in_layer_0"]["kernel"])
    assert kernel.shape == (3, 4, 8)
    # As the original's convolutions: uniform within 1 / sqrt(fan_in).
    assert 0.8 / np.sqrt(12) < np.abs(kernel).max() <= 1 / np.sqrt(12)


def brute_transposed_convolution(mel, kernel, bias, stride):
    """`[F, M] -> [F * stride, M]`: every frame adds its kernel where it starts; the tail is cut."""
    taps = len(kernel)
    out = np.tile(bias, (len(mel) * stride + taps, 1))
    for f in range(len(mel)):
        for k in range(taps):
            for m in range(len(bias)):
                for c in range(mel.shape[1]):
                    out[f * stride + k, m] += mel[f, c] * kernel[k, c, m]
    return out[: len(mel) * stride]


@pytest.mark.slow
@pytest.mark.parametrize(("taps", "stride"), [(16, 4), (10, 4), (4, 4), (7, 3), (5, 1), (9, 8)])
def test_the_upsampler_is_the_loops(taps, stride):
    mel = np.random.default_rng(4).normal(size=(2, 4, 3))
    with jax.enable_x64(True):
        network = Upsampler(taps, stride, jnp.float64)
        params = lively(shapes_of(network, (1, 1, 3)), 5)
        ours = network.apply({"params": params}, jnp.asarray(mel))
    assert ours.shape == (2, 4 * stride, 3)
    for i in range(2):
        theirs = brute_transposed_convolution(mel[i], params["kernel"], params["bias"], stride)
        np.testing.assert_allclose(ours[i], theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("conditioning", ["sample", "group"])
@pytest.mark.parametrize("upsample_kernel", [64, 40])
def test_conditioning_at_either_rate(conditioning, upsample_kernel):
    group, hop, bins, frames = 4, 16, 3, 3
    config = config_from_dict(
        {
            "waveglow_config": {
                "n_mel_channels": bins,
                "n_group": group,
                "n_early_size": 0,
                "upsample_kernel": upsample_kernel,
                "conditioning": conditioning,
            },
            "data_config": {"hop_length": hop, "segment_length": 64},
        }
    )
    # Signals need not fill the last frame.
    n_steps = frames * hop // group - 2
    mel = np.random.default_rng(6).normal(size=(2, frames, bins))
    with jax.enable_x64(True):
        network = upsampler_network(config, jnp.float64)
        params = lively(shapes_of(network, (1, 1, bins)), 7)
        upsampled = network.apply({"params": params}, jnp.asarray(mel))
        ours = np.asarray(squeeze_conditioning(upsampled, config, n_steps))
    per = group if conditioning == "group" else 1
    assert params["kernel"].shape == (upsample_kernel // per, bins, bins)
    width = bins if conditioning == "group" else bins * group
    assert conditioning_channels(config) == width
    assert ours.shape == (2, n_steps, width)
    for i in range(2):
        slow = brute_transposed_convolution(mel[i], params["kernel"], params["bias"], hop // per)
        for n in range(n_steps):
            for m in range(bins):
                if conditioning == "group":
                    assert ours[i, n, m] == pytest.approx(slow[n, m], abs=1e-12)
                    continue
                for position in range(group):
                    theirs = slow[n * group + position, m]
                    assert ours[i, n, m * group + position] == pytest.approx(theirs, abs=1e-12)


def test_weight_norm_is_its_formula():
    rng = np.random.default_rng(8)
    v, g, bias = rng.normal(size=(3, 4, 5)), rng.normal(size=5), rng.normal(size=5)
    plain = {"kernel": rng.normal(size=(1, 2, 2)), "bias": np.zeros(2)}
    with jax.enable_x64(True):
        tree = weight_norm({"a": {"v": v, "g": g, "bias": bias}, "end": plain})
    kernel = np.zeros_like(v)
    for o in range(5):
        norm = np.sqrt(sum(v[k, c, o] ** 2 for k in range(3) for c in range(4)))
        kernel[:, :, o] = g[o] * v[:, :, o] / norm
    np.testing.assert_allclose(tree["a"]["kernel"], kernel, rtol=1e-14)
    assert set(tree["a"]) == {"kernel", "bias"}
    assert tree["a"]["bias"] is bias
    np.testing.assert_array_equal(tree["end"]["kernel"], plain["kernel"])


def test_weight_norm_hears_only_the_direction_of_v():
    rng = np.random.default_rng(9)
    v, g, bias = rng.normal(size=(3, 4, 5)), rng.normal(size=5), np.zeros(5)
    cotangent = rng.normal(size=(3, 4, 5))

    with jax.enable_x64(True):

        def kernel_of(v, g):
            return weight_norm({"v": v, "g": g, "bias": bias})["kernel"]

        scaled = kernel_of(v * np.array([0.1, 1.0, 3.0, 20.0, 500.0]), g)
        np.testing.assert_allclose(scaled, kernel_of(v, g), rtol=1e-13)
        gradient = quick_jit(jax.grad(lambda v, g: jnp.sum(kernel_of(v, g) * cotangent), (0, 1)))
        by_v, by_g = map(np.asarray, gradient(v, g))
    norm = np.sqrt((v**2).sum(axis=(0, 1)))
    direction = v / norm
    along = (cotangent * direction).sum(axis=(0, 1))
    # Salimans & Kingma, eq. 3: the gradient of g is the part along v, that of v the rest times g /
    # |v|.
    np.testing.assert_allclose(by_g, along, rtol=1e-12)
    np.testing.assert_allclose(
        by_v, g / norm * (cotangent - along * direction), rtol=1e-11, atol=1e-13
    )
    np.testing.assert_allclose((by_v * v).sum(axis=(0, 1)), np.zeros(5), atol=1e-12)


def test_split_weight_norm_starts_at_the_same_kernels():
    rng = np.random.default_rng(10)
    layers = {
        name: {"kernel": rng.normal(size=shape), "bias": rng.normal(size=shape[-1])}
        for name, shape in {"start": (1, 2, 4), "in_layer_0": (3, 4, 8)}.items()
    }
    with jax.enable_x64(True):
        split = split_weight_norm(layers)
        again = weight_norm(split)
    for name, layer in layers.items():
        assert set(split[name]) == {"v", "g", "bias"}
        np.testing.assert_array_equal(split[name]["v"], layer["kernel"])
        norms = np.sqrt((layer["kernel"] ** 2).sum(axis=(0, 1)))
        np.testing.assert_allclose(split[name]["g"], norms, rtol=1e-14)
        np.testing.assert_allclose(again[name]["kernel"], layer["kernel"], rtol=1e-14)
        np.testing.assert_array_equal(again[name]["bias"], layer["bias"])


ROUNDINGS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.mark.parametrize("dtype", ROUNDINGS)
def test_low_precision_products_sum_in_float32(dtype):
    rng = np.random.default_rng(11)
    # Long sums, which would be wrong by percents if accumulated in bfloat16.
    x = rng.normal(size=(2, 40, 700)).astype(np.float32)
    w = rng.normal(size=(700, 24)).astype(np.float32)
    g = rng.normal(size=(2, 40, 24)).astype(np.float32)

    @quick_jit
    def both_ways(x, w, g):
        y, back = jax.vjp(lambda x, w: matmul(x, w, jnp.dtype(dtype)), x, w)
        return matmul(x, w, jnp.dtype(dtype)), y, *back(g)

    y, y_with_gradient, dx, dw = both_ways(x, w, g)
    x64, w64, g64 = (a.astype(ROUNDINGS[dtype]).astype(np.float64) for a in (x, w, g))

    def held_against(ours, left, right):
        """Asserts that the error is within that of a float32 sum of the products in the worst
        order."""
        assert ours.dtype == np.float32
        bound = left.shape[-1] * np.finfo(np.float32).eps * (np.abs(left) @ np.abs(right))
        assert np.all(np.abs(np.asarray(ours, np.float64) - left @ right) <= bound / 4)

    held_against(y, x64, w64)
    held_against(y_with_gradient, x64, w64)
    held_against(dx, g64, w64.T)
    held_against(dw, x64.reshape(-1, 700).T, g64.reshape(-1, 24))
    rounding = np.abs(np.asarray(y, np.float64) - x.astype(np.float64) @ w).max()
    assert rounding > 1e-3, "the operands were not rounded at all"


@pytest.mark.slow
def test_full_precision_products():
    rng = np.random.default_rng(12)
    x, w = rng.normal(size=(2, 5, 60)), rng.normal(size=(60, 4))
    x32, w32 = x.astype(np.float32), w.astype(np.float32)
    exact = x32.astype(np.float64) @ w32
    for wanted in ("float32", "float64"):
        ours = matmul(jnp.asarray(x32), jnp.asarray(w32), wanted)
        assert ours.dtype == "float32"
        assert np.abs(ours - exact).max() <= 1e-5
    with jax.enable_x64(True):
        ours = matmul(jnp.asarray(x), jnp.asarray(w), "float64")
        assert ours.dtype == "float64"
        np.testing.assert_allclose(ours, x @ w, rtol=0, atol=1e-13)


def test_gradients_keep_the_dtype_of_what_they_are_of():
    """A float64 flow has float32 matmuls here; other pairs of dtypes behave alike."""
    rng = np.random.default_rng(13)
    with jax.enable_x64(True):
        x, w = jnp.asarray(rng.normal(size=(2, 5, 6))), jnp.asarray(rng.normal(size=(6, 4)))
        y, back = jax.vjp(lambda x, w: matmul(x, w, "float32"), x, w)
        plain = matmul(x, w, "float32")
        # Taking the gradient must not change the dtype of the value.
        assert plain.dtype == y.dtype == "float64"
        dx, dw = back(jnp.ones((2, 5, 4)))
        assert dx.dtype == dw.dtype == "float64"
        np.testing.assert_allclose(y, plain, rtol=0, atol=1e-12)
