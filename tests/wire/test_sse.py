"""Server-sent events from bytes that are cut anywhere."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.wire.sse import BOM, EventTooLarge, SSEDecoder, SSEEvent
from tests.wire.cuts import cut, in_two, one_by_one, places

LIMIT = 1 << 20


def read(*pieces: bytes, limit: int = LIMIT) -> list[SSEEvent]:
    decoder = SSEDecoder(limit)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.end()


def data_of(stream: bytes) -> list[bytes]:
    return [event.data for event in read(stream)]


def by_the_grammar(stream: bytes) -> list[bytes]:
    """The standard's own steps over the whole stream, as plainly as they can be written."""
    found: list[bytes] = []
    data: list[bytes] = []
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(BOM))
    # An event that only lacks its blank line counts, hence one more empty line than there is.
    for line in [*lines, b""]:
        if not line:
            if data:
                found.append(b"\n".join(data))
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value[1:] if value.startswith(b" ") else value)
    return found


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_is_one(end: bytes) -> None:
    stream = b"data: a" + end + end + b"data: b" + end + end
    assert read(stream) == [SSEEvent(b"data: a" + end + end, b"a"), SSEEvent(b"data: b" + end + end, b"b")]


@pytest.mark.parametrize(
    "pieces", [(b"data: a\r", b"\n\r\n"), (b"data: a\r\n\r", b"\n"), (b"data: a\r\n\r", b"\ndata: b\n\n")]
)
def test_a_crlf_that_is_cut_is_one_line_end(pieces: tuple[bytes, bytes]) -> None:
    assert read(*pieces)[0] == SSEEvent(b"data: a\r\n\r\n", b"a")


def test_an_event_leaves_as_soon_as_its_blank_line_is_there() -> None:
    decoder = SSEDecoder(LIMIT)
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == [SSEEvent(b"data: a\n\n", b"a")]
    assert decoder.feed(b"data: b\r\n\r\n") == [SSEEvent(b"data: b\r\n\r\n", b"b")]


def test_a_lone_carriage_return_at_the_end_waits_since_a_line_feed_may_follow() -> None:
    decoder = SSEDecoder(LIMIT)
    assert decoder.feed(b"data: a\r\r") == []
    assert decoder.feed(b"data: b\r\r") == [SSEEvent(b"data: a\r\r", b"a")]
    assert [event.data for event in decoder.end()] == [b"b"]


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data:a\n\n", [b"a"]),
        (b"data:  a \n\n", [b" a "]),
        (b"data\n\n", [b""]),
        (b"data:\n\n", [b""]),
        (b"data: a: b\n\n", [b"a: b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\ndata:\ndata: b\n\n", [b"a\n\nb"]),
        (b"data: \xc3\xa4\xf0\x9f\x98\x80\n\n", ["ä😀".encode()]),
        (b"data: \xff\n\n", [b"\xff"]),
        (b"Data: a\n\n", []),
        (b" data: a\n\n", []),
        (b"database: a\n\n", []),
        (b"\n\n\r\n\r\r", []),
        (b"", []),
    ],
)
def test_what_counts_as_data(stream: bytes, data: list[bytes]) -> None:
    assert data_of(stream) == data


@pytest.mark.parametrize("noise", [b": ping\n", b":\n", b"event: chunk\n", b"id: 7\n", b"retry: 10\n", b"other\n"])
def test_nothing_but_data_reaches_the_client(noise: bytes) -> None:
    # Comments and ids could carry text past the audit.
    assert read(noise + b"\n") == []
    assert read(noise + b"data: a\n\n") == [SSEEvent(b"data: a\n\n", b"a")]
    assert read(b"data: a\n" + noise + b"data: b\n\n") == [SSEEvent(b"data: a\ndata: b\n\n", b"a\nb")]
    assert read(b"data: a\r\n" + noise + b"\r\n") == [SSEEvent(b"data: a\n\n", b"a")]


def test_a_byte_order_mark_is_dropped_at_the_beginning_only() -> None:
    assert read(BOM + b"data: a\n\n") == [SSEEvent(b"data: a\n\n", b"a")]
    assert read(BOM[:1], BOM[1:], b"data: a\n\n") == [SSEEvent(b"data: a\n\n", b"a")]
    assert data_of(BOM + BOM + b"data: a\n\n") == []
    assert data_of(b"data: a\n\n" + BOM + b"data: b\n\n") == [b"a"]


@pytest.mark.parametrize("tail", [b"data: b", b"data: b\n", b"data: b\r", b"data: b\r\n", b"data: b\r\r"])
def test_the_last_event_may_lack_its_blank_line(tail: bytes) -> None:
    assert data_of(b"data: a\n\n" + tail) == [b"a", b"b"]


def test_the_end_of_nothing_is_nothing() -> None:
    decoder = SSEDecoder(LIMIT)
    decoder.feed(b"data: a\n\n")
    assert decoder.end() == []
    assert decoder.end() == []


@pytest.mark.parametrize("pieces", [*in_two(b"data: 0123\n\n"), (b"data: 0123\n\ndata: x", b"\n\n")])
def test_an_event_of_the_largest_size_fits_however_it_comes(pieces: tuple[bytes, bytes]) -> None:
    assert read(*pieces, limit=12)[0].data == b"0123"


@pytest.mark.parametrize("pieces", in_two(b"data: a\n\ndata: 01234\n\ndata: b\n\n"))
def test_a_larger_one_does_not_and_what_came_before_it_is_not_lost(pieces: tuple[bytes, bytes]) -> None:
    decoder = SSEDecoder(12)
    events: list[SSEEvent] = []
    try:
        for piece in pieces:
            events += decoder.feed(piece)
    except EventTooLarge as error:
        assert str(error) == "an event larger than 12 bytes"
        assert [event.data for event in [*events, *error.before]] == [b"a"]
    else:
        pytest.fail("it was let through")


def test_many_small_events_are_no_large_one() -> None:
    stream = b"data: a\n\n" * 1000
    assert len(read(stream, limit=12)) == 1000


@pytest.mark.parametrize("line", [b"data: x\n", b"data\n", b":\n", b"data: x\r"])
def test_an_event_of_very_many_lines_is_read_in_one_pass(line: bytes) -> None:
    # Read again from its beginning with each line, this would take hours.
    count = 100_000
    decoder = SSEDecoder(len(line) * count + 2)
    for _ in range(count):
        assert decoder.feed(line) == []
    events = decoder.feed(b"\r\n") + decoder.end()
    if line == b":\n":
        assert events == []
    else:
        assert [(len(event.raw), event.data.count(b"\n")) for event in events] == [(len(line) * count + 2, count - 1)]


line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
values = st.text(alphabet=" :aä😀\u2028\x00", max_size=6).map(str.encode)
data_lines = st.tuples(st.sampled_from([b"data: ", b"data:"]), values, line_ends).map(b"".join)
other_lines = st.tuples(st.sampled_from([b":", b"event: ", b"id:", b"data", b"dat"]), values, line_ends).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(data_lines, other_lines, line_ends), max_size=12).map(b"".join), st.booleans(), places)
def test_no_way_of_cutting_changes_what_is_read(stream: bytes, marked: bool, at: list[int]) -> None:
    stream = (BOM if marked else b"") + stream
    assert [event.data for event in read(stream)] == by_the_grammar(stream)
    assert read(*cut(stream, at)) == read(stream)
    assert read(*one_by_one(stream)) == read(stream)


@st.composite
def plain_streams(draw: st.DrawFn) -> bytes:
    """Events of data alone, with one kind of line end: two of different kinds can melt into one (CR, LF)."""
    end = draw(line_ends)
    lines = st.tuples(st.sampled_from([b"data: ", b"data:"]), values, st.just(end)).map(b"".join)
    events = st.lists(lines, min_size=1, max_size=3).map(lambda found: b"".join(found) + end)
    return b"".join(draw(st.lists(events, max_size=6)))


@settings(max_examples=300, deadline=None)
@given(plain_streams(), places)
def test_plain_events_keep_every_byte(stream: bytes, at: list[int]) -> None:
    events = read(*cut(stream, at))
    assert b"".join(event.raw for event in events) == stream


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"data", b":", b"\r", b"\n", b"x"])).map(b"".join), places)
def test_any_bytes_at_all_read_the_same_in_pieces(stream: bytes, at: list[int]) -> None:
    assert read(*cut(stream, at)) == read(stream)


def test_names_are_kept_where_a_dialect_has_them_and_nothing_else_beside_data() -> None:
    named = b"event: a\ndata: 1\n\n"
    stream = named + b"data: 2\n\nevent: b\nid: 7\ndata: 3\n\ndata: 4\nevent: c\n\nevent: d\nevent: e\ndata: 5\n\n"
    decoder = SSEDecoder(LIMIT, named=True)
    assert decoder.feed(stream) + decoder.end() == [
        (named, b"1", b"a"),
        (b"data: 2\n\n", b"2", b""),
        (b"event: b\ndata: 3\n\n", b"3", b"b"),
        # A name behind the data, or a second one: clients don't agree on which counts.
        (b"data: 4\n\n", b"4", b""),
        (b"event: d\ndata: 5\n\n", b"5", b"d"),
    ]
    plain = SSEDecoder(LIMIT)
    assert plain.feed(named) + plain.end() == [(b"data: 1\n\n", b"1", b"")]


def test_a_named_event_is_the_same_at_every_split() -> None:
    stream = b"event: a\r\ndata: 1\r\n\r\nevent: b\ndata: 2\n\n"
    whole = SSEDecoder(LIMIT, named=True).feed(stream)
    for at in range(len(stream)):
        decoder = SSEDecoder(LIMIT, named=True)
        assert decoder.feed(stream[:at]) + decoder.feed(stream[at:]) + decoder.end() == whole
