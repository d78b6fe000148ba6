"""Near-duplicates: the index finds exactly those that comparing everything with everything finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guardtrace_trainer.corpus.similar import NEAR, NearIndex, normalised, similarity, words

LONG = "how can the old gardener keep twelve very young apple trees healthy through one dry windy summer near sea coast"
TEXTS = st.lists(st.sampled_from(LONG.split()), min_size=1, max_size=24).map(" ".join)


def index_of(texts, expected=()):
    index = NearIndex(expected)
    for number, text in enumerate(texts):
        index.add(str(number), text)
    return index


@given(st.lists(TEXTS, max_size=12), TEXTS, st.lists(TEXTS, max_size=3))
def test_the_index_misses_none_and_finds_no_others(texts, text, expected_texts):
    expected = {str(number) for number, other in enumerate(texts) if similarity(words(text), words(other)) >= NEAR}
    found = index_of(texts, expected_texts).near(text)
    assert {near.id for near in found} == expected
    assert [near.similarity for near in found] == sorted((near.similarity for near in found), reverse=True)


@given(st.text(max_size=60), st.sampled_from([" ", "\n\t", "...", " - ", "！"]))
def test_case_and_punctuation_do_not_count(text, between):
    assert normalised(between.join(text.upper().split(" "))) == normalised(text.upper())
    assert normalised(f"{between}{text}{between}") == normalised(text)


def test_normalised():
    assert normalised("  Ｈow—DO I “bake”\tbread?? ") == "how do i bake bread"
    assert normalised("STRASSE") == normalised("straße")
    assert normalised("की") != normalised("का")  # marks belong to words


def test_one_word_of_nineteen_makes_no_other_query():
    text = " ".join(dict.fromkeys(LONG.split()))
    count = len(text.split())
    assert count >= 19
    index = index_of([text])
    assert index.near(text.replace("gardener", "farmer"))[0].similarity == (count - 1) / (count + 1)
    assert not index.near(text.replace("gardener", "farmer").replace("apple", "pear").replace("dry", "wet"))


def test_short_queries_that_differ_in_a_word_are_others():
    assert not index_of(["how do i bake bread"]).near("how do i bake cake")


def test_unspaced_scripts_are_compared_by_pairs_of_characters():
    text = "如何在家里用简单的工具修理一辆旧自行车的轮胎而不去商店请专业人员帮忙"
    assert words("修理 abc轮") == {"修理", "abc", "轮"}
    assert index_of([text]).near(text.replace("旧", ""))
    assert not index_of([text]).near("如何在家里做一个简单的苹果蛋糕")


def test_one_id_may_have_several_texts():
    index = NearIndex()
    for text in ("how do i bake bread", "where do eels live", "how do i bake bread bread"):
        index.add("one", text)
    index.add("two", "where do eels live")
    assert index.near("how do i bake bread") == [("one", 1.0)]
    assert index.near("where do eels live") == [("one", 1.0), ("two", 1.0)]
