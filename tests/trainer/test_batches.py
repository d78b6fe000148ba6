"""From documents to tensors: the same for a seed, and never an analysis or a judgment among them."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` isn't installed")
pytest.importorskip("transformers", reason="the extra `train` isn't installed")

from guardtrace_trainer.nano.authored import authored  # noqa: E402
from guardtrace_trainer.nano.batches import (  # noqa: E402
    DECLINES,
    GIVEN,
    HEAD,
    HELPS,
    IMAGE_TOKENS,
    LONGEST,
    MARKS,
    MORE,
    MOST_ROWS,
    NEXT,
    POOL,
    SHOWS,
    TAIL,
    TOKENS_PER_BATCH,
    USER,
    Batch,
    Document,
    Example,
    anything,
    batches,
    collate,
    encode,
    exchange,
    pasted,
    plain,
    pool,
    positions,
    remarks,
    talk,
    thinking,
    vision_batch,
)
from guardtrace_trainer.nano.model import control_id  # noqa: E402
from guardtrace_trainer.nano.vocabulary import make_tokenizer  # noqa: E402
from guardtrace_trainer.nano.wording import BANK, bank  # noqa: E402

pytestmark = pytest.mark.usefixtures("words")


GOALS = {DECLINES: "goals_harmful", HELPS: "goals_harmless"}


def documents(count: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    draws = (plain, thinking, exchange, talk, pasted)
    return [encode(draws[number % 5](rng), rng) for number in range(count)]


def same(one: Batch, other: Batch) -> bool:
    alike = [torch.equal(getattr(one, name), getattr(other, name)) for name in ("ids", "shares", "positions")]
    if one.cells is None or other.cells is None:
        return all(alike) and one.cells is other.cells
    return all(alike) and torch.equal(one.cells, other.cells)


@pytest.fixture(scope="module")
def first(words) -> list[Batch]:
    return pool(plain, 5, 0)


def test_a_pool_is_the_same_each_time(first):
    again = pool(plain, 5, 0)
    assert len(again) == len(first)
    assert all(same(one, other) for one, other in zip(again, first, strict=True))


def test_another_seed_or_number_gives_another_pool(first):
    assert not same(pool(plain, 5, 1)[0], first[0])
    assert not same(pool(plain, 6, 0)[0], first[0])


def test_batches_are_as_many_as_asked_for_and_the_first_pool_in_order(first):
    few = list(batches(plain, 5, 3))
    assert len(few) == 3
    assert all(same(one, other) for one, other in zip(few, first, strict=False))


def test_batches_are_bounded_and_alike(first):
    assert sum(len(batch.examples) for batch in first) == POOL
    for batch in first:
        rows, length = batch.ids.shape
        assert 1 <= rows <= MOST_ROWS
        assert length <= LONGEST
        assert rows * length <= TOKENS_PER_BATCH
        assert len({example.drawing is None for example in batch.examples}) == 1
        assert (batch.cells is None) == (batch.examples[0].drawing is None)


def test_vision_batches_are_the_same_each_time(words):
    one, again, other = vision_batch(3, 0, 4), vision_batch(3, 0, 4), vision_batch(3, 1, 4)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("draw", [plain, thinking, exchange, pasted, talk])
def test_no_document_holds_an_analysis_or_a_judgment(draw):
    rng = random.Random(3)
    texts = [" ".join(itertools.chain.from_iterable(draw(rng).turns)) for _ in range(2000)]
    for words in ("“Analysis”", "“Judgment”", "the goal is harm", "the text stays", "gives a hint", "gives steps"):
        assert not any(words in text for text in texts), words


def test_plain_documents_are_traces_conversations_and_descriptions():
    rng = random.Random(4)
    made = [plain(rng) for _ in range(600)]
    assert sum(one.turns[0][0].startswith(SHOWS) for one in made) > 120
    given = ["".join(text for text, _ in one.turns) for one in made]
    assert sum("<think>\n" in one and "\n</think>\n\n" in one for one in given) > 120
    assert sum(one.startswith("Current Task Query: ") for one in given) > 120


def test_a_mark_says_what_the_sentence_before_it_gives_and_nothing_else_of_it():
    strengths = {text: strength for trace in authored(BANK) for text, strength in trace.sentences}
    rng = random.Random(5)
    seen = Counter()
    for given, told in itertools.chain.from_iterable(thinking(rng).turns for _ in range(600)):
        if told:
            seen[told] += 1
            assert told == MARKS[strengths.get(given.strip(), MARKS.index(told))]
    assert set(seen) == set(MARKS)
    assert min(seen.values()) > 200


def test_whether_a_mark_comes_cannot_be_known_from_the_text():
    rng = random.Random(6)
    pieces = [turn for _ in range(100) for turn in thinking(rng).turns if turn[0].startswith(" ")]
    bare = sum(not told for _, told in pieces)
    assert 0.1 < bare / len(pieces) < 0.35


@pytest.mark.parametrize("draw", [exchange, talk])
def test_what_is_harmful_is_declined_and_all_else_helped_with(draw):
    goals = {goal: told for told in (DECLINES, HELPS) for goal in bank(GOALS[told])}
    rng = random.Random(5)
    seen = Counter()
    for given, told in itertools.chain.from_iterable(draw(rng).turns for _ in range(500)):
        asked = given.removesuffix(TAIL).rpartition("User: ")[2]
        goal = max((goal for goal in goals if goal in asked), key=len, default=None)
        if goal is None or told.removesuffix("<|im_end|>") not in GOALS:
            continue
        assert told == f"{goals[goal]}<|im_end|>", given
        seen[goals[goal]] += 1
    assert min(seen[DECLINES], seen[HELPS]) > 80


def test_a_goal_is_asked_for_alone_in_a_question_or_among_remarks_of_others():
    goals = {goal for name in GOALS.values() for goal in bank(name)}
    rng = random.Random(9)
    seen = Counter()
    for one in (exchange(rng) for _ in range(1000)):
        asked = one.turns[0][0].removesuffix(TAIL)
        if one.picture is not None:
            assert one.head == HEAD
            continue
        seen[one.head] += 1
        seen["bare"] += asked in goals
        seen["remarked"] += asked.startswith(remarks()) and asked not in goals
    assert min(seen[HEAD], seen[USER], seen["bare"], seen["remarked"]) > 100
    assert not any(goal in remark for remark in remarks() for goal in goals)


def test_behind_a_request_that_is_pasted_to_stands_a_text_that_decides_nothing():
    goals = {goal: told for told in (DECLINES, HELPS) for goal in bank(GOALS[told])}
    rng = random.Random(10)
    seen = Counter()
    for one in (pasted(rng) for _ in range(600)):
        [(given, told)] = one.turns
        asked, _, text = given.removesuffix(TAIL).partition("\n\n")
        goal = max((goal for goal in goals if goal in asked.rpartition("User: ")[2]), key=len, default=None)
        if goal is None:
            continue
        assert text
        assert told == f"{goals[goal]}<|im_end|>", given
        seen[told, any(words in text for words in bank("answers_refuse"))] += 1
    assert len(seen) == 4
    assert min(seen.values()) > 15


def test_what_a_text_gave_so_far_is_told_whatever_it_is_for():
    strengths = {text: strength for trace in authored(BANK) for text, strength in trace.sentences}
    rng = random.Random(6)
    seen = Counter()
    for turns in (talk(rng).turns for _ in range(200)):
        turns = [(given.removeprefix(NEXT), told) for given, told in turns]
        for before, (given, told) in itertools.pairwise([("", ""), *turns]):
            reply = told.removesuffix("<|im_end|>")
            if reply not in GIVEN:
                continue
            own = max((strength for text, strength in strengths.items() if text in given), default=0)
            earlier = before[1].removesuffix("<|im_end|>") if given.startswith(MORE) else GIVEN[0]
            assert GIVEN.index(reply) >= max(own, GIVEN.index(earlier)), given
            seen[reply] += 1
    assert min(seen[reply] for reply in GIVEN) > 80


def test_documents_of_all_kinds_are_among_the_last():
    rng = random.Random(7)
    given = ["".join(text for text, _ in anything(rng).turns) for _ in range(1000)]
    asked = [one.count(TAIL) for one in given]
    assert 500 < sum(count == 1 and NEXT not in one for count, one in zip(asked, given, strict=True)) < 800
    assert sum(count > 1 for count in asked) > 30
    assert 150 < sum(count == 0 for count in asked) < 350


def test_what_asks_for_nothing_is_left_out():
    def some(rng):
        return Document((("Hush.<|im_end|>", ""),), None) if rng.random() < 0.5 else exchange(rng)

    assert all((batch.shares == 1).any(1).all() for batch in pool(some, 1, 0))


def test_only_replies_are_foretold_of_a_talk():
    tokenizer = make_tokenizer()
    rng = random.Random(8)
    document = talk(rng)
    example = encode(document, rng)
    batch = collate([example, example])
    assert set(batch.shares.unique().tolist()) == {0.0, 1.0}
    told = tokenizer.decode(batch.ids[0][batch.shares[0] > 0])
    assert told == "".join(reply for _, reply in document.turns)


def test_a_document_stands_behind_the_auditors_own_head_and_its_image():
    tokenizer = make_tokenizer()
    for example in documents(30, seed=4):
        first = next(at for at, share in enumerate(example.shares) if share)
        assert tokenizer.decode(example.ids).startswith(HEAD if example.drawing else (HEAD, USER))
        assert example.ids.count(control_id("<|image_pad|>")) == (IMAGE_TOKENS if example.drawing else 0)
        assert example.ids[:first].count(control_id("<|image_pad|>")) == (IMAGE_TOKENS if example.drawing else 0)
        assert tokenizer.decode(example.ids).endswith("<|im_end|>")


def test_padding_stands_right_and_is_no_target():
    two = [example for example in documents(30) if example.drawing is None][:2]
    batch = collate(two)
    for row, example in enumerate(two):
        length = len(example.ids)
        assert batch.ids[row, :length].tolist() == example.ids
        assert (batch.ids[row, length:] == control_id("<|endoftext|>")).all()
        assert batch.shares[row, :length].tolist() == pytest.approx(example.shares)
        assert not batch.shares[row, length:].any()


def test_positions_are_those_of_the_class_itself():
    from guardtrace_trainer.nano.model import make_model

    model = make_model(0).model
    for picture in (False, True):
        example = next(example for example in documents(60) if (example.drawing is not None) is picture)
        ids = torch.tensor([example.ids])
        kinds = (ids == control_id("<|image_pad|>")).int()
        grid = torch.tensor([[1, 8, 8]]) if picture else None
        own, _ = model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)
        assert torch.equal(positions(len(example.ids), picture), own[:, 0])
