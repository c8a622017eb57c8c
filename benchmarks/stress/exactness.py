"""Compares windows, batches, streams and devices with the bare inverse; prints each difference.

    python benchmarks/stress/exactness.py [--frames 1 2 31 97 500 3000]
        [--kinds voice published ...] [--corrections 0 8 32]

The models are seven configs (both whitenings, conditioning at both rates, alternating halves, and
groups that do not divide the hop) with random weights of which no layer is the identity, and the
bundled voice. One run of `wg.inverse`, without cutting or padding, is compared with windows of the
chosen size and of a small one, the middle of a batch of three, a stream of chunks of 77 frames from
blocks of any size, and 2 and 8 devices (of one CPU). The same is then done with corrections towards
the mel, against `consistent` of the samples in chosen windows, without cutting. Everything is
computed in float32, and differences are relative to the largest sample.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import waveglow_jax as wg  # noqa: E402
from waveglow_jax.analysis.signals import random_params  # noqa: E402
from waveglow_jax.audio.consistency import consistent  # noqa: E402
from waveglow_jax.config import Config, config_from_dict  # noqa: E402
from waveglow_jax.files.sound import read_audio  # noqa: E402
from waveglow_jax.flow.waveglow import latent_noise  # noqa: E402
from waveglow_jax.synthesis import levels  # noqa: E402

SIGMA, SEED = 0.8, 5
RECORDINGS = ROOT / "waveglow_jax/assets/voice/recordings"
KINDS = {  # mel_whitening, conditioning, n_group, hop_length
    "predicting": ({"block": 32, "order": 24}, "group", 16, 256),
    "block by block": ({"block": 16}, "group", 16, 256),
    "published": (None, "sample", 8, 256),
    "plain": (None, "group", 8, 256),
    "alternating": (None, "sample", 8, 256),
    "groups of 12": (None, "sample", 12, 256),
    "hop 275": (None, "sample", 8, 275),
}


def config_of(kind: str) -> Config:
    whitening, conditioning, group, hop = KINDS[kind]
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
    return config_from_dict({"waveglow_config": glow, "data_config": {"hop_length": hop}})


def params_of(config: Config) -> dict:
    """Random weights with which every part of the receptive field affects the samples measurably.

    The effect exceeds the tolerance.
    """
    params = random_params(config)
    for flow in params["flows"]:
        for name, layer in flow["wn"].items():
            if name.startswith(("in_layer", "res_skip")):
                layer["g"] = 2 * layer["g"]
        flow["wn"]["end"]["kernel"] = 0.1 * flow["wn"]["end"]["kernel"]
    return params


def some_mel(frames: int, bins: int = 80) -> np.ndarray:
    """A noisy mel that falls with frequency as speech does.

    With a flat mel, the whitening would be ill-conditioned.
    """
    noise = np.random.default_rng([0, frames]).normal(0, 0.7, (frames, bins))
    return (noise + np.linspace(0, -5, bins)).astype(np.float32)


def irregular(mel: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the mel in blocks of 0 to 12 frames, as they might arrive."""
    rng, at = np.random.default_rng(1), 0
    while at < len(mel):
        size = int(rng.integers(0, 13))
        yield mel[at : at + size]
        at += size


def voices(kind: str) -> dict[int, wg.Voice]:
    """The voice of this kind by number of devices."""
    if kind == "voice":
        config, params = wg.load().config, wg.load().params
    else:
        config = config_of(kind)
        params = params_of(config)
    return {n: wg.Voice(config, params, tuple(jax.devices()[:n])) for n in (1, 2, 8)}


def mel_of(kind: str, frames: int, voice: wg.Voice) -> np.ndarray:
    if kind != "voice":
        return some_mel(frames)
    spoken = [voice.mel(read_audio(path, 22050)) for path in sorted(RECORDINGS.glob("*.wav"))]
    return np.resize(np.concatenate(spoken), (frames, spoken[0].shape[1]))


def ways(
    voices: dict[int, wg.Voice], mel: np.ndarray, consistency: int
) -> Iterator[tuple[str, np.ndarray]]:
    voice = voices[1]
    context = voice.plan([1]).context
    small = context.left + context.right + 17
    settings = {"sigma": SIGMA, "seed": SEED, "consistency": consistency}
    yield "chosen windows", voice.synthesize(mel, **settings)
    yield "small windows", voice.synthesize(mel, **settings, window=small, batch=4)
    yield "in a batch", voice.synthesize([mel[:3], mel, mel[:7]], **settings)[1]
    yield "streamed", np.concatenate(list(voice.stream(irregular(mel), 77, **settings)))
    for n in (2, 8):
        yield f"{n} devices", voices[n].synthesize(mel, **settings, window=small, batch=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 2, 31, 97, 500, 3000])
    parser.add_argument("--kinds", nargs="+", default=["voice", *KINDS])
    parser.add_argument("--corrections", type=int, nargs="+", default=[0, 8, 32])
    arguments = parser.parse_args()
    levels.FULL_SCALE = float("inf")  # random weights exceed any full scale; clipping would differ
    inverse = jax.jit(wg.inverse, static_argnums=1)
    header, worst = False, dict.fromkeys(arguments.corrections, 0.0)
    for kind in arguments.kinds:
        by_devices = voices(kind)
        voice = by_devices[1]
        for frames in arguments.frames:
            mel = mel_of(kind, frames, voice)
            z = SIGMA * latent_noise(SEED, voice.config, frames)[None]
            bare = np.asarray(inverse(voice.params, voice.config, z, mel[None])[0][0])
            bare = bare[: frames * voice.config.data.hop_length]
            for n in arguments.corrections:
                whole = bare
                if n:
                    start = voice.synthesize(mel, SIGMA, SEED, consistency=0)
                    whole = np.asarray(consistent(start, mel, voice.config, n))
                peak = np.abs(whole).max()
                found = {
                    way: np.abs(ours - whole).max() / peak for way, ours in ways(by_devices, mel, n)
                }
                if not header:
                    print("| voice | corrections | frames | peak |", " | ".join(found), "|")
                    print("| --- " * (len(found) + 4) + "|")
                    header = True
                cells = " | ".join(f"{error:.1e}" for error in found.values())
                print(f"| {kind} | {n} | {frames} | {peak:.3g} | {cells} |", flush=True)
                worst[n] = max(worst[n], *found.values())
    for n, error in worst.items():
        print(f"\nThe largest with {n} corrections: {error:.1e}")


if __name__ == "__main__":
    main()
