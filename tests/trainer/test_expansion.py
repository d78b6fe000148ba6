"""The small recipe's requests, and its scripted models asked over real sockets by the pipeline's own client."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from guardtrace_proxy.auditor.prompt import user_text
from guardtrace_proxy.auditor.reply import parse_reply
from guardtrace_trainer.endpoints import Client, Endpoint, EndpointFailure, message
from guardtrace_trainer.nano.corpus import whole
from guardtrace_trainer.nano.expansion import expand, sample_of
from guardtrace_trainer.nano.scripted import JUDGES, opinion
from guardtrace_trainer.nano.serving import HOST, parties
from guardtrace_trainer.rows import Query, Request, read_rows
from guardtrace_trainer.steps import StepError
from tests.ports import free_port


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    expand(folder, count=60, seed=3)
    return folder


@pytest.fixture(scope="module")
def port(corpus):
    number = free_port()
    with parties(corpus, seed=3, port=number):
        yield number


def endpoint(party: str, port: int) -> Endpoint:
    return Endpoint(name=party, base_url=f"http://{HOST}:{port}/{party}/v1", model=party, stream=False)


def requests(corpus: Path) -> list[Request]:
    return read_rows(corpus / "requests.jsonl", Request)


def test_requests_come_in_all_variants_with_their_images(corpus):
    rows = requests(corpus)
    assert len(rows) == len(read_rows(corpus / "queries.jsonl", Query)) == 60
    assert {row.variant for row in rows} == {"text", "irrelevant", "aligned", "figstep"}
    assert all((row.image is None) == (row.variant == "text") for row in rows)
    assert all((corpus / row.image).read_bytes().startswith(b"\x89PNG") for row in rows if row.image)
    assert len({(row.question, row.image) for row in rows}) == 60


def test_a_seed_gives_the_same_requests(corpus, tmp_path):
    expand(tmp_path, count=60, seed=3)
    assert requests(tmp_path) == requests(corpus)
    for row in requests(corpus):
        if row.image:
            assert (tmp_path / row.image).read_bytes() == (corpus / row.image).read_bytes()
    expand(tmp_path / "other", count=60, seed=4)
    assert requests(tmp_path / "other") != requests(corpus)


def test_harmless_requests_whose_traces_tell_something_can_be_fewer(corpus, tmp_path):
    def telling(folder: Path, harm: bool) -> list[str]:
        made = ((row.id, sample_of(3, int(row.id.rpartition("-")[2]))) for row in requests(folder))
        kept = ((name, sample) for name, sample in made if sample.cue == "text" and sample.harm == harm)
        return [name for name, sample in kept if whole(sample).strength > 0]

    expand(tmp_path, count=60, seed=3, telling_harmless=0.2)
    assert 0 < len(telling(tmp_path, harm=False)) < 0.5 * len(telling(corpus, harm=False))
    assert set(telling(corpus, harm=True)) < set(telling(tmp_path, harm=True))


def test_the_thinker_writes_the_traces_and_the_judges_judge_them(corpus, port):
    async def talk() -> None:
        async with Client(endpoint("thinker", port)) as thinker, Client(endpoint(JUDGES[0], port)) as judge:
            for row in requests(corpus)[:20]:
                image = None if row.image is None else corpus / row.image
                trace = await thinker.ask([message("user", row.question, image)])
                sample = sample_of(3, int(row.id.rpartition("-")[2]))
                assert trace.thinking == whole(sample).thinking.strip()
                text = user_text(row.question, trace.thinking, trace.answer)
                vote = await judge.ask([message("system", "Judge."), message("user", text, image)])
                assert parse_reply(vote.answer).level.label == opinion(JUDGES[0], whole(sample)).judgment.split()[-1]

    asyncio.run(talk())


def test_a_question_that_isnt_the_corpuss_is_refused(port):
    async def ask() -> None:
        async with Client(endpoint("thinker", port)) as thinker:
            await thinker.ask([message("user", "Who are you?")])

    with pytest.raises(EndpointFailure, match="only the requests of their own corpus"):
        asyncio.run(ask())


def test_a_port_in_use_is_an_error(corpus, port):
    with pytest.raises(StepError, match=r"nano\.port"), parties(corpus, seed=3, port=port):
        pass
