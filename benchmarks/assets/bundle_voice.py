"""Puts a run's best checkpoint and the demo's recordings where the package looks for its voice.

python benchmarks/assets/bundle_voice.py RUN CORPUS/heldout

The weights are stored in float16. The picture of the model card is drawn from the first recording.
The card's own figures come from report_voice.py, which must be run afterwards.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

import waveglow_jax as wg
from waveglow_jax.audio.picture import mel_figure
from waveglow_jax.files.atomic import replacing
from waveglow_jax.files.sound import read_audio
from waveglow_jax.weights.release import BUNDLED_VOICE, save

DEMO = ("ru_0773", "ru_0806")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("heldout", type=Path)
    arguments = parser.parse_args()

    trained = wg.load(arguments.run)
    # The path of the run's validation set is of no use to anybody else.
    train = dataclasses.replace(trained.config.train, validation_files="")
    config = dataclasses.replace(trained.config, train=train)
    save(BUNDLED_VOICE, config, trained.params, dtype="float16")

    recordings = BUNDLED_VOICE / "recordings"
    recordings.mkdir(exist_ok=True)
    for name in DEMO:
        shutil.copyfile(arguments.heldout / f"{name}.wav", recordings / f"{name}.wav")

    voice = wg.load()
    audio = read_audio(recordings / f"{DEMO[0]}.wav", config.data.sampling_rate)
    mel = voice.mel(audio)
    corrected = f"its synthesis with {config.synthesis.consistency} corrections"
    mels = [
        (f"{DEMO[0]}, the recording", mel),
        ("the flow's own sample", voice.mel(voice.synthesize(mel, consistency=0))),
        (corrected, voice.mel(voice.synthesize(mel))),
    ]
    figure = mel_figure(mels, config.data)
    with replacing(BUNDLED_VOICE / "held_out.png") as temporary:
        figure.savefig(temporary)


if __name__ == "__main__":
    main()
