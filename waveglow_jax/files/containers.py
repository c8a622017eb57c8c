"""Checks of a sound file's container, made before a decoder trusts its headers.

libsndfile trusts headers: it reads a truncated file to its end without an error, stops where a
header that was never filled in says so, and ignores audio that was appended to the file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from waveglow_jax.errors import UserError
from waveglow_jax.files.inputs import CONVERT

# Programs that write to a pipe put a length into the header that real files hardly have: GStreamer
# 0x7fff0000, SoX 0x7ffff000, arecord 0x80000000, ffmpeg 0xffffffff, and others a little less.
_ENDLESS = 0x7FFF0000
# A length also counts as a placeholder if it is at least _FAR bytes and at least _FAR_TIMES the
# bytes that are there.
_FAR, _FAR_TIMES = 1 << 28, 64
# Programs that count one or all headers into the length are off by this many bytes. A truncated
# file hardly ever lacks exactly that many.
_HEADERS = range(8, 37)
# A file of zeros would give an endless series of chunks.
_MOST_CHUNKS = 10_000

_RIFF_FORMS, _AU = ("<I", ">I"), b".snd"


@dataclass(frozen=True)
class Container:
    """How to give a sound file to the decoder.

    parts: contents to decode one after the other instead of the file; empty: the file itself.
    counted: the number of samples in its frames where the header does not give it; the decoder's
        own count is then unreliable.
    note: a warning for the user about a file that is read all the same; empty if there is none.
    mpeg: whether it is a stream of MPEG frames, or may be taken for one.
    sure: whether the decoder's count, where it is used, needs no verification by decoding.
    """

    parts: tuple[bytes, ...] = ()
    counted: int | None = None
    note: str = ""
    mpeg: bool = False
    sure: bool = True


def inspect(path: Path) -> Container:
    """Inspects a sound file's container; raises UserError if it is truncated or malformed.

    Formats that this module does not know go to the decoder as they are. Raises OSError.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        file.seek(0)
        if (chunks := _chunked(head, file, path, size)) is not None:
            return chunks
        if head.startswith(b"OggS"):
            return _ogg(file.read(), path)
        if head.startswith(b"ID3") or head[:1] == b"\xff" or path.suffix.lower() == ".mp3":
            return _mpeg(file.read(), path)
        return Container(mpeg=not head.startswith(b"fLaC"))


# ------------------------------------------------------------------------------ chunks


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a RIFF, AIFF, CAF or Wave64 file.

    Its content begins at `start`. Its `length` (None: up to the end of the file) is stored at
    `field` in struct's format `form`; the stored number also counts `counts_also` bytes of the
    chunk's own header.
    """

    name: bytes
    start: int
    length: int | None
    field: int
    form: str
    counts_also: int = 0


def _chunked(head: bytes, file: IO[bytes], path: Path, size: int) -> Container | None:
    """Checks a format that gives its sound's length in bytes; None for other formats."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        chunks, name = _riff_chunks(file, "<I", size), b"data"
    elif head[:4] == b"RIFX" and head[8:] == b"WAVE":
        chunks, name = _riff_chunks(file, ">I", size), b"data"
    elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        chunks, name = _riff_chunks(file, ">I", size), b"SSND"
    elif head[:4] == b"caff":
        chunks, name = _caf_chunks(file, size), b"data"
    elif head[:4] == b"riff":
        chunks, name = _wave64_chunks(file, size), b"data"
    elif head[:4] in (b".snd", b"dns.") and len(head) == 12:
        order = ">" if head[:4] == b".snd" else "<"
        start, length = struct.unpack(order + "II", head[4:])
        chunks, name = iter([_Chunk(_AU, start, length, 8, order + "I")]), _AU
    else:
        return None
    for _, chunk in zip(range(_MOST_CHUNKS), chunks, strict=False):
        if chunk.name == name:
            return _measured(chunk, file, path, size)
        if not _is_name(chunk.name):
            break
        if chunk.form in _RIFF_FORMS and chunk.length and chunk.length % 2:
            _check_pad(chunk, file, path)
    raise UserError(f"{path}: cut short before its sound begins; copy it again")


def _check_pad(chunk: _Chunk, file: IO[bytes], path: Path) -> None:
    """Refuses a chunk of odd length without its pad byte; restores the file's position."""
    place = file.tell()
    file.seek(chunk.start + (chunk.length or 0))
    following = file.read(4)
    file.seek(place)
    if _is_name(following) and following[:1].isalnum():
        said = chunk.name.decode("ascii").strip()
        raise UserError(
            f"{path}: its chunk '{said}' has an odd length and no pad byte behind it, so that "
            f"what follows is not where it should be; convert it with: {CONVERT}"
        )


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _riff_chunks(file: IO[bytes], form: str, size: int) -> Iterator[_Chunk]:
    file.seek(12)
    long = None
    while len(head := file.read(8)) == 8:
        name, length = head[:4], struct.unpack(form, head[4:])[0]
        start = file.tell()
        chunk = _Chunk(name, start, length, start - 4, form)
        if name == b"ds64" and len(sizes := file.read(16)) == 16:  # holds the 64-bit sizes
            long = _Chunk(b"data", 0, struct.unpack("<Q", sizes[8:])[0], start + 8, "<Q")
        if name == b"data" and length == 0xFFFFFFFF:
            chunk = replace(long, start=start) if long else replace(chunk, length=None)
        yield chunk
        if start + length > size:
            return
        file.seek(start + length + length % 2)


def _caf_chunks(file: IO[bytes], size: int) -> Iterator[_Chunk]:
    file.seek(8)
    while len(head := file.read(12)) == 12:
        length = struct.unpack(">q", head[4:])[0]
        start = file.tell()
        yield _Chunk(head[:4], start, None if length < 0 else length, start - 8, ">q")
        if length < 0 or start + length > size:
            return
        file.seek(start + length)


def _wave64_chunks(file: IO[bytes], size: int) -> Iterator[_Chunk]:
    file.seek(40)
    while len(head := file.read(24)) == 24:
        length = struct.unpack("<Q", head[16:])[0] - 24  # it counts its own header
        start = file.tell()
        yield _Chunk(head[:4], start, max(0, length), start - 8, "<Q", 24)
        if not 0 <= length <= size - start:
            return
        file.seek(start + length + -length % 8)


def _measured(chunk: _Chunk, file: IO[bytes], path: Path, size: int) -> Container:
    """Compares the length that the sound's chunk gives with the bytes that are there."""
    there = size - chunk.start
    if there <= 0 and not chunk.length:
        return Container()
    if chunk.length == 0:
        empty = chunk.form in _RIFF_FORMS and _ends_in_chunks(chunk, file, size)
        return Container() if empty else _untold(chunk, file, path, size)
    if chunk.length is None:
        return _untold(chunk, file, path, size)
    missing = chunk.length - there
    if missing <= 0:
        return Container()
    there = max(0, there)
    endless = chunk.length & 0x7FFFFFFF >= _ENDLESS or 0 <= chunk.length - 0x80000000 <= 4096
    if there and endless and chunk.form in _RIFF_FORMS:
        return _untold(chunk, file, path, size)
    far = chunk.length >= max(_FAR, _FAR_TIMES * there)
    if there and (far or missing in _HEADERS or chunk.length in (size, size - 8)):
        note = f"its header promises {missing} bytes more than there are; it was read to its end"
        return replace(_to_the_end(chunk, file, size), note=f"{path}: {note}")
    raise UserError(
        f"{path}: cut short, {there} of {chunk.length} bytes of sound are there; copy it again"
    )


def _untold(chunk: _Chunk, file: IO[bytes], path: Path, size: int) -> Container:
    """Reads to the end of a file whose header does not give the sound's length.

    WAV and AIFF often come from pipes, so they get no note. Other formats without a length are
    more often truncated files, so they get one.
    """
    found = _to_the_end(chunk, file, size)
    if chunk.form in _RIFF_FORMS and chunk.name != _AU:
        return found
    note = "its header does not say how long it is, so that it may be cut short; it was read as is"
    return replace(found, note=f"{path}: {note}")


def _ends_in_chunks(chunk: _Chunk, file: IO[bytes], size: int) -> bool:
    """Whether only further chunks, and no sound, follow an empty chunk up to the file's end."""
    place = chunk.start
    for _ in range(_MOST_CHUNKS):
        if place >= size:
            break
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or not _is_name(head[:4]):
            return False
        length = struct.unpack(chunk.form, head[4:])[0]
        place += 8 + length + length % 2
    return place == size


def _to_the_end(chunk: _Chunk, file: IO[bytes], size: int) -> Container:
    """The file with its true length in the header, unless libsndfile stops at its end anyway."""
    if chunk.length != 0 and chunk.form in _RIFF_FORMS and chunk.name != _AU:
        return Container()
    file.seek(0)
    content = bytearray(file.read())
    length = size - chunk.start + chunk.counts_also
    most = 0x7FFFFFFF if chunk.form in _RIFF_FORMS else 2**62
    struct.pack_into(chunk.form, content, chunk.field, min(length, most))
    return Container((bytes(content),))


# ------------------------------------------------------------------------------ Ogg


def _ogg(content: bytes, path: Path) -> Container:
    """Checks the pages and splits a chain into its links: libsndfile decodes only the first."""
    starts, place, flags, after_first_page = [0], 0, 0, False
    while (place := content.find(b"OggS", place)) >= 0:
        head = content[place : place + 27]
        sizes = content[place + 27 : place + 27 + head[26]] if len(head) == 27 else b""
        end = place + 27 + (head[26] + sum(sizes) if sizes else 0)
        if len(head) < 27 or len(sizes) < head[26] or end > len(content):
            raise UserError(f"{path}: cut short in the middle of a page; copy it again")
        flags = head[5]
        begins = bool(flags & 2)
        if begins and after_first_page:
            starts.append(place)
        after_first_page = not begins
        place = end
    note = ""
    if not flags & 4:
        note = f"{path}: has no mark at its end, so that it may be cut short; it was read as it is"
    if len(starts) == 1:
        return Container(note=note)
    ends = [*starts[1:], len(content)]
    parts = tuple(content[a:b] for a, b in zip(starts, ends, strict=True))
    return Container(parts, note=note)


# ------------------------------------------------------------------------------ MPEG

_RATES = (44100, 48000, 32000)
# kbit/s by (version 1, layer).
_BITRATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True)
class _Frame:
    """A frame of MPEG audio: its bytes, its samples, and where its side information ends.

    kind: version, layer and rate, which all frames of a stream share.
    """

    kind: tuple[bool, int, int]
    size: int
    samples: int
    side_end: int


def _frame(content: bytes, place: int) -> _Frame | None:
    """The frame whose header lies at `place`; None if none does."""
    if place + 4 > len(content) or content[place] != 0xFF or content[place + 1] < 0xE0:
        return None
    _, second, third, fourth = content[place : place + 4]
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bitrate, rate = third >> 4, third >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    first = version == 3
    hertz = _RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    bits = 1000 * _BITRATES[first, layer][bitrate - 1]
    padding = third >> 1 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and not first else 1152
    size = (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz
    mono = fourth >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return _Frame((first, layer, hertz), size + (padding if layer > 1 else 0), samples, 4 + side)


def _mpeg(content: bytes, path: Path) -> Container:
    """Counts the frames. Where the header does not give their number, returns the frames alone.

    Without that number, libsndfile guesses it and stops there, which is in the middle of a
    recording with a variable bit rate. Where files were joined, it takes the first one's number
    for all of them.
    """
    place = _behind_tags(content, 0)
    start, first = _next_frame(content, place, None)
    if first is None:
        return Container(
            mpeg=True
        )  # another format, or an unreadable file: the decoder reports which it is
    promised = _promised(content, start, first)
    place = start + (first.size if promised is not None else 0)  # the header's frame holds no sound
    frames: list[bytes] = []
    broken = False
    while place < len(content):
        frame = _frame(content, place)
        if frame is None or frame.kind != first.kind:
            place, frame = _next_frame(content, _behind_tags(content, place), first.kind)
        if frame is None:
            break
        if place + frame.size > len(content):
            broken = True
            break
        frames.append(content[place : place + frame.size])
        place += frame.size
    if promised is not None and promised == len(frames):
        return Container(mpeg=True)
    # Some programs also count the frame that holds the header.
    if promised is not None and promised > len(frames) + (0 if broken else 1):
        return Container(mpeg=True, sure=False)
    note = "ends in the middle of a frame, so that it may be cut short; it was read to there"
    return Container(
        (b"".join(frames),),
        len(frames) * first.samples,
        f"{path}: {note}" if broken else "",
        mpeg=True,
    )


def _next_frame(
    content: bytes, place: int, kind: tuple[bool, int, int] | None
) -> tuple[int, _Frame | None]:
    """The next frame (of this kind) that is followed by another one or by the end of the file."""
    while (place := content.find(b"\xff", place)) >= 0:
        frame = _frame(content, place)
        if frame and kind in (None, frame.kind):
            following = _frame(content, place + frame.size)
            if place + frame.size >= len(content) or (following and following.kind == frame.kind):
                return place, frame
        place += 1
    return len(content), None


def _behind_tags(content: bytes, place: int) -> int:
    """The position after the ID3 and APE tags that begin at `place`."""
    while True:
        head = content[place : place + 32]
        if head.startswith(b"ID3") and len(head) >= 10:
            size = 0
            for byte in head[6:10]:
                size = size << 7 | byte & 0x7F
            place += 10 + size + (10 if head[5] & 0x10 else 0)
        elif head.startswith(b"APETAGEX") and len(head) == 32:
            place += 32 + struct.unpack("<I", head[12:16])[0]
        elif head.startswith(b"TAG") and len(content) - place >= 128:
            place += 128
        else:
            return place


def _promised(content: bytes, start: int, first: _Frame) -> int | None:
    """The number of frames that a Xing or Info header gives; -1: it gives none; None: no header."""
    for at in (start + first.side_end, start + first.side_end + 2):  # 2: a checksum
        if content[at : at + 4] in (b"Xing", b"Info") and at + 12 <= len(content):
            flags, frames = struct.unpack(">II", content[at + 4 : at + 12])
            return frames if flags & 1 else -1
    if content[start + 36 : start + 40] == b"VBRI":  # libsndfile ignores its count
        return -1
    return None
