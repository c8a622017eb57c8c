"""WaveGlow (arXiv 1811.00002) in JAX: mel-spectrograms to speech, speech to exact likelihoods.

    import waveglow_jax as wg
    voice = wg.load()                                  # the bundled voice
    audio = voice.synthesize(voice.mel(recording))     # samples in [-1, 1]
    z, log_det = wg.forward(params, config, audio, mel)

Names are imported at their first use, so that a command's help does not wait for JAX.
"""

from waveglow_jax.interrupts import listen_if_program

listen_if_program()  # before the imports that take time

from importlib import import_module  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from waveglow_jax.paths import give_libraries_caches  # noqa: E402

if TYPE_CHECKING:  # declares the names below to editors and type checkers
    from waveglow_jax import synthesis as synthesis
    from waveglow_jax.audio.mel import log_mel as log_mel
    from waveglow_jax.config import Config as Config
    from waveglow_jax.config import load_config as load_config
    from waveglow_jax.errors import UserError as UserError
    from waveglow_jax.files.mels import read_mel as read_mel
    from waveglow_jax.files.sound import read_audio as read_audio
    from waveglow_jax.files.wav import write_wav as write_wav
    from waveglow_jax.flow.likelihood import log_likelihood as log_likelihood
    from waveglow_jax.flow.likelihood import loss as loss
    from waveglow_jax.flow.waveglow import forward as forward
    from waveglow_jax.flow.waveglow import init as init
    from waveglow_jax.flow.waveglow import inverse as inverse
    from waveglow_jax.synthesis.vocoder import Voice as Voice
    from waveglow_jax.synthesis.vocoder import load as load
    from waveglow_jax.weights.release import save as save

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
    "read_audio": "files.sound",
    "read_mel": "files.mels",
    "write_wav": "files.wav",
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
    return sorted([*(name for name in globals() if name.startswith("__")), "synthesis", *_HOME])
