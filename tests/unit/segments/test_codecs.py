"""Bombs, and what a promise bounds."""

from __future__ import annotations

import subprocess
import sys

import lz4.block
import pytest
import zstandard

from arraylift.errors import Corruption
from arraylift.segments.codecs import Codec, compress_lz4, compress_zstandard, decompress
from arraylift.sizes import KIB, MIB
from tests.unit.segments.golden_bytes import stretch

HUGE = bytes(256 * MIB)


def zstandard_frame(plain: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(plain)  # type: ignore[arg-type]


def test_incompressible_bytes_are_left_alone_and_not_copied() -> None:
    plain = stretch(16 * KIB)
    for compress in (compress_lz4, compress_zstandard):
        codec, stored = compress(memoryview(plain))
        assert codec is Codec.PLAIN
        assert isinstance(stored, memoryview)
        assert stored.obj is plain


def test_a_small_saving_is_not_worth_it() -> None:
    """Below a sixteenth saved, plain is kept."""
    for zeros, expected in ((16 * KIB // 20, Codec.PLAIN), (16 * KIB // 12, Codec.LZ4)):
        plain = stretch(16 * KIB - zeros) + bytes(zeros)
        assert compress_lz4(plain)[0] is expected


@pytest.mark.parametrize("promised", [1, 16 * KIB, 64 * KIB])
def test_bombs_are_refused(promised: int) -> None:
    for codec, stored in (
        (Codec.LZ4, lz4.block.compress(HUGE, store_size=False)),
        (Codec.ZSTANDARD, zstandard_frame(HUGE)),
        (Codec.ZSTANDARD, zstandard_frame(HUGE, write_content_size=False)),
    ):
        with pytest.raises(Corruption):
            decompress(codec, stored, promised)


def test_frames_that_do_not_claim_a_size_are_refused() -> None:
    frame = zstandard_frame(bytes(1000), write_content_size=False)
    with pytest.raises(Corruption, match="claims"):
        decompress(Codec.ZSTANDARD, frame, 1000)


@pytest.mark.parametrize("claimed", [16 * KIB, 64 * KIB])
def test_frames_that_lie_about_their_size_are_refused(claimed: int) -> None:
    """The header promises less, or more, than the blocks hold."""
    real = zstandard_frame(stretch(300) * 109)  # 32,700 bytes: a two-byte size field, 256 less
    assert zstandard.get_frame_parameters(real).content_size == 32_700
    lying = real.replace((32_700 - 256).to_bytes(2, "little"), (claimed - 256).to_bytes(2, "little"), 1)
    assert zstandard.get_frame_parameters(lying).content_size == claimed
    with pytest.raises(Corruption):
        decompress(Codec.ZSTANDARD, lying, claimed)


@pytest.mark.parametrize(
    ("codec", "stored"),
    [
        (Codec.LZ4, lz4.block.compress(bytes(5000), store_size=False)),
        (Codec.ZSTANDARD, zstandard_frame(bytes(5000))),
        (Codec.PLAIN, bytes(5000)),
    ],
)
def test_less_and_more_than_a_whole_form_is_refused(codec: Codec, stored: bytes) -> None:
    assert decompress(codec, stored, 5000) == bytes(5000)
    for damaged in (b"", stored[:-1], stored[: len(stored) // 2], stored + b"\x00", stored + stored):
        with pytest.raises(Corruption):
            decompress(codec, damaged, 5000)


@pytest.mark.parametrize("kind", ["lz4", "zstandard", "wide window"])
def test_memory_is_bounded_by_the_promise(kind: str) -> None:
    """A bomb of 256 MiB grows the process by no more than a few MiB; measured in one of its own."""
    script = f"""
import resource, zstandard, lz4.block
from arraylift.errors import Corruption
from arraylift.segments.codecs import decompress
kind = {kind!r}
if kind == "lz4":
    codec, bomb = 1, b"\\x1f\\x00\\x01\\x00" + b"\\xff" * (1 << 20)
elif kind == "zstandard":
    codec, bomb = 2, bytes.fromhex("28b52ffd" "a0" "00000100") + bytes.fromhex("02001000") * 2048
else:  # the header asks for a window of 128 MiB, for 64 KiB of content
    codec, bomb = 2, bytes.fromhex("28b52ffd" "80" "88" "00000100") + bytes.fromhex("03000800")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(50):
    try:
        assert len(decompress(codec, bomb, 65536)) == 65536
    except Corruption:
        pass
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 8 * 1024, grown
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
