"""WaveGlow (arXiv 1811.00002) in JAX: mel-spectrograms to speech, speech to exact likelihoods.

    import waveglow_jax as wg
    voice = wg.load()                                  # the bundled voice
    audio = voice.synthesize(voice.mel(recording))     # samples in [-1, 1]
    z, log_det = wg.forward(params, config, audio, mel)

Names are imported when they are first used, so that a command's help does not wait for JAX.
"""

from waveglow_jax.interrupts import listen_if_program

listen_if_program()  # before the imports that take time

from importlib import import_module  # noqa: E402
from typing import Any  # noqa: E402

from waveglow_jax.paths import give_libraries_caches  # noqa: E402

__version__ = "0.2.0"

give_libraries_caches()  # before any of them is imported

_HOME = {
    "load": "synthesis.vocoder",
    "Voice": "synthesis.vocoder",
    "init": "flow.waveglow",
    "forward": "flow.waveglow",
    "inverse": "flow.waveglow",
    "loss": "flow.likelihood",
    "log_likelihood": "flow.likelihood",
    "log_mel": "audio.mel",
    "save": "weights.release",
    "Config": "config",
    "load_config": "config",
    "UserError": "errors",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "synthesis":  # for wg.synthesis.denoiser
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOME[name]}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
