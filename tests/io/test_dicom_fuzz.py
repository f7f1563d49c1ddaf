"""Mutated files: each is read, or refused with a code; nothing crashes, hangs, or takes memory without bound."""

import os
import random
import resource
import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import highdicom
import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medsynth.errors import UnreadableImage
from medsynth.io import dicom
from medsynth.io.dicom.headers import scan
from tests.make_dicom import coloured, compressed, enhanced, save, slices, store, stored

MUTANTS = 20_000
SECONDS = 20  # for one file
BYTES = 2 * 2**30
CHUNK = 250


class Hang(BaseException):
    """No Exception: the reader would turn that into a refusal."""


def bases(folder: Path) -> list[Path]:
    """One file of each kind: encodings, compressions, a radiograph, an enhanced object, colour, a segmentation."""

    def one(name: str, **values: object) -> Path:
        syntax = values.pop("syntax", None)
        encode = values.pop("encode", None)
        (data,) = slices(1, modality="CR", shape=(48, 40), ImagerPixelSpacing=[1, 1], PatientName="A^B", **values)
        if encode or syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
            store(data, stored(data) - 1900, "u1" if syntax == JPEGBaseline8Bit else "u2")
        save([data], folder, name=lambda _: name)  # pydicom's encoders ask for file meta information
        if encode:
            compressed([data], encode)
        elif syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
            data.compress(syntax, generate_instance_uid=False)
        return Path(save([data], folder, name=lambda _: name, **({"syntax": syntax} if syntax else {}))[0])

    found = [
        one("explicit", RescaleSlope=1, RescaleIntercept=-3),
        one("implicit", syntax=ImplicitVRLittleEndian),
        one("big", syntax=ExplicitVRBigEndian),
        one("deflated", syntax=DeflatedExplicitVRLittleEndian),
        one("rle", syntax=RLELossless),
        one("j2k", syntax=JPEG2000Lossless),
        one("jpegls", syntax=JPEGLSLossless),
        one("htj2k", syntax=HTJ2KLossless, encode=partial(imagecodecs.htj2k_encode, reversible=True)),
        one("lossless", syntax=JPEGLosslessSV1, encode=partial(imagecodecs.jpeg8_encode, lossless=True, predictor=1)),
        one("baseline", syntax=JPEGBaseline8Bit, encode=imagecodecs.jpeg8_encode),
    ]
    found += map(Path, save([enhanced(4)], folder, name=lambda _: "enhanced"))
    found += map(Path, save(coloured(slices(1, modality="CR", ImagerPixelSpacing=[1, 1])), folder, name=lambda _: "colour"))
    return [*found, segmentation(folder)]


def segmentation(folder: Path) -> Path:
    files = save(slices(3), folder / "images")
    images = [pydicom.dcmread(file) for file in files]
    for image in images:
        image.SliceThickness = 2.0
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
            setattr(image, keyword, "")
    tissue = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    segment = highdicom.seg.SegmentDescription(1, "a", tissue, tissue, "MANUAL")
    labels = np.ones((3, 12, 10), np.uint8)
    made = highdicom.seg.Segmentation(
        images, labels, "BINARY", [segment], "1.2.9.1", 1, "1.2.9.2", 1, "m", manufacturer_model_name="m", software_versions="1",
        device_serial_number="1",
    )  # fmt: skip
    made.save_as(folder / "segmentation")
    return folder / "segmentation"


def mutated(originals: Sequence[bytes], seed: int) -> bytes:
    """One to six changes: bits, bytes, lengths, value representations, a cut, pieces moved within or between files."""
    chance = random.Random(seed)
    content = bytearray(chance.choice(originals))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(128, max(len(content), 130))
        kind = chance.randrange(8)
        if kind == 0:
            content[at : at + 1] = bytes([content[at % len(content)] ^ 1 << chance.randrange(8)])
        elif kind == 1:
            content[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 2:  # where a length may stand
            content[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\xfe\xff\xff\x7f", b"\0\0\0\0", chance.randbytes(4)])
        elif kind == 3:
            content[at : at + 2] = chance.choice([b"SQ", b"UN", b"OB", b"DS", b"US", b"UI", b"PN", b"FD", b"??"])
        elif kind == 4:
            del content[at:]
        elif kind == 5:
            del content[at : at + chance.randint(1, 64)]
        elif kind == 6:
            other = chance.choice(originals)
            begin = chance.randrange(len(other))
            content[at:at] = other[begin : begin + chance.randint(1, 256)]
        else:
            begin = chance.randrange(len(content))
            content[at:at] = content[begin : begin + chance.randint(1, 512)]
        if len(content) < 132:
            break
    return bytes(content)


def outcome(path: Path, images: dicom.Stack) -> str:
    """``read``, ``other``, or a code."""
    found = scan(path.parent)
    try:
        stacks, refusals = dicom.stacks(found.headers, found.refusals, dicom.REPAIRS)
        for stack in stacks:
            dicom.read_stack(stack)
        for mask in found.segmentations:
            dicom.read_segmentation(mask.path, images.geometry)
    except UnreadableImage as error:
        return error.code
    refusals = [*found.refusals, *refusals]
    return refusals[0].code if refusals else "other" if found.other else "read"


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))

    def hang(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)


def attempt(folder: Path, originals: Sequence[bytes], images: dicom.Stack, begin: int) -> tuple[Counter, int]:
    """Outcomes of the mutants of some seeds, and the highest resident memory of this process, bytes."""
    place = folder / f"{os.getpid()}"
    (place / "one").mkdir(parents=True, exist_ok=True)
    outcomes: Counter = Counter()
    for seed in range(begin, begin + CHUNK):
        (place / "seed").write_text(str(seed))  # what to look at, should this process die
        (place / "one/file").write_bytes(mutated(originals, seed))
        signal.alarm(SECONDS)
        outcomes[outcome(place / "one/file", images)] += 1
        signal.alarm(0)
    return outcomes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
def test_mutants_are_read_or_refused_by_name_within_time_and_memory(tmp_path):
    originals = [path.read_bytes() for path in bases(tmp_path)]
    headers = [header for path in sorted((tmp_path / "images").iterdir()) for header in dicom.read_headers(path)]
    (images,), _ = dicom.stacks(headers)
    outcomes: Counter = Counter()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("forkserver"), initializer=limit) as pool:
        work = partial(attempt, tmp_path / "work", originals, images)
        for found, memory in pool.map(work, range(0, MUTANTS, CHUNK)):
            outcomes += found
            assert memory < BYTES
    assert outcomes.total() == MUTANTS
    assert set(outcomes) <= {"read", "other", *dicom.REASONS}
    assert outcomes["read"] > MUTANTS / 100, "hardly any mutant came as far as its pixels"
    assert len(outcomes) > 15, f"the mutants are too much alike: {outcomes}"
