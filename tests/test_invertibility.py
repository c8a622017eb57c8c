"""The laboratory's figures against brute force in float64, autodiff, and planted faults."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import soundfile
from test_bijections import covariance_of_block
from test_vocoder import some_audio
from test_waveglow import BINS, lively, small
from test_wavenet import brute_transposed_convolution, brute_wn

import waveglow_jax as wg
from waveglow_jax.analysis.differences import error_of
from waveglow_jax.analysis.invertibility import analyse, blame
from waveglow_jax.analysis.invertibility_report import as_json, dominant, markdown, write_reports
from waveglow_jax.analysis.layers import run_forward, run_inverse
from waveglow_jax.analysis.lipschitz import spectral_norm
from waveglow_jax.analysis.precisions import (
    BFLOAT16,
    BY_NAME,
    FLOAT32,
    FLOAT64,
    TF32,
    Precision,
    emulated,
    rounded,
)
from waveglow_jax.analysis.signals import (
    Signal,
    excerpt,
    layers_at,
    random_params,
    signal_of,
    state_of,
    with_condition,
)
from waveglow_jax.cli import main
from waveglow_jax.flow.weight_norm import weight_norm

HOP, SAMPLES = 16, 32
CONFIG = small(n_flows=2, conditioning="group", mel_whitening={"block": 16, "floor": 0.02})
CHOSEN = [FLOAT64, FLOAT32, BY_NAME["bfloat16 in WN"]]


def params_of(config, seed=0):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), lively(config, seed))


def signal(seed=0, samples=SAMPLES, name="a"):
    rng = np.random.default_rng(seed)
    mel = np.float32(rng.normal(size=(samples // HOP + 1, BINS)))
    return Signal(name, np.float32(rng.normal(size=samples)), mel, np.zeros(0, np.float32))


@pytest.fixture(scope="module")
def report():
    with jax.enable_x64(True):
        pair = [signal(), signal(1, name="b")]
        return analyse(params_of(CONFIG), CONFIG, pair, "small", SAMPLES, CHOSEN)


# ------------------------------------------------------------------------------ layers


@pytest.mark.slow
def test_the_layers_are_the_flow():
    config = small(n_flows=2, mel_whitening={"block": 16, "floor": 0.02, "order": 12})
    params, one = params_of(config), signal()
    one = replace(one, past=np.float32(np.random.default_rng(3).normal(size=12)))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), params)
        z, log_det = wg.forward(
            wide,
            config,
            jnp.asarray(one.audio, "float64")[None],
            jnp.asarray(one.mel, "float64")[None],
            past=jnp.asarray(one.past, "float64")[None],
            dtype="float64",
        )
        for precision, tolerance in ((FLOAT64, 1e-11), (FLOAT32, 1e-3)):
            layers = layers_at(params, config, one, precision)
            states, log_dets = run_forward(layers, state_of(one.audio, config, precision))
            back, back_log_dets = run_inverse(layers, states[-1])
            for each in (*states, *log_dets, *back, *back_log_dets):
                assert each.dtype == precision.stream
            np.testing.assert_allclose(states[-1], z, atol=tolerance)
            assert float(sum(log_dets)[0]) == pytest.approx(float(log_det[0]), abs=30 * tolerance)
            assert float(sum(back_log_dets)[0]) == pytest.approx(
                -float(log_det[0]), abs=30 * tolerance
            )
            np.testing.assert_allclose(back[0].ravel(), one.audio, atol=tolerance)
    assert [layer.name for layer in layers] == [
        "whitening",
        "flow 0 1x1 convolution",
        "flow 0 coupling",
        "flow 1 1x1 convolution",
        "flow 1 coupling",
    ]


def brute_layers(params, config, mel):
    """Every layer as loops in NumPy, float64, of the state `[N, G]`."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    glow, mel = config.waveglow, np.asarray(mel, np.float64)
    up = params["upsample"]
    conditioning = brute_transposed_convolution(
        mel, up["kernel"], up["bias"], config.data.hop_length // glow.n_group
    )[: SAMPLES // glow.n_group]

    def whitened(state):
        blocks = state.reshape(-1, glow.mel_whitening.block)
        factors = [np.linalg.cholesky(covariance_of_block(mel, config, k)) for k in range(2)]
        solved = [np.linalg.solve(each, x) for each, x in zip(factors, blocks, strict=True)]
        return np.reshape(solved, state.shape)

    def convolved(k, state):
        weight, out = params["flows"][k]["conv"], state.copy()
        first = glow.n_group - len(weight)
        for n in range(len(state)):
            out[n, first:] = [sum(row * state[n, first:]) for row in weight]
        return out

    def coupled(k, state):
        wn = jax.tree.map(np.asarray, weight_norm(params["flows"][k]["wn"]))
        half = glow.channels(k) // 2
        out, wide = state.copy(), state[:, -2 * half :]
        sizes = (glow.WN.n_layers, glow.WN.n_channels, glow.WN.skip_channels)
        shift_and_log_s = brute_wn(wn, wide[:, :half], conditioning, *sizes)
        shift, log_s = shift_and_log_s[:, :half], shift_and_log_s[:, half:]
        out[:, -half:] = np.exp(log_s) * wide[:, half:] + shift
        return out

    yield whitened
    for k in range(glow.n_flows):
        yield lambda state, k=k: convolved(k, state)
        yield lambda state, k=k: coupled(k, state)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["float32", "bfloat16 in WN"])
def test_every_layers_error_is_that_of_brute_force_in_float64(report, which):
    params, one, found = params_of(CONFIG), signal(), report.blamed[which]
    precision = BY_NAME[found.precision]
    with jax.enable_x64(True):
        layers = layers_at(params, CONFIG, one, precision)
        states, _ = run_forward(layers, state_of(one.audio, CONFIG, precision))
        backs = [layer.inverse(y)[0] for layer, y in zip(layers, states[1:], strict=True)]
        exact = list(brute_layers(params, CONFIG, one.mel))
        for k, each in enumerate(found.layers):
            here, beyond = (np.asarray(state[0], np.float64) for state in states[k : k + 2])
            truth = exact[k](here)
            off = np.sqrt(np.mean((beyond - truth) ** 2) / np.mean(truth**2))
            assert 1e-9 < each.forward == pytest.approx(off, rel=1e-4), each.layer
            alone = np.asarray(backs[k][0], np.float64) - here
            off = np.sqrt(np.mean(alone**2) / np.mean(here**2))
            assert each.there_and_back == pytest.approx(off, rel=1e-6), each.layer


@pytest.mark.slow
def test_the_layers_parts_add_up_to_the_error(report):
    for each in report.blamed:
        assert each.unexplained < 0.02
        assert sum(layer.share for layer in each.layers) == pytest.approx(1)
        trip = next(t for t in report.round_trips if t.precision == each.precision)
        assert each.rms == pytest.approx(trip.audio.rms)


@pytest.mark.slow
def test_a_planted_fault_is_found():
    with jax.enable_x64(True):
        worse = with_condition(params_of(CONFIG), 1, 1e5)
        exact = layers_at(worse, CONFIG, signal(), FLOAT64)
        found = blame(worse, CONFIG, signal(), FLOAT32, exact)
    assert dominant(found) == "flow 1 1x1 convolution"
    assert max(found.layers, key=lambda each: each.share).share > 0.9


@pytest.mark.slow
def test_with_condition_bends_one_weight_only():
    params = params_of(CONFIG)
    worse = with_condition(params, 1, 1e6)
    before, after = (each["flows"][1]["conv"] for each in (params, worse))
    assert np.linalg.cond(after) == pytest.approx(1e6, rel=1e-6)
    assert np.linalg.slogdet(after)[1] == pytest.approx(np.linalg.slogdet(before)[1], abs=1e-5)
    assert worse["flows"][0] is params["flows"][0]


# ------------------------------------------------------------------------------ geometry


@pytest.mark.slow
def test_lipschitz_constants_are_those_of_the_jacobian(report):
    with jax.enable_x64(True):
        layers = layers_at(params_of(CONFIG), CONFIG, signal(), FLOAT64)
        states, _ = run_forward(layers, state_of(signal().audio, CONFIG, FLOAT64))
        z = states[-1]

        def sound(z):
            return run_inverse(layers, z)[0][0]

        jacobian = np.asarray(jax.jacfwd(sound)(z)).reshape(z.size, z.size)
        found = spectral_norm(sound, z, iterations=100)
    largest = np.linalg.norm(jacobian, 2)
    assert found == pytest.approx(largest, rel=1e-3)
    # The report's few iterations approach the constant from below, and come near.
    assert 0.9 * largest <= report.whole_inverse <= largest * (1 + 1e-4)
    for shape in report.shapes:
        assert shape.condition >= 1
        if shape.kind == "1x1 convolution":
            weight = params_of(CONFIG)["flows"][int(shape.layer.split()[1])]["conv"]
            assert shape.condition == pytest.approx(np.linalg.cond(weight), rel=1e-4)
            assert shape.log_abs_det == pytest.approx(np.linalg.slogdet(weight)[1], abs=1e-5)


@pytest.mark.slow
def test_errors_keep_below_their_bounds(report):
    for depth in report.depths:
        for way in ("forward", "back"):
            errors, bounds = getattr(depth, way), getattr(depth, f"{way}_bound")
            assert len(errors) == 1 + len(report.shapes)
            # In bfloat16 the conditioner is no smooth function, so the bound does not hold.
            if depth.precision != "bfloat16 in WN":
                assert all(e <= 1.1 * b + 1e-12 for e, b in zip(errors, bounds, strict=True))
    by_name = {depth.precision: depth for depth in report.depths}
    assert by_name["float64"].back[0] < 1e-12 < by_name["float32"].back[0] < 1e-4
    assert by_name["float32"].forward[-1] < by_name["bfloat16 in WN"].forward[-1]


@pytest.mark.slow
def test_the_jacobians_log_det(report):
    assert report.jacobian.log_det == pytest.approx(report.jacobian.autodiff, abs=1e-9)
    assert abs(report.jacobian.log_det) > 1
    assert report.log_dets["float64"]["all"] < 1e-13
    assert 0 < report.log_dets["float32"]["all"] < 1e-4


# ------------------------------------------------------------------------------ precisions


def in_format(x, dtype):
    return np.asarray(x, np.float32).astype(dtype).astype(np.float64)


def test_products_are_emulated_operand_by_operand():
    rng = np.random.default_rng(4)
    a, b = (np.float32(rng.normal(size=(7, 7))) for _ in range(2))
    of = Precision("", "", operands=BFLOAT16)

    @jax.jit
    def product(a, b):
        return jax.lax.platform_dependent(
            a, b, cpu=lambda a, b: jnp.tanh(jax.jit(jnp.matmul)(a, b)), default=jnp.add
        )

    exact = np.tanh(np.float64(a) @ np.float64(b))
    rounding = np.tanh(in_format(a, ml_dtypes.bfloat16) @ in_format(b, ml_dtypes.bfloat16))
    found = emulated(product, of)(a, b)
    assert np.abs(found - rounding).max() < 1e-6 < 1e-3 < np.abs(rounding - exact).max()
    split = emulated(product, replace(of, split=True))(a, b)
    assert 1e-8 < np.abs(split - exact).max() < 3e-5
    assert emulated(product, FLOAT32) is product


@pytest.mark.parametrize(
    ("bits", "mask"), [(BFLOAT16, 0xFFFF), (TF32, 0x1FFF)], ids=["bfloat16", "TF32"]
)
def test_formats_keep_so_many_bits(bits, mask):
    x = np.float32(np.random.default_rng(5).normal(size=1000))
    found = np.asarray(rounded(jnp.asarray(x), bits))
    assert not np.any(found.view(np.uint32) & mask)
    assert np.abs(found / x - 1).max() <= 2.0 ** -(bits[1] + 1)
    assert np.abs(found / x - 1).max() > 2.0 ** -(bits[1] + 1) * 0.9


def test_every_value_is_emulated():
    x = jnp.asarray(np.random.default_rng(6).normal(size=100), "float32")
    found = emulated(lambda x: (jnp.exp(x) + x, x > 0), BY_NAME["bfloat16"])(x)
    low = in_format(x, ml_dtypes.bfloat16)
    step = in_format(in_format(np.exp(low), ml_dtypes.bfloat16) + low, ml_dtypes.bfloat16)
    assert np.mean(found[0] == step) > 0.95  # exp may round to the neighbour
    np.testing.assert_array_equal(found[1], low > 0)


# ------------------------------------------------------------------------------ errors, signals


def test_error_of():
    given = np.array([3.0, -4.0, 0.0, 0.0])
    found = error_of(given + np.array([0.1, 0, 0, 0]), given, 24)
    assert found.max == pytest.approx(0.1)
    assert found.rms == pytest.approx(0.05)
    assert found.snr_db == pytest.approx(20 * math.log10(50))
    assert found.bits_lost == pytest.approx(24 - math.log2(50))
    assert error_of(given, given, 24) == error_of(given, given, 8)
    assert error_of(given, given, 24).snr_db is None
    assert error_of(given * np.nan, given, 24).max is None
    assert error_of(given, 0 * given, 24).snr_db is None


def test_the_loudest_piece_and_its_past():
    config = small(mel_whitening={"block": 16, "order": 12})
    audio = np.float32(np.random.default_rng(7).normal(size=10 * HOP))
    audio[5 * HOP : 7 * HOP] *= 10
    mel = np.arange(11, dtype=np.float32)[:, None] * np.ones((1, BINS), np.float32)
    one = signal_of("a", audio, mel, config, 2 * HOP)
    np.testing.assert_array_equal(one.audio, audio[5 * HOP : 7 * HOP])
    np.testing.assert_array_equal(one.mel[:, 0], [5, 6, 7])
    np.testing.assert_array_equal(one.past, audio[5 * HOP - 12 : 5 * HOP])
    again = excerpt(one, config, HOP)
    at = 0 if np.sum(one.audio[:HOP] ** 2) > np.sum(one.audio[HOP:] ** 2) else HOP
    np.testing.assert_array_equal(again.audio, one.audio[at : at + HOP])
    before = np.concatenate([one.past, one.audio])[at : at + 12]
    np.testing.assert_array_equal(again.past, before)


@pytest.mark.slow
def test_random_weights_are_alive_and_seeded():
    first, other = (random_params(CONFIG, seed) for seed in (0, 1))
    for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True):
        assert a.dtype == np.float32
        assert np.any(a != b)
    same = random_params(CONFIG)
    jax.tree.map(np.testing.assert_array_equal, first, same)
    one = signal()
    with jax.enable_x64(True):
        layers = layers_at(first, CONFIG, one, FLOAT64)
        states, _ = run_forward(layers, state_of(one.audio, CONFIG, FLOAT64))
        for layer, x, y in zip(layers, states, states[1:], strict=False):
            assert np.abs(y - x).max() > 1e-3, layer.name


def test_without_x64_nothing_is_measured():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        analyse(params_of(CONFIG), CONFIG, [signal()])


# ------------------------------------------------------------------------------ report, command


@pytest.mark.slow
def test_the_report_reads_back(report, tmp_path):
    text = markdown(report)
    for part in (f"**{dominant(report.blamed[0])}**", "float64", "| silence |", "the whole flow"):
        assert part in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") > 4 for line in rows)
    wild = replace(report, whole_inverse=math.inf)
    assert json.loads(json.dumps(as_json(wild), allow_nan=False))["whole_inverse"] is None
    paths = write_reports(report, tmp_path / "out")
    assert [path.name for path in paths] == ["report.md", "report.json", "depth.png"]
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(paths[1].read_text())["round_trips"]) == 2 * len(CHOSEN)


@pytest.fixture
def run(capsys):
    """A command -> (exit code, stdout, stderr); float64 is off again afterwards."""

    def run(*arguments):
        code = main([str(argument) for argument in ("invertibility", *arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def recording(path, samples=8192):
    soundfile.write(path, some_audio(samples), 22050)
    return path


@pytest.mark.slow
def test_the_command(run, tmp_path):
    config = tmp_path / "config.json"
    sizes = {"n_flows": 1, "n_group": 8, "WN_config": {"n_layers": 1, "n_channels": 4}}
    config.write_text(json.dumps({"waveglow_config": sizes}))
    options = ("--random", config, "--seconds", "0.1", "--close-samples", "256", "--json")
    precisions = ("--precision", "float64", "--precision", "float32")
    code, out, err = run(recording(tmp_path / "a.wav"), *options, *precisions, "-o", tmp_path / "o")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["signals"] == ["a", "white noise"]
    assert found["model"] == "config, random weights (seed 0)"
    worst = {trip["precision"]: trip["audio"]["max"] for trip in found["round_trips"]}
    assert 0 < worst["float64"] < 1e-12 < worst["float32"] < 1e-5
    assert (tmp_path / "o" / "depth.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), ["nowhere"]),
        (("--random", "nowhere.json"), ["nowhere.json"]),
        (("--seconds", "59"), ["ru_0773", "--seconds"]),
        (("--close-samples", "5"), ["--close-samples"]),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(run, arguments, says):
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in says:
        assert part in err
