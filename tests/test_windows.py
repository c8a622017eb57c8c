"""Windows, batches, streams and devices always give the samples of the bare inverse."""

from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from test_vocoder import HOP, close, lively_params, some_mel

from waveglow_jax.config import Config, config_from_dict, load_config
from waveglow_jax.conventions import HALF_HOP
from waveglow_jax.flow.waveglow import inverse, inverse_whitened, latent_noise, prepare_inverse
from waveglow_jax.synthesis.plan import Context, choose, context_of, pack
from waveglow_jax.synthesis.vocoder import Voice

pytestmark = pytest.mark.usefixtures("no_full_scale")

# For each kind: mel_whitening, conditioning, group.
KINDS = {
    "predicting": ({"block": 32, "order": 24}, "group", 16),
    "block by block": ({"block": 16}, "group", 16),
    "published": (None, "sample", 8),
    "plain": (None, "group", 8),
    "alternating": (None, "sample", 8),
    "late predicting": ({"block": 32, "order": 24}, "group", 16),
    "late block by block": ({"block": 16}, "group", 16),
}
SIGMA, SEED = 0.7, 5
ROOT = Path(__file__).parent.parent


@cache
def config_of(kind: str) -> Config:
    whitening, conditioning, group = KINDS[kind]
    glow = {
        "n_flows": 2,
        "n_early_every": 1,
        "n_early_size": 2,
        "n_group": group,
        "upsample_kernel": 1024,
        "conditioning": conditioning,
        "mel_whitening": whitening,
        "alternating_halves": kind == "alternating",
        "WN_config": {"n_layers": 3, "n_channels": 8, "n_skip_channels": 6, "kernel_size": 7},
    }
    frames = HALF_HOP if kind.startswith("late") else "centred"
    return config_from_dict({"waveglow_config": glow, "data_config": {"mel": {"frames": frames}}})


@cache
def params_of(kind: str) -> dict:
    """Weights with which the whole receptive field affects a sample by more than the tolerance."""
    params = lively_params(config_of(kind))
    for flow in params["flows"]:
        for name, layer in flow["wn"].items():
            if name.startswith(("in_layer", "res_skip")):
                layer["g"] = 2 * layer["g"]
        flow["wn"]["end"]["kernel"] = 0.1 * flow["wn"]["end"]["kernel"]
    return params


@cache
def voice_of(kind: str, n_devices: int = 1) -> Voice:
    return Voice(config_of(kind), params_of(kind), tuple(jax.devices()[:n_devices]))


jitted_inverse = jax.jit(inverse, static_argnums=1)


@cache
def noise_of(group: int, frames: int) -> np.ndarray:
    config = config_of(next(kind for kind in KINDS if KINDS[kind][2] == group))
    return np.asarray(latent_noise(SEED, config, frames))


@cache
def bare(kind: str, frames: int) -> np.ndarray:
    """The samples of one run over the whole mel, without cutting or padding."""
    config, group = config_of(kind), KINDS[kind][2]
    # Noise of fewer frames is the beginning of noise of more frames.
    z = SIGMA * noise_of(group, 100 if frames <= 100 else 3000)[: frames * HOP // group]
    return np.asarray(jitted_inverse(params_of(kind), config, z[None], mel_of(frames)[None])[0][0])


def mel_of(frames: int) -> np.ndarray:
    return some_mel(frames)


def irregular(mel: np.ndarray):
    """Blocks of 0 to 12 frames, as they might arrive."""
    rng, at = np.random.default_rng(1), 0
    while at < len(mel):
        size = int(rng.integers(0, 13))
        yield mel[at : at + size]
        at += size


# ------------------------------------------------------------------------------ context


def test_context_of_known_models():
    published = config_from_dict({})
    # 12 x 255 groups of 8 are 24,480 samples, 95.6 frames; four frames overlap in the upsampling;
    # one step of a convolution spans at most 128 groups, 4 frames.
    assert context_of(published) == Context(left=96 + 3, right=96, gap=4)
    voice = load_config(ROOT / "configs" / "voice.json")
    # 8 x 63 groups of 16 are 8,064 samples, 31.5 frames.
    assert context_of(voice) == Context(left=32 + 3, right=32, gap=3)


def test_whitening_alone_hears_the_next_frame():
    glow = {"mel_whitening": {"block": 64}, "WN_config": {"kernel_size": 1}}
    assert context_of(config_from_dict({"waveglow_config": glow})).right == 1
    del glow["mel_whitening"]
    assert context_of(config_from_dict({"waveglow_config": glow})).right == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["published", "plain"])
def test_the_context_is_what_is_heard_and_no_more(kind):
    config, context = config_of(kind), context_of(config_of(kind))
    prepared = jax.jit(prepare_inverse)(params_of(kind))
    frames, at = 40, 20
    group = config.waveglow.n_group
    run = jax.jit(lambda z, mel: inverse_whitened(prepared, config, z, mel)[0])
    z = np.asarray(latent_noise(0, config, frames))[None]
    mel = mel_of(frames)[None]
    changed_z, changed_mel = z.copy(), mel.copy()
    changed_z[:, at * HOP // group : (at + 1) * HOP // group] *= -1
    changed_mel[:, at] += 1
    audio = np.asarray(run(z, mel))
    heard_in = []
    for other in (run(changed_z, mel), run(z, changed_mel)):
        per_frame = np.abs(np.asarray(other) - audio).reshape(frames, HOP).max(axis=1)
        heard_in.append(np.flatnonzero(per_frame))
    first, last = (min(h[0] for h in heard_in), max(h[-1] for h in heard_in))
    assert (first, last) == (at - context.right, at + context.left)


# ------------------------------------------------------------------------------ packing


def test_every_frame_is_kept_once_with_its_context():
    rng = np.random.default_rng(0)
    for _ in range(300):
        context = Context(*(int(n) for n in rng.integers(0, 9, 2)), int(rng.integers(1, 5)))
        window = context.left + context.right + int(rng.integers(1, 40))
        lengths = rng.integers(1, 3 * window, rng.integers(1, 12)).tolist()
        kept = []
        for parts in pack(iter(lengths), window, context):
            free = 0
            for part in parts:
                length = lengths[part.utterance]
                assert part.offset >= free and 0 <= part.first <= part.begin < part.end
                assert part.end <= part.stop <= length
                assert part.first == 0 or part.begin - part.first >= context.left
                assert part.stop == length or part.stop - part.end >= context.right
                free = part.offset + part.stop - part.first + context.gap
                kept += [(part.utterance, frame) for frame in range(part.begin, part.end)]
            assert free - context.gap <= window
        assert kept == [(u, frame) for u, length in enumerate(lengths) for frame in range(length)]


def test_little_is_computed_twice():
    context, rng = Context(35, 32, 3), np.random.default_rng(1)
    lengths = rng.integers(50, 900, 200).tolist()
    windows = len(list(pack(lengths, 512, context)))
    assert windows * 512 < 1.2 * sum(lengths)
    assert len(list(pack([512], 512, context))) == 1
    assert len(list(pack([513], 512, context))) == 2
    assert len(list(pack([100] * 5, 512, context))) == 1  # with 4 gaps of 3
    assert len(list(pack([100] * 5, 511, context))) == 2
    # Cutting the second utterance would not save a frame.
    (_, (part,)) = pack([450, 100], 512, context)
    assert (part.utterance, part.begin, part.offset) == (1, 0, 0)


def test_window_without_room_for_its_context():
    with pytest.raises(ValueError, match="68"):
        list(pack([100], 67, Context(35, 32, 3)))
    assert len(list(pack([60, 67], 67, Context(35, 32, 3)))) == 2  # nothing is cut


# ------------------------------------------------------------------------------ choosing

CPU = jax.devices("cpu")
VOICE = Context(35, 32, 3)


@pytest.mark.parametrize("frames", [1, 60, 100, 258, 400])
def test_a_short_utterance_is_one_window_hardly_padded(frames):
    plan = choose([frames], VOICE, CPU[:1])
    assert plan.batch == 1 and plan.kept_frames == frames
    assert plan.window == plan.computed_frames <= max(64, 1.25 * frames)


def test_long_and_many_ones_are_cut_with_little_overhead():
    many = np.random.default_rng(2).integers(86, 861, 20).tolist()
    for lengths in ([861], [310_000], many):
        plan = choose(lengths, VOICE, CPU[:1])
        assert plan.overhead < 0.3 and plan.window * plan.batch <= 512
        assert plan.overhead == pytest.approx(1 - sum(lengths) / plan.computed_frames)
        assert f"{plan.window} frames" in str(plan) and f"{plan.overhead:.0%}" in str(plan)
    # A wide context, as that of the published models, needs wide windows.
    assert choose([310_000], Context(99, 96, 4), CPU[:1]).overhead < 0.3


@pytest.mark.devices(8)
def test_rows_go_over_all_devices_if_there_are_enough_of_them():
    assert choose([100], VOICE, CPU[:8]).devices == 1
    plan = choose([400] * 64, VOICE, CPU[:8])
    assert plan.devices == 8 and plan.batch % 8 == 0
    assert choose([400] * 64, VOICE, CPU[:8], batch=3).devices == 1
    assert choose([400] * 64, VOICE, CPU[:8], batch=16).devices == 8


def test_what_is_compiled_is_taken_unless_it_costs_much_more():
    assert choose([258], VOICE, CPU[:1], compiled=[(384, 1), (96, 1)]).window == 384
    assert choose([30], VOICE, CPU[:1], compiled=[(384, 1)]).window == 64
    assert choose([258], VOICE, CPU[:1], compiled=[(64, 1)]).window == 320


def test_given_window_and_batch():
    plan = choose([258], VOICE, CPU[:1], compiled=[(320, 1)], window=100, batch=4)
    assert (plan.window, plan.batch) == (100, 4)
    for wrong in ({"window": 67}, {"window": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match=r"window|batch"):
            choose([258], VOICE, CPU[:1], **wrong)
    assert choose([], VOICE, CPU[:1]).computed_frames == 0


# ------------------------------------------------------------------------------ equality


# The default tests try two of them.
@pytest.mark.parametrize(
    ("kind", "window", "batch"),
    [
        ("plain", 24, 3),
        ("late predicting", 24, 3),
        *(
            pytest.param(kind, *sizes, marks=pytest.mark.slow)
            for kind in KINDS
            for sizes in ((24, 3), (None, None))
            if (kind, *sizes) not in (("plain", 24, 3), ("late predicting", 24, 3))
        ),
    ],
)
def test_in_windows_and_in_a_batch(kind, window, batch):
    lengths = [2, 97]
    if kind.endswith("predicting"):
        # Lengths at the edges: after the first window of 24 frames, each keeps `more` frames.
        more = 24 - context_of(config_of(kind)).left - context_of(config_of(kind)).right
        lengths += [31, 1, 24, 25 + more]
    audio = voice_of(kind).synthesize(
        [mel_of(n) for n in lengths], SIGMA, SEED, window=window, batch=batch
    )
    for n, ours in zip(lengths, audio, strict=True):
        close(ours, bare(kind, n))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_streamed(kind):
    voice = voice_of(kind)
    blocks = list(voice.stream(mel_of(97), 13, SIGMA, SEED))
    assert [len(block) for block in blocks] == [13 * HOP] * 7 + [6 * HOP]
    close(np.concatenate(blocks), bare(kind, 97))
    arriving = list(voice.stream(irregular(mel_of(97)), 13, SIGMA, SEED))
    assert np.array_equal(np.concatenate(arriving), np.concatenate(blocks))
    blocks = voice.stream(irregular(mel_of(2)), 13, SIGMA, SEED)
    close(np.concatenate(list(blocks)), bare(kind, 2))


@pytest.mark.slow
def test_streamed_in_chunks_of_any_size():
    voice = voice_of("predicting")
    blocks = list(voice.stream(mel_of(31), 1, SIGMA, SEED))
    assert [len(block) for block in blocks] == [HOP] * 31
    close(np.concatenate(blocks), bare("predicting", 31))
    close(np.concatenate(list(voice.stream(mel_of(97), None, SIGMA, SEED))), bare("predicting", 97))


@pytest.mark.devices(8)
@pytest.mark.slow
@pytest.mark.parametrize("n_devices", [2, 8])
def test_on_several_devices(n_devices):
    lengths = [31, 1, 97, 2]
    voice = voice_of("predicting", n_devices)
    audio = voice.synthesize([mel_of(n) for n in lengths], SIGMA, SEED, window=24, batch=8)
    assert voice.plan([97], window=24, batch=8).devices == n_devices
    for n, ours in zip(lengths, audio, strict=True):
        close(ours, bare("predicting", n))


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [500, 3000])
def test_long_ones(kind, frames):
    mel, expected = mel_of(frames), bare(kind, frames)
    for n_devices in (1, 2, 8):
        close(voice_of(kind, n_devices).synthesize(mel, SIGMA, SEED), expected)
    close(voice_of(kind).synthesize([mel_of(3), mel, mel_of(7)], SIGMA, SEED)[1], expected)
    close(np.concatenate(list(voice_of(kind).stream(irregular(mel), 77, SIGMA, SEED))), expected)


@pytest.mark.slow
def test_a_mel_beyond_all_numbers_spoils_no_other():
    wild = np.full((9, 80), 3e38, np.float32)
    mels = [mel_of(31), wild, mel_of(2), wild, mel_of(97)]

    def speak(mels: list) -> list:
        voice = voice_of("published")
        plan = voice.plan([len(mel) for mel in mels], "float16", window=60, batch=2)
        blocks = list(voice.blocks(mels, plan, SIGMA, SEED, dtype="float16"))
        return [np.concatenate([b for i, b in blocks if i == k]) for k in range(len(mels))]

    audio = speak(mels)
    assert np.isnan(audio[1]).any() and not np.isinf(audio[1]).any()
    for i in (0, 2, 4):
        close(audio[i], speak([mels[i]])[0], 1e-4)
    with pytest.raises(ValueError, match=r"no finite samples.*doctor"):
        voice_of("published").synthesize(mels, SIGMA, SEED, dtype="float16", window=60, batch=2)


# ------------------------------------------------------------------------------ time and memory


@pytest.mark.slow
def test_a_block_is_out_as_soon_as_its_context_is_there():
    voice, pulled = voice_of("predicting"), 0

    def arriving():
        nonlocal pulled
        for frame in mel_of(97):
            pulled += 1
            yield frame[None]

    latency, chunk = voice.latency_frames(13), 13
    assert latency == 13 + context_of(config_of("predicting")).right
    for k, _ in enumerate(voice.stream(arriving(), chunk, SIGMA, SEED)):
        assert pulled == min(97, k * chunk + latency)


@pytest.mark.slow
def test_mels_are_taken_as_they_are_needed():
    """Otherwise memory would grow with the number of mels."""
    voice, pulled = voice_of("predicting"), 0

    def mels():
        nonlocal pulled
        for _ in range(60):
            pulled += 1
            yield mel_of(31)

    plan = voice.plan([31] * 60, window=24, batch=3)
    out = set()
    for utterance, _ in voice.blocks(mels(), plan):
        out.add(utterance)
        assert pulled - len(out) <= 4  # the mels in 72 frames, and the next one
    assert len(out) == 60


def compilations(work) -> int:
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    try:
        work()
    finally:
        jax.monitoring.clear_event_listeners()
    return sum("backend_compile" in name for name in events)


@pytest.mark.slow
def test_200_utterances_compile_three_programs_at_most():
    lengths = np.random.default_rng(3).integers(1, 90, 200)
    mels = [mel_of(int(n)) for n in lengths]
    voice = Voice(config_of("predicting"), params_of("predicting"), tuple(jax.devices()[:1]))
    # Programs for the windows, for the colouring and, once, for the weights.
    assert 2 <= compilations(lambda: voice.synthesize(mels)) <= 3
    assert compilations(lambda: voice.synthesize(mels[::-1])) == 0
    # One mel at a time, most use programs that are already compiled.
    assert compilations(lambda: [voice.synthesize(mel) for mel in mels[:40]]) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mel": np.zeros((5, 79), np.float32)}, "79"),
        ({"mel": np.zeros((0, 80), np.float32)}, "frames"),
        ({"chunk_frames": 0}, "chunk_frames"),
        ({"sigma": -1}, "sigma"),
        ({"denoise": float("nan")}, "denoise"),
        ({"dtype": "int8"}, "int8"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_streamed_is_refused_at_once(change, named):
    with pytest.raises(ValueError, match=named):
        voice_of("plain").stream(**{"mel": np.zeros((5, 80), np.float32), **change})


@pytest.mark.slow
def test_a_bad_block_of_frames_is_refused_when_it_comes():
    good, bad = mel_of(31), np.full((2, 80), np.nan, np.float32)
    blocks = voice_of("predicting").stream(iter([good, bad]), 13)
    next(blocks)
    with pytest.raises(ValueError, match="finite"):
        list(blocks)
    assert list(voice_of("predicting").stream(iter([]), 13)) == []
