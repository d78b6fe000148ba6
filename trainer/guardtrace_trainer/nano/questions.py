"""How requests in words are put: a goal in a frame, one that was written as a whole, one that says nothing of what is
wanted; as the last turn of a conversation now and then."""

from __future__ import annotations

import random

from guardtrace_proxy.auditor.prompt import Turn, query_text
from guardtrace_trainer.nano.wording import VAGUE_GOALS, Goals, bank, goals, questions, remarks, subtle

WRITTEN = 0.15
"""Share of the requests in words that were written as wholes; the others are goals in frames."""


def asked_for(rng: random.Random, harm: bool) -> str:
    """A request in words, of which it can be told whether it is harmful."""
    return request(rng, harm, False, None)[1]


def vague_request(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A goal that says nothing, and a request among remarks from others."""
    text = rng.choice(bank("vague", held_out))
    before = f"{rng.choice(remarks(held_out))} " if rng.random() < 0.8 else ""
    after = f" {rng.choice(remarks(held_out))}" if rng.random() < 0.5 else ""
    return rng.choice(VAGUE_GOALS), in_turns(rng, f"{before}{text}{after}")


def request(rng: random.Random, harm: bool, held_out: bool, of: Goals | None) -> tuple[str, str]:
    """What is wanted, and the request for it: one that was written as a whole, or a goal in a frame."""
    if of == "written" or (of is None and not held_out and rng.random() < WRITTEN):
        goal, text = rng.choice(questions(harm, held_out))
        return goal, in_turns(rng, text)
    name = "goals_harmful" if harm else "goals_harmless"
    if of == "subtle":
        goal = rng.choice(subtle(name))
    elif held_out:
        goal = rng.choice(bank(name, held_out=of != "seen"))
    else:
        goal = rng.choice(goals(harm))
    return goal, in_turns(rng, rng.choice(bank("frames", held_out)).replace("{goal}", goal))


def in_turns(rng: random.Random, text: str) -> str:
    """The request, now and then as the last turn of a conversation or under a system prompt."""
    draw = rng.random()
    if draw < 0.06:
        return query_text([Turn("system", "You are a helpful assistant."), Turn("user", text)])
    if draw < 0.12:
        earlier = rng.choice(bank("frames")).replace("{goal}", rng.choice(bank("goals_harmless")))
        turns = [Turn("user", earlier), Turn("assistant", rng.choice(bank("answers_neutral"))), Turn("user", text)]
        return query_text(turns)
    return query_text([Turn("user", text)])
