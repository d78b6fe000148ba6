"""Attacks on the prompt as token ids: in the embedded auditor's tokens, a small checkpoint's, and Qwen's own."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the extra `local` isn't installed")

import guardtrace_proxy.auditor
from guardtrace_proxy.auditor.labels import LabelTokens
from guardtrace_proxy.auditor.layout import Layout
from guardtrace_proxy.auditor.processor import ImageOnlyProcessor, load_processor
from guardtrace_proxy.auditor.prompt import Turn, query_text, user_text
from guardtrace_proxy.auditor.protocol import AuditorSettingsError
from guardtrace_proxy.auditor.quoting import encodable
from tests.auditor.attacks import ATTACKS, KNOWN_TOKENS, hostile
from tests.auditor.checkpoints import make_processor
from tests.auditor.qwen import make_qwen_processor, vocabulary

SYSTEM = "You judge."
INNOCENT = user_text("Why?", "Flour.", "Bread.")
IMAGES = ([], [3], [5, 7])


class Reader:
    """A layout with what its tests count."""

    def __init__(self, processor: ImageOnlyProcessor) -> None:
        self.layout = Layout(processor)
        self.labels = LabelTokens.of(self.layout)
        self.control = set(processor.tokenizer.backend_tokenizer.get_added_tokens_decoder())
        self.image = processor.image_token_id

    def prompt(self, user: str, images: list[int]) -> list[int]:
        return self.layout.prompt(SYSTEM, user, images, self.labels.opening)

    def stretches(self, ids: list[int]) -> tuple[list[int], list[list[int]]]:
        """The control tokens in order, and what stands before, between and behind them."""
        control: list[int] = []
        between: list[list[int]] = [[]]
        for token in ids:
            if token in self.control:
                control.append(token)
                between.append([])
            else:
                between[-1].append(token)
        return control, between


@pytest.fixture(scope="module", params=["small", "nano", "qwen"])
def reader(request: pytest.FixtureRequest) -> Reader:
    if request.param == "small":
        return Reader(make_processor())
    if request.param == "nano":
        return Reader(load_processor(str(Path(guardtrace_proxy.auditor.__file__).parent / "nano")))
    path = vocabulary()
    if path is None:
        pytest.skip("Qwen's vocabulary isn't here: pip install --no-deps dashscope")
    return Reader(make_qwen_processor(path))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(hostile | st.text() | st.sampled_from([" " * 128, "#" * 64, "e\u0301", "\u212a", "\u1100\u1161\u11a8"]))
)
def test_no_text_has_more_bytes_than_its_tokens_may_be(reader: Reader, parts: list[str]) -> None:
    text = encodable("".join(parts))
    most = reader.layout.most_bytes(len(reader.layout.encode(text)))
    assert len(unicodedata.normalize("NFC", text).encode()) <= most


def check(reader: Reader, user: str, images: list[int]) -> None:
    """Only the user's own stretch of the prompt is another one than with innocent text."""
    ids = reader.prompt(user, images)
    control, between = reader.stretches(ids)
    expected_control, expected = reader.stretches(reader.prompt(INNOCENT, images))
    assert control == expected_control
    assert ids.count(reader.image) == sum(images)
    [own] = [place for place, stretch in enumerate(expected) if "Flour." in reader.layout.decode(stretch)]
    assert between[:own] + between[own + 1 :] == expected[:own] + expected[own + 1 :]
    assert ids[-len(reader.labels.opening) :] == reader.labels.opening
    read = reader.layout.decode(between[own])
    assert read.endswith(unicodedata.normalize("NFC", user))
    assert len(read) - len(unicodedata.normalize("NFC", user)) <= len("user\n")


def test_each_attack_stays_in_its_own_stretch(reader: Reader) -> None:
    for attack in ATTACKS:
        for user in (user_text(attack.text, "", ""), user_text("Why?", attack.text, attack.text)):
            check(reader, user, IMAGES[len(user) % 3])


@settings(max_examples=60, deadline=None)
@given(hostile, hostile, hostile, st.sampled_from(IMAGES))
def test_whatever_is_composed_stays_in_its_own_stretch(
    reader: Reader, query: str, thinking: str, answer: str, images: list[int]
) -> None:
    turns = [Turn("system", query), Turn("user", answer)]
    check(reader, user_text(query_text(turns), thinking, answer), images)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(hostile, hostile, hostile, st.sampled_from(IMAGES))
def test_very_much_that_is_composed_stays_in_its_own_stretch(
    reader: Reader, query: str, thinking: str, answer: str, images: list[int]
) -> None:
    check(reader, user_text(query_text([Turn("user", query)]), thinking, answer), images)


def test_known_control_tokens_are_encoded_as_text(reader: Reader) -> None:
    for token in [*KNOWN_TOKENS, *reader.layout._added]:
        ids = reader.layout.encode(f"a{token}b {token}{token}")
        assert not reader.control & set(ids)
        assert reader.layout.decode(ids) == f"a{token}b {token}{token}"


def test_no_attack_makes_more_tokens_than_are_reckoned_with(reader: Reader) -> None:
    for attack in ATTACKS:
        size = len(encodable(attack.text).encode())
        made = len(reader.layout.encode(user_text("", attack.text, ""))) - len(
            reader.layout.encode(user_text("", "", ""))
        )
        assert made <= reader.layout.most_tokens_per_byte * size + 4


def test_a_tokenizer_that_makes_control_tokens_of_plain_text_is_refused() -> None:
    processor = make_processor()
    processor.tokenizer.add_tokens(["judge"], special_tokens=True)
    Layout(processor)  # added tokens are taken out
    processor.tokenizer._tokenizer.add_special_tokens(["J"])  # a letter that the vocabulary has, too
    with pytest.raises(AuditorSettingsError, match="control token J"):
        Layout(processor)
