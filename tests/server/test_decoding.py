"""Content codings: whatever the pieces, the same bytes; bounded pieces; an end that is missing is noticed."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.server.decoding import PIECE_BYTES, BadCoding, Decoder, UnknownCoding, decoder_for


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACK = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}


def decoded(decoder: Decoder, *fed: bytes) -> list[bytes]:
    pieces = []
    for data in fed:
        decoder.feed(data)
        while piece := decoder.take():
            pieces.append(piece)
    return pieces


def decoder(coding: str) -> Decoder:
    made = decoder_for(coding)
    assert made is not None
    return made


@given(st.binary(max_size=3000), st.sampled_from(sorted(PACK)), st.integers(1, 50))
def test_any_cut_gives_the_same_bytes(data, coding, size):
    packed = PACK[coding](data)
    made = decoder(coding)
    assert b"".join(decoded(made, *[packed[at : at + size] for at in range(0, len(packed), size)])) == data
    made.end()


def test_deflate_without_its_header_is_read_too():
    made = decoder("deflate")
    assert decoded(made, raw_deflate(b"All is fine.")) == [b"All is fine."]
    made.end()


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 40 * PIECE_BYTES])
def test_pieces_are_bounded(size):
    made = decoder("gzip")
    pieces = decoded(made, gzip.compress(b"\n" * size))
    made.end()
    assert sum(map(len, pieces)) == size
    assert max(map(len, pieces), default=0) <= PIECE_BYTES


@given(st.binary(min_size=1, max_size=300), st.sampled_from(sorted(PACK)), st.data())
def test_a_body_that_was_cut_off_is_noticed(data, coding, draw):
    packed = PACK[coding](data)
    made = decoder(coding)
    decoded(made, packed[: draw.draw(st.integers(1, len(packed) - 1))])
    with pytest.raises(BadCoding):
        made.end()


@pytest.mark.parametrize("coding", sorted(PACK))
@pytest.mark.parametrize("after", [b"\0", b"HARM", gzip.compress(b"HARM", mtime=0)], ids=["zero", "text", "another"])
def test_bytes_after_the_end_are_refused(coding, after):
    packed = PACK[coding](b"fine")
    for fed in ([packed + after], [packed, after]):
        with pytest.raises(BadCoding):
            decoded(decoder(coding), *fed)


@given(st.binary(max_size=200), st.sampled_from(sorted(PACK)))
def test_nonsense_is_refused_and_nothing_else_happens(data, coding):
    made = decoder(coding)
    try:
        decoded(made, data) if data else None
        made.end()
    except BadCoding:
        return
    assert data == b"" or zlib.decompressobj(47 if coding != "deflate" else -15).decompress(data) is not None


@pytest.mark.parametrize("header", ["", "identity", " Identity ", "identity, identity"])
def test_nothing_to_decode(header):
    assert decoder_for(header) is None


@pytest.mark.parametrize("header", ["br", "zstd", "compress", "gzip, gzip", "br,gzip", "x" * 5000])
def test_codings_that_arent_known(header):
    with pytest.raises(UnknownCoding) as caught:
        decoder_for(header)
    assert len(str(caught.value)) <= 40
