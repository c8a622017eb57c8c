"""Finds, checks and cuts an acoustic model's mels that replace the recordings' own in training.

A voice trained on the mels that a text-to-speech model predicts (with the recording's own timing,
"ground-truth aligned") learns to compensate for that model's blur.

A recording of N samples has 1 + N // hop frames, frame f centred on sample f * hop, or N // hop
where the convention's frames lie half a hop late. Many models drop the last frame, so one frame
less is accepted too, and the last one is repeated. Any other number indicates another hop, sampling
rate, trimming or recording, and is refused.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from waveglow_jax.audio.correlation import overlap, pearson
from waveglow_jax.audio.mel import log_mel
from waveglow_jax.config import Config
from waveglow_jax.config_data import MelConfig
from waveglow_jax.conventions import HALF_HOP
from waveglow_jax.errors import UserError
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, MEL_SUFFIXES, find_inputs
from waveglow_jax.files.mels import read_mel
from waveglow_jax.files.sound import read_clip
from waveglow_jax.text import number_of

LOOKED_AT = 5
"""Number of recordings whose given mel is compared with the one computed from them."""

# How other programs name the mel of a recording: mel_NAME (NeMo), mel-NAME (Tacotron 2 in
# TensorFlow), SPEAKER-mel-NAME (FastSpeech 2), NAME-norm-feats, NAME-raw-feats (TensorFlowTTS),
# NAME-feats (ParallelWaveGAN), NAME_mel, NAME.mel.
_OTHER_NAMES = re.compile(
    r"(?:.*-)?mel[-_](?P<behind>.+)|(?P<before>.+?)(?:[-_.]mel|-(?:norm-|raw-)?feats)"
)

_LOOKED_AT_SECONDS = 4.0
_LAGS = range(-4, 5)
_ALIKE = 0.7
_SAME_LEVEL = 1.5
"""The largest difference of the mean levels, in units of the natural logarithm of a band."""
_OTHER_GRID = 0.7
"""The mel counts as one of the other grid if that grid leaves less of the loudness unexplained than
this share of what the config's own grid leaves."""


class MelFolder:
    """The mels below a folder, one per recording.

    A mel lies at its recording's relative path or a trailing part of it: `a/b/c.wav` takes
    `a/b/c.npy`, or else `b/c.npy`, or else `c.npy`. Instead of `c`, the name may be
    the recording's full name (`c.wav.pt`, as the original writes it) or, if neither exists, a name
    in the style of another program (`mel_c.npy`, `c-feats.npy` ...). Only one file may match.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._own: dict[tuple[str, ...], list[Path]] = defaultdict(list)
        self._other: dict[tuple[str, ...], list[Path]] = defaultdict(list)
        for item in find_inputs([folder], MEL_SUFFIXES, with_outputs=False):
            folders, name = item.relative.parent.parts, item.path.stem
            self._own[(*folders, name)].append(item.path)
            for other in _other_names(name):
                self._other[(*folders, other)].append(item.path)
        self._taken: dict[Path, Path] = {}

    def of(self, recording: Path, relative: Path, n_samples: int, config: Config) -> Path:
        """The file of a recording's mel. Raises UserError if there is none or more than one, if it
        cannot be read, or if another recording has taken it; MisalignedError if its length does
        not fit."""
        path = self._named_as(recording, relative)
        if (other := self._taken.setdefault(path, recording)) != recording:
            raise UserError(
                f"{path}: would be the mel of {other} and of {recording}; keep the "
                "recordings' sub-folders below the mels' folder too"
            )
        _check_aligned(path, recording, n_samples, config)
        return path

    def _named_as(self, recording: Path, relative: Path) -> Path:
        for start in range(len(relative.parts)):
            folders = relative.parts[start:-1]
            for paths in (self._own, self._other):
                names = (relative.stem, relative.name)
                found = {path for name in names for path in paths.get((*folders, name), ())}
                if len(found) > 1:
                    one, two, *_ = sorted(found)
                    raise UserError(
                        f"{recording}: {one} and {two} are both named as its mel may be; keep one"
                    )
                if found:
                    return found.pop()
        (example, *_), *_ = self._own.values()
        raise UserError(
            f"{recording}: no mel in {self._folder} is named as it is, as {relative.stem}.npy "
            f"would be; there are others, such as {example.name}"
        )


def _other_names(mel: str) -> set[str]:
    """Names of recordings, other than `mel` itself, that a mel of this name may belong to."""
    found = _OTHER_NAMES.fullmatch(mel)
    name = (found["behind"] or found["before"]) if found else mel
    # The mel may come from an earlier format of the recording: u00.flac.pt for today's u00.wav.
    bare = Path(name).stem if Path(name).suffix.lower() in AUDIO_SUFFIXES else name
    return {name, bare} - {mel}


class MisalignedError(UserError):
    """A mel that cannot belong to its recording."""


def _check_aligned(path: Path, recording: Path, n_samples: int, config: Config) -> None:
    frames = len(read_mel(path, config.waveglow.n_mel_channels))
    hop = config.data.hop_length
    whole = config.data.frames_of(n_samples)
    if not whole - 1 <= frames <= whole:
        raise MisalignedError(
            f"{path}: {frames} frames, but {recording} has {n_samples} samples, which are {whole} "
            f"frames of {hop} (or {whole - 1} without the last); make the mels along these very "
            "recordings, with data_config's hop_length and sampling_rate"
        )


def mel_frames(path: Path, n_samples: int, first: int, count: int, config: Config) -> np.ndarray:
    """`[count, M]` frames of a mel file from frame `first` on, for a recording of n_samples.

    If the file lacks the recording's last frame, the one before is repeated; frames beyond the
    recording are silent.
    """
    mel = read_mel(path, config.waveglow.n_mel_channels)
    whole = config.data.frames_of(n_samples)
    mel = np.pad(mel, ((0, max(0, whole - len(mel))), (0, 0)), mode="edge")[first : first + count]
    silence = ((0, count - len(mel)), (0, 0))
    return np.pad(mel, silence, constant_values=np.float32(config.data.mel.lowest))


def resemblance(pairs: Sequence[tuple[Path, int, Path]], config: Config) -> list[str]:
    """Compares a few given mels with the recordings' own; a sentence per problem.

    The given mels may be blurred, but must not be shifted in time, on another scale, or of
    something else.

    pairs: a recording, its number of samples, and its mel.
    """
    few = [pairs[i * len(pairs) // LOOKED_AT] for i in range(LOOKED_AT)]
    other = _on_other_grid(config)
    lags, likenesses, levels, on_other = [], [], [], []
    for recording, n_samples, path in dict.fromkeys(few):
        given, own = _given_and_own(recording, n_samples, path, config)
        best_lag, likeness = _best_lag(given, own)
        lags.append(best_lag)
        likenesses.append(likeness)
        levels.append(_level(given, config) - _level(own, config))
        if other:
            shifted = _own_mel(recording, n_samples, other)
            unexplained = 1 - _best_lag(given, shifted)[1]
            on_other.append(unexplained < _OTHER_GRID * (1 - likeness))
    lag, alike, level = (float(np.median(each)) for each in (lags, likenesses, levels))
    told = f"over {number_of(len(lags), 'recording')}"
    if alike < _ALIKE:
        return [
            f"the mels hardly follow the recordings' loudness (correlation {alike:.2f}, {told})"
        ]
    found = []
    if other and np.mean(on_other) > 0.5:
        return [
            f"the mels' frames are {other.data.mel.frames}, those of the config are "
            f"{config.data.mel.frames} ({told}): set data_config.mel.frames, or make the mels anew"
        ]
    if lag:
        found.append(f"the mels come {abs(lag):g} frames {'late' if lag > 0 else 'early'} ({told})")
    if abs(level) > _SAME_LEVEL:
        found.append(
            f"the mels lie {level:+.1f} beside the recordings' own ({told}): they must be "
            f"{_as_written(config)}"
        )
    return found


def _level(mel: np.ndarray, config: Config) -> float:
    """The mean level of a mel, as the natural logarithm of a band."""
    form = config.data.mel
    if form.log == "none":
        return float(np.log(max(float(np.mean(mel) - form.offset) / form.gain, 1e-30)))
    return float(np.mean(mel) - form.offset) / form.slope


def _as_written(config: Config) -> str:
    if config.data.mel == MelConfig():
        return "natural logarithms of magnitudes, from -11.5 in silence to about 2"
    form = config.data.mel
    return f"written as data_config.mel says ({form.log_named}), {form.lowest:.4g} in silence"


def _on_other_grid(config: Config) -> Config | None:
    """The config with its frames half a hop earlier or later; None where no such frames exist."""
    data = config.data
    if data.hop_length % 2 or data.hop_length > data.filter_length:
        return None
    mel = replace(data.mel, frames="centred" if data.mel.late else HALF_HOP)
    return replace(config, data=replace(data, mel=mel))


def _best_lag(given: np.ndarray, own: np.ndarray) -> tuple[int, float]:
    """The lag in frames at which the loudness of two mels is most alike, and its correlation."""
    by_lag = {lag: _correlation(given.mean(axis=1), own.mean(axis=1), lag) for lag in _LAGS}
    lag = max(by_lag, key=by_lag.__getitem__)
    return lag, by_lag[lag]


def _given_and_own(
    recording: Path, n_samples: int, path: Path, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """The given and the computed mel `[F, M]` of the recording's beginning."""
    own = _own_mel(recording, n_samples, config)
    return mel_frames(path, n_samples, 0, len(own), config), own


def _own_mel(recording: Path, n_samples: int, config: Config) -> np.ndarray:
    """The computed mel `[F, M]` of the recording's beginning."""
    longest = int(_LOOKED_AT_SECONDS * config.data.sampling_rate)
    audio = read_clip(recording, 0, min(n_samples, longest))
    frames = max(1, len(audio) // config.data.hop_length)
    own = compiled_log_mel(np.pad(audio, (0, longest - len(audio))), config)
    return np.asarray(own)[:frames]


@jax.jit(static_argnums=1)
def compiled_log_mel(audio: jax.Array, config: Config) -> jax.Array:
    """As `log_mel`, compiled for each length of the audio."""
    return log_mel(audio, config)


def _correlation(given: np.ndarray, own: np.ndarray, lag: int) -> float:
    """The correlation of given[f + lag] with own[f] over f; 0 where there is none.

    That is so if fewer than 2 frames overlap, or if either does not change.
    """
    given, own = overlap(given, own, lag)
    return float(np.nan_to_num(pearson(given, own))) if len(own) >= 2 else 0.0
