"""Recordings with a few edits each, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.properties import HEADER, STYLES, seeds

BITS = [
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"data: ", b"data", b": x\n", b"event: x\n", b'"', b"\\", b"{", b"}", b"[", b"]"),
    *(b"null", b"true", b"1e9", b'""', b'"x"', b'"two words"', b",", b":", b"\xff", "ä😀".encode(), b"\\ud83d"),
    *(
        b"<think>",
        b"</think>",
        "◁/think▷".encode(),
        b"<answer>",
        b"<",
        b'"delta":{"a":"b"},',
        b'"text":"b",',
        b"[DONE]",
    ),
    *(b'"content"', b'"reasoning"', b'"role"', b'"index"', b'"logprobs"', b'"usage"', b'"choices"', b'"error"'),
    *(
        b'"message"',
        b'"content_block"',
        b'"signature"',
        b'"stop_reason"',
        b'"data"',
        b'"input"',
        b'"id"',
        b"_start",
        b"_stop",
    ),
    *(b'"type"', b'"item"', b'"part"', b'"response"', b'"output"', b'"item_id"', b'"sequence_number"', b".done"),
]
edits = st.tuples(st.integers(0, 1 << 16), st.integers(0, 24), st.sampled_from([b"", *BITS]) | st.binary(max_size=4))


def edited(seed: bytes, header: bytes, found: list[tuple[int, int, bytes]]) -> bytes:
    """Each edit takes so many bytes out at its place and puts others there. The dialect stays."""
    data = seed[HEADER:]
    for place, length, put in found:
        at = place % (len(data) + 1)
        data = data[:at] + put + data[at + length :]
    return bytes([seed[0] - seed[0] % len(STYLES) + header[0] % len(STYLES)]) + header[1:] + data


headers = st.binary(min_size=HEADER, max_size=HEADER)
inputs = st.builds(edited, st.sampled_from(list(seeds())), headers, st.lists(edits, max_size=6)) | st.binary(
    max_size=80
)
