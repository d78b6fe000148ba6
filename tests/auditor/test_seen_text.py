"""A server that drops what is over its context is found out before the first audit, by one trial."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from traceback import walk_tb
from typing import Any

import anyio
import pytest
import structlog

from guardtrace_proxy.auditor import openai, seen_text
from guardtrace_proxy.auditor.openai import OpenAIAuditor
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn
from guardtrace_proxy.auditor.protocol import AuditorFailure, AuditorSettingsError, Depth, FailureKind
from guardtrace_proxy.auditor.seen_text import OPENING, trial_text
from guardtrace_proxy.policy.levels import Level, Verdict
from tests.auditor.vllm_like import VllmLike, serving

ASKED = Query([Turn("user", "How do I bake bread?")])
TRACE = Trace("Flour, then water.", "Mix them.")
LARGE = 100_000


def plain(**more: Any) -> VllmLike:
    """No vLLM, so nobody knows its context."""
    return VllmLike(**{"is_vllm": False, "context": LARGE, **more})


@asynccontextmanager
async def started(server: VllmLike, **settings: Any) -> AsyncIterator[OpenAIAuditor]:
    async with serving(server) as url:
        auditor = OpenAIAuditor(url, "guard", **settings)
        try:
            await auditor.start()
            yield auditor
        finally:
            await auditor.aclose()


async def judged(auditor: OpenAIAuditor) -> Verdict:
    return await (await auditor.open(ASKED)).judge(TRACE, Depth.ANNOTATE)


def trials(server: VllmLike) -> list[str]:
    texts = [body["messages"][-1]["content"] for body in server.requests]
    return [text for text in texts if text.startswith(OPENING)]


def test_a_server_that_drops_text_ends_the_start_with_what_it_kept() -> None:
    async def run() -> None:
        async with started(plain(keeps=4096)):
            pass

    with pytest.raises(AuditorSettingsError) as caught:
        anyio.run(run)
    assert "read 4096 of at least 7616 tokens" in str(caught.value)
    assert "(8192) allows: set auditor.max_context to 4096 or less, or raise the server's context" in str(caught.value)


def test_a_context_that_the_server_has_is_tried_once() -> None:
    server = plain(keeps=4096)

    async def run() -> tuple[str, ...]:
        async with started(server, max_context=4096) as auditor:
            for _ in range(2):
                assert (await judged(auditor)).level is Level.HARMFUL
            return auditor.warnings

    assert anyio.run(run) == ()
    assert len(trials(server)) == 1


def test_a_trial_is_at_least_a_token_a_letter_and_new_each_time() -> None:
    letters = trial_text(500).partition("\n")[2].split(" ")
    assert (len(letters), {len(letter) for letter in letters}) == (500, {1})
    assert trial_text(500) != trial_text(500)


def test_vllm_tells_its_context_and_isnt_tried() -> None:
    server = VllmLike()

    async def run() -> None:
        async with started(server) as auditor:
            await judged(auditor)

    anyio.run(run)
    assert trials(server) == []


@pytest.mark.parametrize("pause", [0.0, 60.0])
def test_a_server_that_was_away_at_the_start_is_tried_before_the_first_audits_once_for_all(
    pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_text, "AGAIN_SECONDS", pause)
    server = plain(is_away=True, keeps=4096)
    failures: list[AuditorFailure] = []

    async def run() -> None:
        async def fail(auditor: OpenAIAuditor) -> None:
            with pytest.raises(AuditorFailure) as caught:
                await judged(auditor)
            failures.append(caught.value)

        async with started(server) as auditor:
            server.is_away = False
            server.requests.clear()
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(fail, auditor)
            assert len(trials(server)) == len(server.requests) == 1
            server.keeps = None
            if pause:
                await fail(auditor)
            else:
                assert (await judged(auditor)).level is Level.HARMFUL

    anyio.run(run)
    assert {failure.kind for failure in failures} == {FailureKind.REFUSED}
    assert all("set auditor.max_context to 4096 or less" in str(failure) for failure in failures)


@pytest.mark.parametrize("how", [{"counts_tokens": False}, {"keeps": 0}], ids=["no usage", "always 0"])
def test_a_server_that_doesnt_count_tokens_is_warned_of_at_start(how: dict[str, Any]) -> None:
    async def run() -> tuple[str, ...]:
        async with started(plain(**how)) as auditor:
            warnings = auditor.warnings
            assert (await judged(auditor)).level is Level.HARMFUL
            return warnings

    (warning,) = anyio.run(run)
    assert "whether guard is shown all of a long prompt isn't checked" in warning


def test_a_server_that_refuses_long_prompts_drops_nothing_and_is_warned_of() -> None:
    server = plain(context=4096)

    async def run() -> tuple[str, ...]:
        async with started(server) as auditor:
            warnings = auditor.warnings
            assert (await judged(auditor)).level is Level.HARMFUL
            return warnings

    (warning,) = anyio.run(run)
    assert "refuses a prompt of some 7616 tokens" in warning
    assert len(trials(server)) == 1


@pytest.mark.parametrize("status", [400, 401, 500, 503])
def test_a_server_that_refuses_everything_is_tried_again(status: int) -> None:
    server = plain(status=status, keeps=4096)

    async def run() -> None:
        async with started(server) as auditor:
            with pytest.raises(AuditorFailure, match=f"HTTP status {status}"):
                await judged(auditor)
            server.status = 200
            with pytest.raises(AuditorFailure, match="read 4096 of"):
                await judged(auditor)

    anyio.run(run)


def test_a_trial_outlives_the_audits_and_the_start_that_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "START_TRIAL_SECONDS", 0.05)
    server = plain(pause=1.0)

    async def run() -> None:
        async with started(server) as auditor:
            with anyio.move_on_after(0.05) as audit:
                await judged(auditor)
            assert audit.cancelled_caught
            server.pause = 0.0
            assert (await judged(auditor)).level is Level.HARMFUL

    anyio.run(run)
    assert len(trials(server)) == 1


def test_a_trial_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_text, "TRIAL_SECONDS", 0.05)
    server = plain(pause=0.5)

    async def run() -> AuditorFailure:
        async with started(server) as auditor:
            with pytest.raises(AuditorFailure, match=r"lower auditor\.max_context") as caught:
                await judged(auditor)
            return caught.value

    assert anyio.run(run).kind is FailureKind.TIMEOUT


def test_an_auditor_that_is_closed_ends_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "START_TRIAL_SECONDS", 0.05)
    server = plain(pause=2.0)
    failures: list[FailureKind] = []

    async def run() -> None:
        async def wait(auditor: OpenAIAuditor) -> None:
            with pytest.raises(AuditorFailure) as caught:
                await judged(auditor)
            failures.append(caught.value.kind)

        async with serving(server) as url, anyio.create_task_group() as group:
            auditor = OpenAIAuditor(url, "guard")
            await auditor.start()
            group.start_soon(wait, auditor)
            await anyio.sleep(0.1)
            await auditor.aclose()

    anyio.run(run)
    assert failures == [FailureKind.CANCELLED]


def test_a_trial_that_passes_when_nobody_waits_any_more_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "START_TRIAL_SECONDS", 0.01)
    server = plain(pause=0.3)

    async def run() -> None:
        async with started(server) as auditor:
            await anyio.sleep(1)
            server.pause = 0.0
            assert (await judged(auditor)).level is Level.HARMFUL

    anyio.run(run)
    assert len(trials(server)) == 1


def test_a_failure_that_many_audits_meet_keeps_nothing_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "START_TRIAL_SECONDS", 0.0)
    failures: list[AuditorFailure] = []

    async def run() -> None:
        async with started(plain(keeps=4096)) as auditor:
            for _ in range(20):
                with pytest.raises(AuditorFailure, match="read 4096 of") as caught:
                    await judged(auditor)
                failures.append(caught.value)

    anyio.run(run)
    assert len({id(failure) for failure in failures}) == len(failures)
    lengths = {len(list(walk_tb(failure.__traceback__))) for failure in failures[1:]}
    assert len(lengths) == 1


def test_what_the_first_audits_find_out_is_logged_and_known() -> None:
    server = plain(is_away=True, context=4096)

    async def run() -> tuple[str, ...]:
        async with started(server) as auditor:
            assert auditor.warnings == ()
            server.is_away = False
            await judged(auditor)
            return auditor.warnings

    with structlog.testing.capture_logs() as logged:
        warnings = anyio.run(run)
    assert [line["warning"] for line in logged if line["event"] == "auditor"] == list(warnings)
    assert "refuses a prompt of some 7616 tokens" in warnings[0]
