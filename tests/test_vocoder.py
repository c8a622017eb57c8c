"""The voice: samples that depend on nothing but mel, sigma and seed; mels and likelihoods."""

import ast
import copy
import dataclasses
import pickle
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal
import scipy.stats
from compiling import quick_jit

import waveglow_jax as wg
from waveglow_jax.audio.mel import log_mel, mel_filters
from waveglow_jax.config import Config, DataConfig, config_from_dict
from waveglow_jax.flow.waveglow import forward, init, inverse, latent_noise
from waveglow_jax.synthesis.plan import size_at_least
from waveglow_jax.synthesis.vocoder import Voice

pytestmark = pytest.mark.usefixtures("no_full_scale")

HOP, BINS = 256, 80
LENGTHS = [1, 2, 31, 64, 65, 97]  # in windows of 64, 80, 112 frames: with padding and without


def tiny_config(kind: str = "group") -> Config:
    """Two flows with an early output between them: every part of the model, compiled in a second.

    kind: "group" with both of our extensions, "sample" as every published model has it.
    """
    own = {
        "group": {
            "n_group": 16,
            "n_early_size": 4,
            "conditioning": "group",
            "mel_whitening": {"block": 16},
        },
        "sample": {"n_group": 8, "n_early_size": 2, "conditioning": "sample"},
    }[kind]
    shared = {
        "n_flows": 2,
        "n_early_every": 1,
        "upsample_kernel": 512,
        "WN_config": {"n_layers": 2, "n_channels": 8, "n_skip_channels": 6},
    }
    return config_from_dict({"waveglow_config": {**shared, **own}})


def lively_params(config: Config, seed: int = 0) -> dict:
    """Random weights at which every layer does something; new ones would be the identity."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))

    def leaf(path, like):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        values = rng.normal(size=like.shape)
        if name.endswith("conv"):  # a rotation, stretched so that its determinant is not 1
            values = np.linalg.qr(values)[0] * np.exp(0.2 * rng.normal(size=like.shape[1]))
        elif name == "upsample.kernel":
            values *= 0.01
        elif name.endswith(".g"):
            values = rng.uniform(0.7, 1.3, like.shape)
        elif name.endswith("end.kernel"):
            values *= 0.3
        elif name.endswith("bias"):
            values *= 0.1
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def some_mel(frames: int, seed: int = 0) -> np.ndarray:
    """A mel that falls with frequency as speech does: a flat one makes whitening
    ill-conditioned."""
    noise = np.random.default_rng([seed, frames]).normal(0, 0.7, (frames, BINS))
    return (noise + np.linspace(0, -5, BINS)).astype(np.float32)


def some_audio(samples: int, seed: int = 0) -> np.ndarray:
    """Noise that falls with frequency."""
    noise = np.random.default_rng([seed, samples]).normal(0, 0.03, samples)
    return scipy.signal.lfilter([1.0], [1.0, -0.95], noise).astype(np.float32)


@cache
def voice_of(kind: str) -> Voice:
    config = tiny_config(kind)
    return Voice(config, lively_params(config))


@pytest.fixture
def voice() -> Voice:
    return voice_of("group")


@cache
def noise_of(kind: str, seed: int) -> np.ndarray:
    """The noise of 200 frames; a test below checks that shorter noise is its beginning."""
    return np.asarray(latent_noise(seed, tiny_config(kind), 200))


jitted_inverse = quick_jit(inverse, static_argnums=1)


def close(ours, theirs, relative=1e-5):
    """Within `relative` of the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    peak = np.abs(theirs).max()
    assert peak > 1e-3, "nothing to compare"
    error = np.abs(ours - theirs).max() / peak
    assert error <= relative, f"off by {error:.2e} of the largest value"


# ------------------------------------------------------------------------------ synthesize


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "frames"),
    [*(("group", n) for n in LENGTHS), *(("sample", n) for n in (1, 31, 65))],
)
def test_padded_run_is_the_bare_inverse(kind, frames):
    voice, mel, sigma, seed = voice_of(kind), some_mel(frames), 0.7, 5
    audio = voice.synthesize(mel, sigma=sigma, seed=seed)
    assert audio.shape == (frames * HOP,) and audio.dtype == np.float32
    z = sigma * noise_of(kind, seed)[: frames * HOP // voice.config.waveglow.n_group]
    bare, _ = jitted_inverse(voice.params, voice.config, z[None], mel[None])
    close(audio, bare[0])


@pytest.mark.slow
def test_one_batch_and_list_agree(voice):
    mels = [some_mel(31, seed) for seed in range(3)]
    alone = [voice.synthesize(mel) for mel in mels]
    assert not np.allclose(alone[0], alone[1], atol=1e-2)
    batch = voice.synthesize(np.stack(mels))
    assert batch.shape == (3, 31 * HOP)
    close(batch, np.stack(alone))
    mixed = [mels[0], some_mel(65), some_mel(1), mels[1]]
    several = voice.synthesize(mixed)
    assert isinstance(several, list)
    assert [audio.shape for audio in several] == [(len(mel) * HOP,) for mel in mixed]
    for audio, mel in zip(several, mixed, strict=True):
        close(audio, voice.synthesize(mel))
    assert voice.synthesize([]) == []
    close(voice.synthesize(jnp.asarray(mels[0])), alone[0])


def test_default_is_sigma_06_and_seed_0(voice):
    mel = some_mel(20)
    assert np.array_equal(voice.synthesize(mel), voice.synthesize(mel, sigma=0.6, seed=0))


def test_seed_and_sigma_matter(voice):
    mel = some_mel(20)
    first = voice.synthesize(mel, sigma=0.6, seed=1)
    assert np.array_equal(first, voice.synthesize(mel, sigma=0.6, seed=1))
    for other in (voice.synthesize(mel, 0.6, 2), voice.synthesize(mel, 0.9, 1)):
        assert np.abs(first - other).max() > 0.1 * np.abs(first).max()
    without = voice.synthesize(mel, sigma=0, seed=1)
    assert np.array_equal(without, voice.synthesize(mel, sigma=0, seed=2))
    assert np.abs(without).max() > 1e-3  # the biases alone give sound
    # Every seed up to the largest gives noise of its own.
    last = voice.synthesize(mel, 0.6, 2**32 - 1)
    assert np.abs(last - voice.synthesize(mel, 0.6, 2**31 - 1)).max() > 1e-3


@pytest.mark.slow
def test_prefix_of_the_noise_does_not_depend_on_length(voice):
    long = noise_of("group", 3)
    assert np.array_equal(latent_noise(3, voice.config, 4), long[: 4 * HOP // 16])
    assert scipy.stats.kstest(long.ravel(), "norm").pvalue > 1e-3


# Measured with these weights: bfloat16 49 dB, float16 68 dB.
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "decibels"), [("bfloat16", 42), ("float16", 60)])
def test_low_precision_is_close_but_not_the_same(voice, dtype, decibels):
    mel = some_mel(31)
    exact, rough = voice.synthesize(mel), voice.synthesize(mel, dtype=dtype)
    assert rough.dtype == np.float32
    error = np.square(exact - rough).sum(dtype=np.float64)
    assert error > 0
    assert 10 * np.log10(np.square(exact).sum(dtype=np.float64) / error) > decibels


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mel": np.zeros((5, 79), np.float32)}, "79"),
        ({"mel": np.zeros((81, 5), np.float32)}, "81"),
        ({"mel": np.zeros((0, 80), np.float32)}, "frames"),
        ({"mel": np.zeros(80, np.float32)}, "frames"),
        ({"mel": np.zeros((1, 1, 5, 80), np.float32)}, "frames"),
        ({"mel": [np.zeros((5, 80), np.float32), np.zeros((5, 81), np.float32)]}, "81"),
        ({"mel": np.where(np.arange(400).reshape(5, 80) == 7, np.nan, 0)}, "finite"),
        ({"mel": np.where(np.arange(400).reshape(5, 80) == 7, np.inf, 0)}, "finite"),
        ({"sigma": -0.1}, "sigma"),
        ({"sigma": float("nan")}, "sigma"),
        ({"sigma": float("inf")}, "sigma"),
        ({"dtype": "float64"}, "float64"),
        ({"dtype": "int8"}, "int8"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"denoise": -0.1}, "denoise"),
        ({"denoise": float("nan")}, "denoise"),
        ({"window": 0}, "window"),
        ({"window": 2}, "window"),
        ({"batch": 0}, "batch"),
    ],
)
def test_what_cannot_be_is_refused(voice, change, named):
    with pytest.raises(ValueError, match=named):
        voice.synthesize(**{"mel": np.zeros((5, 80), np.float32), **change})


# ------------------------------------------------------------------------------ compiling


def test_sizes():
    sizes = [size_at_least(n) for n in range(1, 5001)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert max(size / n for n, size in enumerate(sizes, 1) if n >= 64) <= 1.26
    assert set(sizes[:64]) == {64}
    # Four sizes per octave: 64 to 5120 is not quite six and a half octaves.
    assert len(set(sizes)) <= 27
    assert all(size_at_least(size) == size for size in set(sizes))
    assert {64, 80, 96, 112, 128, 160, 192, 224, 256, 320} <= set(sizes)


@pytest.mark.slow
def test_nothing_is_compiled_twice(voice):
    """JAX's own compile events are counted."""
    voice.synthesize(some_mel(10))
    voice.synthesize(some_mel(70))
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    try:
        for frames in (3, 10, 40, 64, 66, 72, 80):
            voice.synthesize(some_mel(frames), sigma=0.1 * frames, seed=frames)
        assert not [name for name in events if "compile" in name]
        jax.jit(lambda x: x + 1)(jnp.zeros(3)).block_until_ready()
        assert [name for name in events if "compile" in name], "the compiler says nothing any more"
    finally:
        jax.monitoring.clear_event_listeners()


# ------------------------------------------------------------------------------ mel


def librosa_log_mel(audio: np.ndarray) -> np.ndarray:
    spectrum = librosa.stft(
        audio.astype(np.float64),
        n_fft=1024,
        hop_length=256,
        win_length=1024,
        window="hann",
        center=True,
        pad_mode="reflect",
    )
    filters = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0.0, fmax=8000.0)
    return np.log(np.maximum(filters @ np.abs(spectrum), 1e-5)).T


@pytest.mark.parametrize(
    ("rate", "fft", "fmin", "fmax", "bands"),
    [(22050, 1024, 0, 8000, 80), (24000, 1024, 0, 12000, 100), (16000, 800, 20, 7600, 40)],
)
def test_mel_filters_are_librosas_to_the_bit(rate, fft, fmin, fmax, bands):
    data = DataConfig(
        sampling_rate=rate, filter_length=fft, win_length=fft, mel_fmin=fmin, mel_fmax=fmax
    )
    theirs = librosa.filters.mel(sr=rate, n_fft=fft, n_mels=bands, fmin=fmin, fmax=fmax)
    np.testing.assert_array_equal(mel_filters(data, bands), theirs)


@pytest.mark.filterwarnings("ignore:n_fft=1024 is too large")
@pytest.mark.parametrize("samples", [513, 767, 768, 769, 1024, 1025, 2047, 2048, 3000, 17000])
def test_mel_is_librosas(voice, samples):
    audio = some_audio(samples)
    audio[samples // 2 :] *= 1e-3
    mel = voice.mel(audio)
    assert mel.shape == (1 + samples // 256, 80) and mel.dtype == np.float32
    np.testing.assert_allclose(mel, librosa_log_mel(audio), rtol=0, atol=1e-3)


def test_mel_is_log_mel_and_takes_batches(voice):
    batch = np.stack([some_audio(1100, seed) for seed in range(3)])
    mel = voice.mel(batch)
    assert mel.shape == (3, 5, 80)
    np.testing.assert_allclose(mel, log_mel(jnp.asarray(batch), voice.config), rtol=0, atol=1e-3)
    for audio, one in zip(batch, mel, strict=True):
        np.testing.assert_allclose(voice.mel(audio), one, rtol=0, atol=1e-5)


def test_mel_of_silence_is_the_floor(voice):
    np.testing.assert_allclose(voice.mel(np.zeros(2000, np.float32)), np.log(1e-5), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (512,), (2, 512), (2, 2, 1000)])
def test_mel_refuses_what_is_too_short_or_no_signal(voice, shape):
    with pytest.raises(ValueError, match="512"):
        voice.mel(np.zeros(shape, np.float32))


@pytest.mark.parametrize("method", ["synthesize", "mel", "encode", "resynthesize"])
def test_a_path_is_no_array(voice, method):
    with pytest.raises(TypeError, match=r"a.npy: a path is no array; wg.read_audio or wg.read_mel"):
        getattr(voice, method)("a.npy")


def test_samples_are_no_mel(voice):
    with pytest.raises(ValueError, match=r"shape \(512,\) is not .*; resynthesize takes samples"):
        voice.synthesize(np.zeros(512, np.float32))


# ------------------------------------------------------------------------------ encode


@pytest.mark.slow
def test_encode_and_back(voice):
    audio = np.stack([some_audio(31 * HOP, seed) for seed in range(2)])
    mel = voice.mel(audio)
    assert mel.shape == (2, 32, 80)  # one frame more than T / hop: both are taken
    z, nats = voice.encode(audio, mel)
    assert z.shape == (2, 31 * HOP // 16, 16) and nats.shape == (2,)
    back, inverse_log_det = jitted_inverse(voice.params, voice.config, z, mel)
    close(back, audio, 1e-4)

    # The density is SciPy's, in float64; the determinant is that of the inverse.
    log_det = -np.asarray(inverse_log_det, np.float64)
    density = scipy.stats.norm.logpdf(z.astype(np.float64)).sum(axis=(1, 2))
    np.testing.assert_allclose(nats, (density + log_det) / audio.shape[1], rtol=1e-5)
    # Neither of the two parts is too small to be seen.
    assert np.abs(log_det / audio.shape[1]).min() > 0.1 and nats[0] != nats[1]


@pytest.mark.slow
def test_encoding_what_was_synthesised_gives_the_noise(voice):
    mel = some_mel(31)
    z, _ = voice.encode(voice.synthesize(mel, sigma=0.8, seed=4)[None], mel[None])
    close(z[0], 0.8 * noise_of("group", 4)[: 31 * HOP // 16], 1e-4)


@pytest.mark.parametrize(
    ("audio", "mel"),
    [
        ((512,), (1, 2, 80)),
        ((1, 512), (2, 80)),
        ((1, 512), (1, 2, 79)),
        ((1, 512), (2, 2, 80)),
        ((1, 512), (1, 1, 80)),
        ((1, 512), (1, 4, 80)),
        ((), (2, 80)),
        ((1, 1, 512), (1, 2, 80)),
    ],
)
def test_encode_refuses_what_does_not_fit(voice, audio, mel):
    with pytest.raises(ValueError, match=r"audio|mel|samples|bins"):
        voice.encode(np.zeros(audio, np.float32), np.zeros(mel, np.float32))


@pytest.mark.parametrize("samples", [1000, 1024])
def test_encode_takes_any_recording(voice, samples):
    audio = some_audio(samples)
    added = -samples % 16  # whitening has blocks of 16 here, as many as a group
    expected = nullcontext() if not added else pytest.warns(UserWarning, match=f"^{added} zeros")
    with expected:
        z, nats = voice.encode(audio)
    assert z.shape == ((samples + added) // 16, 16) and nats.shape == ()
    whole = np.pad(audio, (0, added))
    in_batch, of_batch = voice.encode(whole[None], voice.mel(audio)[None].swapaxes(1, 2))
    assert np.array_equal(z, in_batch[0]) and nats == of_batch[0]


# ------------------------------------------------------------------------------ as people use it


def test_mels_with_bins_first_are_recognised(voice):
    """Files have this order, and vocos and BigVGAN give it."""
    mels = np.stack([some_mel(31, seed) for seed in range(2)])
    expected = voice.synthesize(mels)
    of_files = np.ascontiguousarray(mels.swapaxes(1, 2))
    assert np.array_equal(voice.synthesize(of_files), expected)
    assert np.array_equal(voice.synthesize(of_files[0]), voice.synthesize(mels[0]))
    assert np.array_equal(voice.synthesize(list(of_files))[1], voice.synthesize(list(mels))[1])
    streamed = np.concatenate(list(voice.stream(of_files[0], 16)))
    assert np.array_equal(streamed, np.concatenate(list(voice.stream(mels[0], 16))))
    # A mel with as many frames as bins is taken as [F, M].
    square = some_mel(BINS)
    close(voice.synthesize([square, some_mel(3)])[0], voice.synthesize(square))
    assert np.abs(voice.synthesize(square) - voice.synthesize(square.T)).max() > 1e-3


class Foreign:
    """Like a tensor of PyTorch that NumPy cannot read: with a gradient, on a GPU or in bfloat16."""

    def __init__(self, values: np.ndarray, on_host: bool = False, dtype: str = "torch.bfloat16"):
        self.values, self.on_host, self.dtype = values, on_host, dtype

    def detach(self):
        return self

    def cpu(self):
        return Foreign(self.values, True, self.dtype)

    def float(self):
        return Foreign(self.values, self.on_host, "torch.float32")

    def __array__(self, dtype=None, copy=None):
        if not self.on_host or self.dtype == "torch.bfloat16":
            raise TypeError("can't convert")
        return np.asarray(self.values, dtype)

    def __iter__(self):  # tensors have it too, and yet are no list of mels
        return iter(self.values)


def test_tensors_are_read_as_arrays(voice):
    mel, audio = some_mel(20), some_audio(1024)
    assert np.array_equal(voice.synthesize(Foreign(mel.T)), voice.synthesize(mel))
    assert np.array_equal(voice.synthesize([Foreign(mel)])[0], voice.synthesize(mel))
    assert np.array_equal(voice.mel(Foreign(audio)), voice.mel(audio))
    assert np.array_equal(voice.encode(Foreign(audio))[0], voice.encode(audio)[0])
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(mel.T[None], requires_grad=True)
    assert np.array_equal(voice.synthesize(tensor), voice.synthesize(mel[None]))
    rough = torch.tensor(mel, dtype=torch.bfloat16)
    assert np.array_equal(voice.synthesize(rough), voice.synthesize(rough.float().numpy()))


def test_resynthesize_is_mel_and_synthesize(voice):
    audio = some_audio(20 * HOP + 7)
    settings = {"sigma": 0.5, "seed": 3, "denoise": 0.01, "consistency": 1}
    again = voice.resynthesize(audio, **settings)
    assert again.shape == audio.shape
    assert np.array_equal(again, voice.synthesize(voice.mel(audio), **settings)[: len(audio)])
    assert voice.resynthesize(np.stack([audio, audio])).shape == (2, len(audio))


def test_a_voice_says_what_it_is_in_one_line(voice):
    said = repr(voice)
    assert len(said) < 120 and "\n" not in said
    assert "2 flows" in said and "22050 Hz" in said and "80 mel bins" in said
    assert voice.sampling_rate == 22050
    from waveglow_jax.weights.release import read_weights

    assert len(repr(read_weights())) < 2000


def test_voices_are_compared_copied_and_pickled(voice):
    other = Voice(voice.config, voice.params)
    assert voice == voice and voice != other
    assert {voice: 1, other: 2}[voice] == 1
    mel = some_mel(5)
    expected = voice.synthesize(mel)
    for twin in (copy.copy(voice), copy.deepcopy(voice), pickle.loads(pickle.dumps(voice))):
        assert twin is not voice
        close(twin.synthesize(mel), expected)
    held = dataclasses.replace(voice, devices=tuple(jax.local_devices()[:1]))
    for refused in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="devices=None"):
            refused(held)


def test_files_in_and_out_from_the_top(voice, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    audio = some_audio(3000)
    wg.write_wav("~/a.wav", audio, voice.sampling_rate)
    again = wg.read_audio(f"file://{tmp_path}/a.wav", voice.sampling_rate)
    np.testing.assert_allclose(again, audio, rtol=0, atol=2**-15)
    np.save(tmp_path / "a.npy", voice.mel(audio).T)
    assert np.array_equal(wg.read_mel("~/a.npy", BINS), voice.mel(audio))


def test_editors_see_every_name_with_its_type():
    """Names that are imported at their first use get their types only from the block of imports."""
    tree = ast.parse(Path(wg.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.name == alias.asname  # otherwise type checkers do not export the name
            seen[alias.name] = node.module.removeprefix("waveglow_jax.")
    assert seen == {**wg._HOME, "synthesis": "waveglow_jax"}


def test_names_at_the_top():
    assert wg.Voice is Voice and wg.inverse is inverse and wg.forward is forward
    assert set(wg.__all__) <= set(dir(wg))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        wg.nothing_of_the_kind  # noqa: B018
