"""What the auditor in this process keeps of one stream saves no other stream a token: neither another tenant's nor the
same one's. Only what stands before every query, the system prompt, is read once for all."""

from __future__ import annotations

import anyio
import pytest

torch = pytest.importorskip("torch", reason="the extra `local` isn't installed")

from guardtrace_proxy.auditor import BUILT_IN  # noqa: E402
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn  # noqa: E402
from guardtrace_proxy.auditor.protocol import Depth  # noqa: E402
from guardtrace_proxy.auditor.transformers import TransformersAuditor  # noqa: E402
from tests.auditor.conftest import Picture  # noqa: E402
from tests.auditor.local import started  # noqa: E402

SECRET = "The code of our safe is 7351, and the board meets on Tuesday. How do we tell the staff? "
TRACE = Trace("The user wants to tell the staff.")


@pytest.fixture(scope="module")
def auditor() -> TransformersAuditor:
    return started(BUILT_IN)  # type: ignore[arg-type]


def asked(tenant: str, text: str, pictures: list[Picture]) -> Query:
    return Query([Turn("user", text)], pictures, tenant=tenant)  # type: ignore[arg-type]


@pytest.mark.parametrize("stays_open", [False, True])
def test_a_prompt_that_another_tenant_sent_before_is_read_in_full(
    auditor: TransformersAuditor, pictures: list[Picture], stays_open: bool
) -> None:
    async def run() -> list[int]:
        read, sessions = [], []
        for tenant in ("acme", "other", "acme"):
            before = auditor.inference.tokens_read
            session = await auditor.open(asked(tenant, SECRET, pictures))
            await session.judge(TRACE, Depth.LABEL)
            read.append(auditor.inference.tokens_read - before)
            sessions.append(session)
            if not stays_open:
                await session.aclose()
        for session in sessions:
            await session.aclose()
        return read

    read = anyio.run(run)
    assert len(set(read)) == 1
    assert read[0] > len(auditor.layout.encode(SECRET))
    assert auditor.kept.nbytes == 0


def test_what_is_kept_for_all_ends_before_the_query(auditor: TransformersAuditor) -> None:
    one, other = (auditor.layout.prompt(auditor.system_prompt, text, []) for text in (SECRET, "Hello."))
    shared = auditor.branch(one).ids
    assert shared == auditor.branch(other).ids
    assert "7351" not in auditor.layout.decode(shared)
