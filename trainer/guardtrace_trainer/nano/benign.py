"""Plain reasoning about plain tasks, as reasoning models write it: sums, order puzzles, code, lists."""

from __future__ import annotations

import random

THINGS = "boxes apples crates books tickets chairs marbles coins pages bottles cards tiles seeds stamps".split()
NAMES = "Ana Ben Cara Dan Eve Finn Gina Hugo Iris Jon".split()
CONNECTIVES = (
    "Okay,", "So", "Hmm,", "Wait,", "Now", "Then", "Let me see:", "Alright,", "First,", "Next,", "Therefore", "That means", "But",
)  # fmt: skip
CHECKS = (
    "Let me double-check that.",
    "That seems right.",
    "Wait, is that right? Let me check again.",
    "Yes, that matches.",
    "Let me recap to make sure I didn't skip any steps.",
    "I think that's the final answer.",
    "Hmm, let me verify this by plugging it back in.",
    "So the answer should be consistent with the conditions.",
)
CODE = (
    "I'd write def total(items): return sum(items) and test it with an empty list.",
    "The loop `for i in range(len(xs))` can be replaced by enumerate.",
    "```python\nprint(sorted(names, key=len))\n```",
    "We need to handle a 404 when the id isn't found, and return JSON.",
    "If the input isn't an integer we should raise ValueError with a message.",
    "Use a dictionary that maps each word to its count.",
    "The endpoint POST /items adds an item and returns 201.",
    "A lock isn't needed since there's one thread.",
)
LISTS = (
    "1. **Analyze the Request:**\n   * Task: answer the question.\n   * Constraint: end with the line 'Answer: ...'.",
    "2. **Identify the given facts:** see above.",
    "3. **Check each condition** one after another.",
    "* The applicant has five years of experience and two references.\n* The CV is well structured.",
    "* The first stanza sets the scene; the image of the bench is strong.",
    "* Keywords: harbour, boats, evening light, calm water, gulls.",
    "* Title: a short description without guesses.",
    "The essay argues clearly, though the second paragraph lacks evidence. I'd give seven of ten.",
    "The symptoms sound mild: a sore throat and a slight fever for two days. Rest, fluids, and a doctor if it gets worse.",
    "The picture shows a beach with people, houses along the coast and wind turbines far away under a clear sky.",
    "The system prompt asks me to answer in British English and to leave out what isn't certain.",
)


def benign_question(rng: random.Random) -> str:
    """A word problem, a puzzle, a coding task or a judgment that somebody asks for."""
    a, b, c, thing = rng.randint(2, 99), rng.randint(2, 40), rng.randint(2, 99), rng.choice(THINGS)
    x, y, z = rng.sample(NAMES, 3)
    return rng.choice(
        (
            f"A warehouse holds {a} crates. Each crate contains {b} {thing}. {c} {thing} are removed. How many are left? "
            "End your reply with a line of the form 'Answer: <answer>'.",
            f"{x} has {a} {thing} and gives {b} to {y}. {z} brings {c} more. How many does {x} have now?",
            f"Three runners finished a race: {x}, {y} and {z}. {x} finished before {y}. {z} finished last. Who won?",
            f"What is {a} times {b} plus {c}?",
            f"Solve {a}x + {b} = {c} for x and round to two digits.",
            "Write a function that returns the longest word of a sentence, with tests.",
            "Write a simple REST API with two endpoints. Include basic error handling and input validation.",
            "Rate this poem from 1 to 10 and say why:\n\nThe bus stop at the corner\nhas a bench that nobody painted.",
            "Grade this essay on a scale of ten. Give brief reasoning.\n\nCities should plant more trees because they give shade.",
            "Here is a CV. Should we invite the applicant?\n\nFive years as a nurse, two languages, good references.",
            "I've had a sore throat and a mild fever for two days. What should I do?",
            "Analyze this image for cataloguing metadata, using British English. Give a title, a description and keywords.",
            "Describe the photograph in two sentences. Leave out what you can't see clearly.",
            f"In which year was the bridge finished if it took {b} years and work began in 19{a:02d}?",
            "Which weighs more, a kilo of feathers or a kilo of iron? Explain.",
            "Name the capital of the country that lies north of Portugal's eastern neighbour.",
        )
    )


def _sum(rng: random.Random) -> str:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    sign, result = rng.choice((("times", a * b), ("plus", a + b), ("minus", a - b)))
    return rng.choice(
        (
            f"{a} {sign} {b} is {result}.",
            f"{rng.choice(CONNECTIVES)} {a} {sign} {b} gives {result}.",
            f"{rng.choice(CONNECTIVES)} I need to take {a} {sign} {b}, which makes {result} in total.",
            f"So {a} + {b} = {a + b}, and half of that is {(a + b) / 2:g}.",
            f"The total is {a} + {b} + {result} = {a + b + result}.",
            f"x = {a}/{b}, so x is about {a / b:.2f}.",
        )
    )


def _order(rng: random.Random) -> str:
    x, y, z = rng.sample(NAMES, 3)
    return rng.choice(
        (
            f"{x} comes before {y}, so {y} can't be first.",
            f"If {x} is second, then {z} must be third and {y} first.",
            f"{rng.choice(CONNECTIVES)} the condition says that {z} finished right after {x}.",
            f"That leaves only {y} for the last place.",
        )
    )


def benign_thinking(rng: random.Random) -> list[str]:
    """Three to fifteen sentences, now and then many more."""
    count = rng.randint(3, 15) if rng.random() < 0.8 else rng.randint(15, 45)
    makers = rng.choice(((_sum, _sum, _order), (_order, _sum), (_sum,)))
    sentences = []
    for _ in range(count):
        draw = rng.random()
        if draw < 0.5:
            sentences.append(rng.choice(makers)(rng))
        elif draw < 0.65:
            sentences.append(rng.choice(CHECKS))
        elif draw < 0.8:
            sentences.append(rng.choice(LISTS))
        else:
            sentences.append(rng.choice(CODE))
    return sentences
