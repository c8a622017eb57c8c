"""Rebuilds the training corpus of the bundled voice from Debian's packages of recorded speech.

    python benchmarks/assets/build_corpus.py -o CORPUS

It needs apt-get (or the packages, with --debs), dpkg-deb and ffmpeg. CORPUS/train has a folder for
each of five speakers, and CORPUS/heldout has the last 62 utterances of one of them, which are never
trained on. The recordings are `festvox-ru` (one man, read speech, BSD-like licence) and the
English, French, Spanish and Russian `asterisk-core-sounds` (four women, prompts; CC-BY-SA-3.0,
Russian CC-BY-3.0), all at 16 kHz. It downloads about 200 MB and makes 3 hours of audio in a few
minutes. A repeated run does not redo finished work.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from waveglow_jax.audio.prepare import prepare
from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import replacing, write_text
from waveglow_jax.files.inputs import find_inputs
from waveglow_jax.files.sound import audio_frames

SPEAKERS = {
    "festvox-ru": "ru_m_festvox",
    "asterisk-core-sounds-en-g722": "en_f",
    "asterisk-core-sounds-fr-g722": "fr_f",
    "asterisk-core-sounds-es-g722": "es_f",
    "asterisk-core-sounds-ru-g722": "ru_f",
}
FIRST_HELD_OUT = 755  # utterances ru_0755 and later
HELD_OUT = 62
LEVEL_DBFS = -22.0
# Prompts that are not speech: tones, and a troop of monkeys. The folder `silence` holds silence.
NOT_SPEECH = {
    *("beep", "beeperr", "ascending-2tone", "descending-2tone"),
    *("confbridge-join", "confbridge-leave", "tt-monkeys"),
}


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a program. Raises UserError with the last line that it printed if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise UserError(f"{' '.join(map(str, command[:2]))} failed: {said[-1]}")


def need(program: str, remedy: str) -> None:
    if not shutil.which(program):
        raise UserError(f"{program} is not installed; {remedy}")


def packages(debs: Path, download: bool) -> dict[str, Path]:
    """The .deb file of each package in `debs`; missing ones are downloaded there if allowed."""
    found = {}
    for name in SPEAKERS:
        if download and not list(debs.glob(f"{name}_*.deb")):
            need("apt-get", "download the packages elsewhere and name their folder with --debs")
            debs.mkdir(parents=True, exist_ok=True)
            print(f"downloading {name}", flush=True)
            run("apt-get", "download", name, cwd=debs)
        files = sorted(debs.glob(f"{name}_*.deb"))
        if len(files) != 1:
            raise UserError(f"{debs}: {len(files)} files {name}_*.deb, one expected")
        found[name] = files[0]
    return found


def unpack(deb: Path, folder: Path) -> Path:
    """Unpacks a package without installing it."""
    if not folder.is_dir():
        # Renamed when complete, so that an interrupted run is not taken for a finished one.
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        run("dpkg-deb", "-x", deb, partial)
        partial.rename(folder)
    return folder


def decode(source: Path, target: Path) -> None:
    """Decodes G.722 (64 kbit/s, 16 kHz, mono, no header) to WAV, with the source's file time."""
    if target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns:
        return
    with replacing(target) as temporary:
        run("ffmpeg", "-nostdin", "-v", "error", "-y", "-f", "g722", "-i", source, temporary)
        stat = source.stat()
        os.utime(temporary, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def copy(source: Path, target: Path) -> None:
    if not target.exists() or target.stat().st_mtime_ns != source.stat().st_mtime_ns:
        with replacing(target) as temporary:
            shutil.copy2(source, temporary)


def stage(unpacked: dict[str, Path], folder: Path, workers: int) -> None:
    """Lays out `folder`/train/SPEAKER and `folder`/heldout as 16 kHz WAV files."""
    jobs = []
    for name, root in unpacked.items():
        speaker = folder / "train" / SPEAKERS[name]
        if name == "festvox-ru":
            for source in sorted(root.rglob("wav/ru_*.wav")):
                held_out = int(source.stem.removeprefix("ru_")) >= FIRST_HELD_OUT
                place = folder / "heldout" if held_out else speaker
                jobs.append((copy, source, place / source.name))
            continue
        voices = list((root / "usr/share/asterisk/sounds").iterdir())
        if len(voices) != 1:
            raise UserError(f"{root}: {len(voices)} voices, one expected; the package has changed")
        for source in sorted(voices[0].rglob("*.g722")):
            place = source.relative_to(voices[0])
            if place.parts[0] != "silence" and source.stem not in NOT_SPEECH:
                jobs.append((decode, source, speaker / place.with_suffix(".wav")))
    held_out = sum(target.parent.name == "heldout" for _, _, target in jobs)
    if held_out != HELD_OUT:
        raise UserError(
            f"festvox-ru: {held_out} utterances to hold out, {HELD_OUT} expected; "
            "the package has changed"
        )
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda job: job[0](*job[1:]), jobs):
            pass


def hours(folder: Path) -> dict[str, tuple[int, float]]:
    """(files, hours) of each speaker's folder."""
    result = {}
    for speaker in sorted(path for path in folder.iterdir() if path.is_dir()):
        frames = [audio_frames(item.path, 22050) for item in find_inputs([speaker], [".wav"])]
        result[speaker.name] = (len(frames), sum(frames) / 22050 / 3600)
    return result


def build(output: Path, debs: Path | None, workers: int) -> list[str]:
    """Builds the corpus and returns the lines of its summary."""
    need("dpkg-deb", "install the package dpkg")
    need("ffmpeg", "install the package ffmpeg")
    source = output / "source"
    found = packages(debs or source / "debs", download=debs is None)
    source.mkdir(parents=True, exist_ok=True)
    unpacked = {name: unpack(deb, source / name) for name, deb in found.items()}
    print("decoding", flush=True)
    stage(unpacked, source / "recordings", workers)
    lines = []
    for part in ("heldout", "train"):
        print(f"preparing {part}", flush=True)
        report = prepare(
            [source / "recordings" / part], output / part, level_dbfs=LEVEL_DBFS, workers=workers
        )
        reasons = Counter(reason.split(":")[0] for _, reason in report.left_out)
        left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"
        lines.append(
            f"{part}: {report.written + report.kept} files, {report.seconds / 3600:.3f} h; "
            f"left out: {left_out}"
        )
        if part == "heldout" and report.written + report.kept != HELD_OUT:
            raise UserError(f"{output / part}: not all {HELD_OUT} held-out files could be prepared")
    for speaker, (count, time) in hours(output / "train").items():
        lines.append(f"  {speaker}: {count} files, {time:.3f} h")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="CORPUS")
    parser.add_argument("--debs", type=Path, help="folder that has the .deb files already")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    try:
        lines = build(args.output, args.debs, args.workers)
        write_text(args.output / "DONE", "\n".join(lines) + "\n")
    except UserError as error:
        print(f"build_corpus: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
