"""Label reads, salts, priorities and the check of images, against a server that answers as vLLM does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from aiohttp import web
from PIL import Image

from guardtrace_proxy.auditor.openai import OpenAIAuditor
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn
from guardtrace_proxy.auditor.protocol import AuditorFailure, AuditorSettingsError, Depth, DoesNotFit, FailureKind
from guardtrace_proxy.images import RequestImage
from guardtrace_proxy.policy.levels import Level, Verdict
from tests.auditor.vllm_like import END, VllmLike, serving

ASKED = Query([Turn("user", "How do I bake bread?")], tenant="acme")
TRACE = Trace("Flour, then water.", "Mix them.")
PICTURE = RequestImage("data:image/png;base64,AAAA", "image/png", Image.new("RGB", (112, 112)))
WITH_IMAGE = Query(ASKED.turns, [PICTURE], tenant="acme")


@asynccontextmanager
async def started(server: VllmLike, **settings: Any) -> AsyncIterator[OpenAIAuditor]:
    async with serving(server) as url:
        auditor = OpenAIAuditor(url, "guard", **{"depth": "label", **settings})
        await auditor.start()
        server.requests.clear()
        try:
            yield auditor
        finally:
            await auditor.aclose()


def judged(
    server: VllmLike, queries: Sequence[Query] = (ASKED,), depth: Depth = Depth.LABEL, **settings: Any
) -> list[Verdict]:
    async def run() -> list[Verdict]:
        async with started(server, **{"depth": depth.value, **settings}) as auditor:
            return [await (await auditor.open(query)).judge(TRACE, depth) for query in queries]

    return anyio.run(run)


def shares(verdict: Verdict) -> tuple[float, float, float]:
    found = verdict.probabilities
    assert found is not None
    return found.safe, found.potentially_harmful, found.harmful


def refused(server: VllmLike) -> str:
    with pytest.raises(AuditorSettingsError) as caught:
        judged(server)
    return str(caught.value)


def failed(server: VllmLike, query: Query, depth: Depth = Depth.LABEL) -> FailureKind:
    with pytest.raises(AuditorFailure) as caught:
        judged(server, [query], depth)
    return caught.value.kind


def test_one_request_reads_both_places_where_the_label_begins_with_0() -> None:
    server = VllmLike(first={"0": 0.8, "1": 0.1}, second={".": 0.25, "end": 0.75})
    (verdict,) = judged(server)
    assert shares(verdict) == pytest.approx((0.6 / 0.9, 0.2 / 0.9, 0.1 / 0.9))
    assert (verdict.level, verdict.analysis, verdict.depth) == (Level.SAFE, None, "label")
    (body,) = server.requests
    assert body["messages"][-1] == {"role": "assistant", "content": "“Judgment”: "}
    assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)
    assert body["logprob_token_ids"] == [ord("0"), ord("."), ord("1"), END]
    assert (body["logprobs"], body["max_tokens"], body["temperature"], body["stream"]) == (True, 2, 0, False)


def test_a_second_request_is_made_where_1_is_likelier_and_0_still_open() -> None:
    server = VllmLike(first={"0": 0.3, "1": 0.6}, second={".": 1.0, "end": 0.0})
    (verdict,) = judged(server)
    assert shares(verdict) == pytest.approx((0.0, 0.3 / 0.9, 0.6 / 0.9))
    assert [body["messages"][-1]["content"] for body in server.requests] == ["“Judgment”: ", "“Judgment”: 0"]
    assert server.requests[1]["max_tokens"] == 1


def test_no_second_request_where_1_is_certain() -> None:
    server = VllmLike(first={"0": 0.005, "1": 0.99}, second={".": 0.0, "end": 1.0})
    (verdict,) = judged(server)
    assert len(server.requests) == 1
    assert verdict.level is Level.HARMFUL
    assert verdict.probabilities is not None
    assert verdict.probabilities.safe == 0.0


def test_little_mass_is_a_failure() -> None:
    assert failed(VllmLike(first={"0": 0.1, "1": 0.2, "x": 0.7}), ASKED) is FailureKind.UNSURE


def test_the_opening_ends_where_the_tokenizer_ends_a_token() -> None:
    server = VllmLike(joins_space=True)
    judged(server)
    assert server.requests[0]["messages"][-1]["content"] == "“Judgment”:"
    assert server.requests[0]["logprob_token_ids"] == [0xE000, ord("."), 0xE001, END]


def test_salts_tell_tenants_apart_and_not_who_they_are() -> None:
    server, another = VllmLike(), VllmLike()
    others = [ASKED, ASKED, Query(ASKED.turns, tenant="other"), Query(ASKED.turns)]
    judged(server, others)
    judged(another)
    salts = [body["cache_salt"] for body in server.requests]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 3
    assert all("acme" not in salt and "other" not in salt for salt in salts)
    assert another.requests[0]["cache_salt"] not in salts  # another process


def test_label_reads_go_before_annotations() -> None:
    label, annotate = VllmLike(), VllmLike()
    judged(label)
    (verdict,) = judged(annotate, depth=Depth.ANNOTATE)
    assert verdict.level is Level.HARMFUL
    assert label.requests[0]["priority"] < annotate.requests[0]["priority"]
    plain = VllmLike(takes_priority=False)
    judged(plain)
    assert "priority" not in plain.requests[0]
    assert "cache_salt" in plain.requests[0]


def test_the_prompt_keeps_within_the_context_of_the_server() -> None:
    async def run() -> int:
        async with started(VllmLike(), max_context=8192) as auditor:
            return auditor.max_context

    assert anyio.run(run) == 4096


def test_a_server_without_label_reads_is_refused_at_start_with_what_was_seen() -> None:
    said = refused(VllmLike(knows_logprob_token_ids=False))
    assert "logprob_token_ids" in said
    assert "depth: annotate" in said
    assert "HTTP status 401 (no)" in refused(VllmLike(status=401))


def test_depth_annotate_needs_no_label_reads() -> None:
    (verdict,) = judged(VllmLike(knows_logprob_token_ids=False), depth=Depth.ANNOTATE)
    assert verdict.level is Level.HARMFUL


def test_a_server_that_is_no_vllm_is_refused_for_labels_alone() -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.json_response({"detail": "Not Found"}, status=404)

    async def run(depth: str) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        auditor = OpenAIAuditor(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "guard", depth=depth)
        try:
            await auditor.start()
        finally:
            await auditor.aclose()
            await runner.cleanup()

    anyio.run(run, "annotate")
    for depth in ("label", "cascade"):
        with pytest.raises(AuditorSettingsError, match="POST /tokenize was answered with HTTP status 404"):
            anyio.run(run, depth)
    assert asked.count("/tokenize") == 3
    assert set(asked) == {"/tokenize", "/v1/chat/completions"}  # the latter for depth annotate


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_not_ready_at_start_is_asked_again_before_the_first_audit(status: int) -> None:
    server = VllmLike(status=status)

    async def run() -> tuple[FailureKind, Verdict]:
        async with started(server) as auditor:
            session = await auditor.open(ASKED)
            with pytest.raises(AuditorFailure) as caught:
                await session.judge(TRACE, Depth.LABEL)
            server.status = 200
            return caught.value.kind, await session.judge(TRACE, Depth.LABEL)

    kind, verdict = anyio.run(run)
    assert kind in (FailureKind.OVERLOADED, FailureKind.REFUSED)
    assert verdict.level is Level.SAFE


def test_a_server_that_is_down_is_no_error_at_start() -> None:
    async def run() -> FailureKind:
        auditor = OpenAIAuditor("http://127.0.0.1:9/v1", "guard", depth="label", timeout_ms=500)
        await auditor.start()
        try:
            with pytest.raises(AuditorFailure) as caught:
                await (await auditor.open(ASKED)).judge(TRACE, Depth.LABEL)
            return caught.value.kind
        finally:
            await auditor.aclose()

    assert anyio.run(run) is FailureKind.UNREACHABLE


def test_what_a_server_can_do_is_asked_once_however_many_audits_wait() -> None:
    server = VllmLike(status=503)

    async def run() -> None:
        async with started(server) as auditor:
            before = server.tokenized
            server.status = 200
            session = await auditor.open(ASKED)
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(session.judge, TRACE, Depth.LABEL)
            assert server.tokenized - before == before

    anyio.run(run)


@pytest.mark.parametrize(("pause", "asked_again"), [(0.0, True), (60.0, False)])
def test_a_server_that_refuses_what_it_took_before_is_asked_again_but_not_at_once(
    pause: float, asked_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardtrace_proxy.auditor.openai.RELEARN_SECONDS", pause)
    server = VllmLike()

    async def run() -> int:
        async with started(server) as auditor:
            session = await auditor.open(ASKED)
            before = server.tokenized
            server.takes_priority = False  # restarted without --scheduling-policy priority
            with pytest.raises(AuditorFailure):
                await session.judge(TRACE, Depth.ANNOTATE)
            with suppress(AuditorFailure):
                assert (await session.judge(TRACE, Depth.ANNOTATE)).level is Level.HARMFUL
            return server.tokenized - before

    assert (anyio.run(run) > 0) is asked_again


@pytest.mark.parametrize("depth", list(Depth))
def test_a_request_that_is_too_long_has_nobody_wait_for_what_is_known(
    depth: Depth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardtrace_proxy.auditor.openai.RELEARN_SECONDS", 0.0)
    server = VllmLike()

    async def run() -> None:
        async with started(server, depth=depth.value, system_prompt="Judge.") as auditor:
            known, tokenized = auditor._abilities, server.tokenized
            session = await auditor.open(ASKED)
            for _ in range(2):
                await session.judge(Trace("x" * 9000, judged_thinking=9000), depth)
            assert auditor._abilities is known
            assert (server.tokenized, len(server.requests)) == (tokenized, 3)

    anyio.run(run)


@pytest.mark.parametrize(("depth", "asked"), [(Depth.LABEL, 1), (Depth.ANNOTATE, 2)])
@pytest.mark.parametrize("counted", [True, False])
def test_a_refusal_of_what_cant_be_too_long_has_the_server_looked_at_again(
    depth: Depth, asked: int, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardtrace_proxy.auditor.openai.RELEARN_SECONDS", 0.0)
    server = VllmLike()

    async def run() -> None:
        settings = {"depth": depth.value, "annotate_max_tokens": 2048, "system_prompt": "Judge."}
        async with started(server, **settings) as auditor:
            server.is_away = True
            session = await auditor.open(ASKED if counted else Query([Turn("user", "x" * 4000)]))
            server.is_away, server.status = False, 400
            before = server.tokenized
            with pytest.raises(AuditorFailure):
                await session.judge(TRACE, depth)
            assert [str(body).count("Current Task Query") for body in server.requests].count(1) == asked
            assert (server.tokenized > before) is counted
            assert not session._prompt.is_dense

    anyio.run(run)


def test_while_a_server_that_calls_a_request_bad_is_looked_at_again_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("guardtrace_proxy.auditor.openai.RELEARN_SECONDS", 0.0)
    server = VllmLike()

    async def run() -> None:
        async with started(server) as auditor, anyio.create_task_group() as group:
            session, other = await auditor.open(ASKED), await auditor.open(ASKED)
            looks = anyio.Event()

            async def hanging(*_: object) -> None:
                looks.set()
                await anyio.sleep_forever()

            monkeypatch.setattr("guardtrace_proxy.auditor.openai.learn", hanging)
            server.status = 400
            group.start_soon(session.judge, TRACE, Depth.LABEL)
            await looks.wait()
            server.status = 200
            with anyio.fail_after(5):
                assert (await other.judge(TRACE, Depth.LABEL)).level is Level.SAFE
            group.cancel_scope.cancel()

    anyio.run(run)


@pytest.mark.parametrize("asked", ["x" * 4000, "é" * 500 + "x" * 2000])
def test_a_long_question_is_counted_by_the_server_and_refused_where_it_doesnt_fit(asked: str) -> None:
    server = VllmLike()

    async def run() -> None:
        async with started(server, system_prompt="Judge.") as auditor:
            before = server.tokenized
            query = Query([Turn("user", asked)])
            if len(asked) > 3000:
                with pytest.raises(DoesNotFit):
                    await auditor.open(query)
            else:
                assert (await (await auditor.open(query)).judge(TRACE, Depth.LABEL)).level is Level.SAFE
            assert server.tokenized == before + 1

    anyio.run(run)


@pytest.mark.parametrize("away", [True, False])
def test_a_long_question_that_the_server_doesnt_count_passes_by_the_estimate(
    away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardtrace_proxy.auditor.openai.COUNT_SECONDS", 0.05)

    async def hanging(*_: object) -> int:
        await anyio.sleep_forever()
        raise AssertionError

    async def run() -> None:
        server = VllmLike()
        async with started(server, system_prompt="Judge.") as auditor:
            server.is_away = away
            if not away:
                monkeypatch.setattr("guardtrace_proxy.auditor.openai.count_tokens", hanging)
            with anyio.fail_after(5):
                assert await auditor.open(Query([Turn("user", "x" * 4000)]))

    anyio.run(run)


@pytest.mark.parametrize("depth", list(Depth))
def test_what_a_gateway_says_while_the_server_is_away_is_not_kept(
    depth: Depth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardtrace_proxy.auditor.openai.RELEARN_SECONDS", 0.0)
    server = VllmLike()

    async def run() -> None:
        async with started(server, depth=depth.value) as auditor:
            session = await auditor.open(ASKED)
            server.is_away = True
            for _ in range(3):
                with pytest.raises(AuditorFailure):
                    await session.judge(TRACE, depth)
            server.is_away = False
            await session.judge(TRACE, depth)
            assert server.requests[-1]["cache_salt"] == auditor.salt("acme")

    anyio.run(run)


@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("counts_images", [True, False])
def test_an_image_that_the_server_does_not_count_is_a_failure(depth: Depth, counts_images: bool) -> None:
    assert failed(VllmLike(drops_images=True, counts_images=counts_images), WITH_IMAGE, depth) is FailureKind.UNSEEN
    server = VllmLike(counts_images=counts_images)
    judged(server, [WITH_IMAGE, WITH_IMAGE], depth)
    trials = [body for body in server.requests if len(body["messages"]) == 1]
    assert len(trials) == (0 if counts_images else 2)


def test_images_dropped_for_one_audit_alone_are_noticed_where_the_server_counts_them() -> None:
    server = VllmLike()

    async def run() -> FailureKind:
        async with started(server) as auditor:
            session = await auditor.open(WITH_IMAGE)
            await session.judge(TRACE, Depth.LABEL)
            server.drops_images = True
            with pytest.raises(AuditorFailure) as caught:
                await session.judge(TRACE, Depth.LABEL)
            return caught.value.kind

    assert anyio.run(run) is FailureKind.UNSEEN


def test_a_server_that_counts_no_tokens_is_warned_of() -> None:
    async def run() -> tuple[str, ...]:
        async with started(VllmLike(counts_tokens=False)) as auditor:
            await (await auditor.open(WITH_IMAGE)).judge(TRACE, Depth.LABEL)
            return auditor.warnings

    assert any("isn't checked" in warning for warning in anyio.run(run))
