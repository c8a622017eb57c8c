"""Mels that an acoustic model made, in the place of the recordings' own: found, checked, cut.

A voice trained on the mels that a text-to-speech model predicts (along the recording's own timing,
"ground-truth aligned") learns to make up for that model's blur.

A recording of N samples has 1 + N // hop frames, frame f centred on sample f * hop. Many models
drop the last of them: N // hop frames are as good, and the last one is repeated. Any other number
is the mark of another hop, rate, trimming or recording, and is refused.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from waveglow_jax.audio.mel import LOG_FLOOR, log_mel
from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, MEL_SUFFIXES, find_inputs
from waveglow_jax.files.mels import read_mel
from waveglow_jax.files.sound import read_clip

LOOKED_AT = 5
"""Recordings whose mel is compared with their own."""

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


class MelFolder:
    """The mels below a folder, one a recording, at the recording's relative path or the end of it:
    `a/b/c.wav` takes `a/b/c.npy`, or else `b/c.npy`, or else `c.npy`.

    In the place of `c` there may be the recording's full name (`c.wav.pt`, as the original writes
    it) or, without either, a name that another program gives (`mel_c.npy`, `c-feats.npy` ...).
    Only one file may be named so.
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
        """A recording's mel. Raises UserError if there is none or more than one, it cannot be read,
        or another recording has it already; MisalignedError if it is of another length."""
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
    """The recordings, by name, that a mel of this name may belong to though it is not their own."""
    found = _OTHER_NAMES.fullmatch(mel)
    name = (found["behind"] or found["before"]) if found else mel
    # The mel may be older than the recording's present form: u00.flac.pt, of what is u00.wav now.
    bare = Path(name).stem if Path(name).suffix.lower() in AUDIO_SUFFIXES else name
    return {name, bare} - {mel}


class MisalignedError(UserError):
    """A mel that cannot belong to its recording."""


def _check_aligned(path: Path, recording: Path, n_samples: int, config: Config) -> None:
    frames = len(read_mel(path, config.waveglow.n_mel_channels))
    hop = config.data.hop_length
    whole = 1 + n_samples // hop
    if not whole - 1 <= frames <= whole:
        raise MisalignedError(
            f"{path}: {frames} frames, but {recording} has {n_samples} samples, which are {whole} "
            f"frames of {hop} (or {whole - 1} without the last); make the mels along these very "
            "recordings, with data_config's hop_length and sampling_rate"
        )


def mel_frames(path: Path, n_samples: int, first: int, count: int, config: Config) -> np.ndarray:
    """`[count, M]` of a mel file, from frame `first` on, for a recording of n_samples. The last
    frame stands for the one that may be missing; beyond the recording there is silence."""
    mel = read_mel(path, config.waveglow.n_mel_channels)
    whole = 1 + n_samples // config.data.hop_length
    mel = np.pad(mel, ((0, max(0, whole - len(mel))), (0, 0)), mode="edge")[first : first + count]
    silence = ((0, count - len(mel)), (0, 0))
    return np.pad(mel, silence, constant_values=np.log(np.float32(LOG_FLOOR)))


def resemblance(pairs: Sequence[tuple[Path, int, Path]], config: Config) -> list[str]:
    """What looks wrong about a few of the mels beside the recordings' own: a sentence each. They
    may be blurred, but not late, of another scale, or of something else.

    pairs: a recording, its number of samples, and its mel.
    """
    few = [pairs[i * len(pairs) // LOOKED_AT] for i in range(LOOKED_AT)]
    lags, likenesses, levels = [], [], []
    for recording, n_samples, path in dict.fromkeys(few):
        given, own = _given_and_own(recording, n_samples, path, config)
        by_lag = {lag: _correlation(given.mean(axis=1), own.mean(axis=1), lag) for lag in _LAGS}
        lags.append(max(by_lag, key=by_lag.__getitem__))
        likenesses.append(max(by_lag.values()))
        levels.append(float(np.mean(given) - np.mean(own)))
    lag, alike, level = (float(np.median(each)) for each in (lags, likenesses, levels))
    told = f"over {len(lags)} recordings"
    if alike < _ALIKE:
        return [
            f"the mels hardly follow the recordings' loudness (correlation {alike:.2f}, {told})"
        ]
    found = []
    if lag:
        found.append(f"the mels come {abs(lag):g} frames {'late' if lag > 0 else 'early'} ({told})")
    if abs(level) > _SAME_LEVEL:
        found.append(
            f"the mels lie {level:+.1f} beside the recordings' own ({told}): they must be natural "
            "logarithms of magnitudes, from -11.5 in silence to about 2"
        )
    return found


def _given_and_own(
    recording: Path, n_samples: int, path: Path, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Both mels `[F, M]` of the recording's beginning."""
    longest = int(_LOOKED_AT_SECONDS * config.data.sampling_rate)
    audio = read_clip(recording, 0, min(n_samples, longest))
    frames = max(1, len(audio) // config.data.hop_length)
    own = _log_mel(np.pad(audio, (0, longest - len(audio))), config)
    return mel_frames(path, n_samples, 0, frames, config), np.asarray(own)[:frames]


@jax.jit(static_argnums=1)
def _log_mel(audio: jax.Array, config: Config) -> jax.Array:
    return log_mel(audio, config)


def _correlation(given: np.ndarray, own: np.ndarray, lag: int) -> float:
    """Of given[f + lag] with own[f]."""
    n = len(own) - abs(lag)
    if n < 2:
        return 0.0
    a, b = given[max(lag, 0) :][:n], own[max(-lag, 0) :][:n]
    a, b = a - a.mean(), b - b.mean()
    return float(np.sum(a * b) / (np.sqrt(np.sum(a * a) * np.sum(b * b)) + 1e-9))
