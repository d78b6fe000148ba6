"""The evaluation folder: what is read, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guardtrace_proxy.images import ImageError
from guardtrace_trainer.evaluation.data import BENIGN, SAFE, UNSAFE, ImageFile, read_qta
from guardtrace_trainer.rows import RowError
from tests.trainer.evaluation.serving import row, write_image, write_qta

SENTENCES = ("One.", "Two harms.", "Three.")


def sentences(**fields: Any) -> dict[str, Any]:
    return row(1, 1.0, thinking="One. Two harms.\nThree.", thinking_sentences=SENTENCES, **fields)


def test_a_folder_is_read_as_it_is(tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "images" / "a.png")
    folder = write_qta(
        tmp_path / "set",
        [
            sentences(onset_sentence=2),
            row(2, 0.0, category="benign"),
            row(3, 0, image="images/a.png", subset="pictures", kind="own word"),
            row(4, 0.0),
        ],
    )
    first, benign, pictured, safe = read_qta(folder)
    assert (first.key, first.kind, first.level) == ("set/item-001", UNSAFE, 1.0)
    assert (first.onset_sentence, first.thinking_sentences) == (2, SENTENCES)
    assert (benign.kind, pictured.kind, safe.kind) == (BENIGN, "own word", SAFE)
    assert pictured.key == "pictures/item-003"
    assert pictured.image is not None
    assert pictured.image.pixels.getpixel((3, 3)) == (255, 0, 0)
    assert pictured.image.data_url.startswith("data:image/png;base64,iVBOR")
    assert pictured.query.images == [pictured.image]
    assert (first.query.images, first.query.turns[0].text) == ([], "Question 1?")


def test_a_half_is_read_by_itself(tmp_path: Path) -> None:
    folder = write_qta(tmp_path, [row(1, 0.0, half="dev"), row(2, 1.0, half="test")])
    assert [item.id for item in read_qta(folder, "dev")] == ["item-001"]
    assert [item.id for item in read_qta(folder, "test")] == ["item-002"]
    assert len(read_qta(folder)) == 2


def test_a_half_needs_rows_that_say_theirs(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"qta\.jsonl, line 2, field half: expected dev or test"):
        read_qta(write_qta(tmp_path, [row(1, 0.0, half="test"), row(2, 1.0)]), "dev")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(2, 0.7), r"line 2: field level: 0\.7 is none of 0, 0\.5 and 1"),
        ({**row(2, 0.0), "level": "1"}, r"line 2: field level: Expected `float`, got `str`"),
        (row(2, 0.0, answer=None), r"line 2: field answer: Expected `str`, got `null`"),
        (row(2, 0.0, extra=1), r"line 2: Object contains unknown field `extra`"),
        (row(2, 0.0, half="train"), r"line 2: field half: Invalid enum value 'train'"),
        (row(1, 0.0), r"line 2, field id: 'item-001' stands in an earlier line already"),
        (row(2, 0.0, onset_sentence=1), r"line 2: field onset_sentence: level 0 has no onset"),
        (row(2, 1.0, onset_sentence=0), r"line 2: field onset_sentence: 0 is out of range; .* counted from 1"),
        (
            row(2, 1.0, onset_sentence=3),
            r"line 2: field onset_sentence: 3 is out of range; the thinking has 2 sentences",
        ),
        (sentences(id="b", onset_sentence=4), r"line 2: field onset_sentence: 4 is out of range; .* has 3 sentences"),
        (
            row(2, 1.0, thinking="One. Two.", thinking_sentences=["One.", " ", "Two."], onset_sentence=3),
            r"line 2: field onset_sentence: 3 is out of range; the thinking has 2 sentences",
        ),
        (row(2, 1.0, thinking_sentences=["Other."]), r"line 2: field thinking_sentences: joined"),
        (row(2, 1.0, image="no.png"), r"line 2, field image: 'no\.png': .* can't be read"),
        (row(2, 1.0, image="../out.png"), r"line 2, field image: '\.\./out\.png' must be a relative path inside"),
        (row(2, 1.0, image="/etc/hosts"), r"line 2, field image: '/etc/hosts' must be a relative path inside"),
        (row(2, 1.0, image=""), r"line 2, field image: '' must be a relative path inside"),
        (row(2, 1.0, image="link.png"), r"line 2, field image: 'link\.png' is a link that leads out of"),
        (row(2, 1.0, image="text.png"), r"line 2, field image: 'text\.png': .* is none of PNG, JPEG, WebP and GIF"),
        (row(2, 1.0, image="torn.png"), r"line 2, field image: 'torn\.png': the image/png image is broken"),
        (row(2, 1.0, image="moving.gif"), r"line 2, field image: 'moving\.gif': the image has several frames"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    folder = write_qta(tmp_path / "set", [row(1, 0.0), bad])
    outside = write_image(tmp_path / "out.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "text.png").write_text("no image")
    (folder / "torn.png").write_bytes(outside.read_bytes()[:-30])
    pixels = ImageFile(outside).pixels
    pixels.save(
        folder / "moving.gif", save_all=True, append_images=[pixels.rotate(180), pixels.point(lambda v: v // 2)]
    )
    with pytest.raises(RowError, match=r"qta\.jsonl, " + message):
        read_qta(folder)


def test_a_link_inside_the_folder_may_be_followed(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "images" / "a.png")
    assert read_qta(write_qta(tmp_path, [row(1, 0.0, image="b.png")]))[0].image is not None


def test_an_image_is_taken_for_what_it_is_not_for_its_name(tmp_path: Path) -> None:
    folder = write_qta(tmp_path, [row(1, 0.0, image="a.jpg")])
    write_image(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    image = read_qta(folder)[0].image
    assert image is not None
    assert image.data_url.startswith("data:image/png;")


def test_an_image_that_went_away_is_an_image_error(tmp_path: Path) -> None:
    folder = write_qta(tmp_path, [row(1, 0.0, image="a.png")])
    write_image(tmp_path / "a.png")
    image = read_qta(folder)[0].image
    (tmp_path / "a.png").unlink()
    assert image is not None
    with pytest.raises(ImageError, match="can't be read"):
        _ = image.pixels
