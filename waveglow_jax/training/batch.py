"""A batch of clips, as it is read, split over devices and fed to a step."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """R clips of a global batch of B. An array that is not needed is None.

    clips: `[R, segment + context]` float32, a training clip with half an FFT of its recording on
    either side. index: `[R]` the clips' places in the global batch. mel: `[R, F, M]`, where the
    recordings come with mels. weight: `[R]`, 0 for the clips that only fill up a validation batch.
    unreadable: `[R]` the number of the recording that the clip replaces because it could not be
    read, -1 for none. notes: `{name: [R]}`, which no step looks at: their sums over all devices
    are added to the step's metrics, so that processes tell one another something at no cost.
    """

    clips: Any
    index: Any
    mel: Any = None
    weight: Any = None
    unreadable: Any = None
    notes: Any = None
