"""Decodes the replies of upstreams that compress although they are asked not to: piece by piece, so that a reply that
grows a thousandfold is bounded like any other.

aiohttp could decode as well, but takes a gzip body that was cut off for a whole one.
"""

from __future__ import annotations

import zlib

PIECE_BYTES = 65_536
GZIP = 16 + zlib.MAX_WBITS
KNOWN = ("gzip", "x-gzip", "deflate")


class UnknownCoding(Exception):
    """A content coding that isn't decoded here; the text is the coding, bounded."""


class BadCoding(Exception):
    """The bytes aren't what the content coding says, or end too early."""


class Decoder:
    """One body in ``gzip`` or ``deflate``. ``feed`` it, then ``take`` until nothing comes."""

    def __init__(self, coding: str) -> None:
        self._is_gzip = coding != "deflate"
        self._zlib = zlib.decompressobj(GZIP) if self._is_gzip else None
        self._input = b""

    def feed(self, data: bytes) -> None:
        """Give it the next bytes."""
        if self._zlib is None:
            # Many send deflate without zlib's header, which RFC 9110 asks for.
            self._zlib = zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS)
        self._input += data

    def take(self) -> bytes:
        """The next decoded bytes, at most PIECE_BYTES; empty where more input is needed. Raises BadCoding."""
        if self._zlib is None:
            return b""
        if self._zlib.eof:
            if self._input or self._zlib.unused_data:
                raise BadCoding("bytes after the end")
            return b""
        try:
            piece = self._zlib.decompress(self._input, PIECE_BYTES)
        except zlib.error as error:
            raise BadCoding("not what the content coding says") from error
        self._input = self._zlib.unconsumed_tail
        return piece

    def end(self) -> None:
        """At the body's end; raises BadCoding where it was cut off."""
        if self._zlib is not None and not self._zlib.eof:
            raise BadCoding("cut off")


def decoder_for(content_encoding: str) -> Decoder | None:
    """The decoder for a ``content-encoding`` header, None where nothing is encoded; raises UnknownCoding."""
    codings = [coding.strip() for coding in content_encoding.lower().split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in KNOWN:
        raise UnknownCoding(", ".join(codings)[:40])
    return Decoder(codings[0])
