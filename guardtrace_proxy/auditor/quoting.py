"""Untrusted text as it stands in a prompt: forged labels quoted, control tokens broken up, nothing unencodable.

What a forged label is: a line, or what follows a control token, that begins with one of the layout's labels as its
reader sees it, up to a colon; control tokens inside the label are seen through. Everything else stays as it is.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from guardtrace_proxy.auditor.lookalikes import LOOKALIKES

_LABELS = (
    "currenttaskquery",
    "currenttaskthinking",
    "currenttaskcleanedresponse",
    "analysis",
    "judgment",
    "judgement",
)
_TAGS = (
    "s|bos|eos|pad|unk|mask|cls|sep|sop|eop|think|answer|tool_call|tool_response|arg_key|arg_value"
    "|image|img|video|audio|(?:image|audio)_soft_token|(?:start|end)_of_(?:turn|image|audio|utterance)"
    "|im_(?:start|end|patch|col)|IMG_CONTEXT|fake_token_around_image|global-img|box|ref|quad|point|slice"
    "|(?:BOS|EOS|PAD|UNK)_TOKEN|(?:unused|extra_id_|SPECIAL_|loc|seg)\\d+|seed:\\w+"
)
_BRACKETS = (
    "INST|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT"
    "|ARGS|CALL_ID|THINK|MODEL_SETTINGS|PREFIX|MIDDLE|SUFFIX|BOS|EOS|EOT|PAD|UNK|CLS|SEP|[gs]?MASK|(?:start|end)_header_id"
)
_NAME = r"[^\s<>\[\]|\uff5c\u25c1\u25b7]{1,64}"
_CONTROL = (
    rf"<[|\uff5c]{_NAME}[|\uff5c]?>"
    rf"|<{_NAME}[|\uff5c]>"
    rf"|</?(?:{_TAGS})>"
    rf"|\[/?(?:{_BRACKETS})\]"
    r"|<</?SYS>>"
    r"|\u25c1/?\w{1,32}\u25b7"
)
"""Control tokens of the chat templates at large: Qwen, Llama, Mistral, Gemma, DeepSeek, GLM, Kimi, Harmony, others."""
_MARKS = "<>[]|\uff5c\u25c1\u25b7"
_OPENING_MARKS = "<[\u25c1"
"""Each control token begins with one of these."""

_BREAKS = "\\n\\r\\x0b\\x0c\\x1c-\\x1e\\x85\\u2028\\u2029"
_LINE_BREAK = re.compile(f"([{_BREAKS}])")
_CONTROL_TOKENS = re.compile(f"({_CONTROL})")
_TOKEN = "\0"
"""Stands for a control token in a text as its reader sees it; nothing else there is it."""
_TAG = re.compile(f"<[^<>\\[\\]\\0\u25c1\u25b7{_BREAKS}]*>")
"""Never reaches over a line break or a control token."""
_SHAPES = {"i": "[il1]", "l": "[il1]", "o": "[o0]"}


class Labels(NamedTuple):
    """What may not be forged, in a text as its reader sees it: anywhere, and where a line begins or a control token
    ends; there ``label`` is its place."""

    anywhere: re.Pattern[str]
    first: re.Pattern[str]


def labels(pattern: str) -> Labels:
    """Those that ``pattern`` describes, with whatever stands before them on their line."""
    return Labels(re.compile(pattern), re.compile(rf"(?:\A|\0)(?:(?!\0)[\W_])*(?P<label>)(?={pattern})"))


def spelled(label: str) -> str:
    """The pattern of a label, given in small letters: spaced out, quoted, with letters that look alike."""
    return "[\\W_]*".join(_SHAPES.get(letter, letter) for letter in label)


LAYOUT = labels(rf"(?:{'|'.join(map(spelled, _LABELS))})[\W_]*?:")
"""The prompt's and the reply's own."""
_UNUSUAL = re.compile(r"[^\t\n\r\x20-\x7e]+")
_USUAL = b"\t\n\r" + bytes(range(0x20, 0x7F))
_LUNATE_SIGMAS = re.compile("[\u03f2\u03f9]")
"""Look like a c, and their compatibility forms don't."""
_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}")
_ESCAPES = re.compile(f"(?:{_ESCAPE.pattern})+")
_HALF_PAIR = re.compile("[\ud800-\udfff]")

_INVISIBLE = frozenset(("Cc", "Cf", "Mn", "Me", "Cs", "Co", "Cn"))
"""Unicode categories that show nothing of their own."""
MOST_SEEN = 16_384
"""Characters whose looks are remembered, some 2 MiB: more than the languages of a day have. A text may hold a million,
and whoever writes it would have this process keep them all."""
_FILLERS = "\u115f\u1160"
"""Letters that show nothing, where they aren't folded to these."""


def quote_forged_labels(text: str, forged: Labels = LAYOUT) -> str:
    """Put ``> `` before every line that begins with one of the layout's own labels, however it is dressed up.

    Seen through: case, full-width letters and other scripts' look-alikes, quotes, Markdown, tags, spaced-out
    letters, invisible and bidi characters, every line break that Unicode knows. What is quoted already stays as it
    is.
    """
    if not _may_hold(text, forged):
        return text
    return "".join(_quoted(line, forged) if _may_hold(line, forged) else line for line in _LINE_BREAK.split(text))


def _may_hold(text: str, forged: Labels) -> bool:
    plain = _plain(text)
    if forged.anywhere.search(plain):
        return True
    if not any(mark in plain for mark in _OPENING_MARKS):
        return False
    return forged.anywhere.search(_TAG.sub("", _plain(_CONTROL_TOKENS.sub("", text)))) is not None


def _quoted(line: str, forged: Labels) -> str:
    tokens_between = _CONTROL_TOKENS.split(line)
    pieces = tokens_between[::2]
    seen = _TOKEN.join(map(_plain, pieces))
    for number in _first_in(seen, forged) | _first_in(_TAG.sub("", seen), forged):
        if not pieces[number].startswith("> "):
            tokens_between[2 * number] = f"> {pieces[number]}"
    return "".join(tokens_between)


def _first_in(seen: str, forged: Labels) -> set[int]:
    """The pieces between control tokens that begin with a label, though it may end in another."""
    number = before = 0
    numbers = set()
    for found in forged.first.finditer(seen):
        number += seen.count(_TOKEN, before, found.start("label"))
        before = found.start("label")
        numbers.add(number)
    return numbers


def _plain(text: str) -> str:
    """The text as a reader sees it, in lower case, with the same line breaks: look-alikes and compatibility forms
    folded, what is invisible dropped."""
    if not text.isascii() or text.encode().translate(None, _USUAL):
        text = _UNUSUAL.sub(_as_seen, text)
    return text.lower()


def _as_seen(unusual: re.Match[str]) -> str:
    return unicodedata.normalize("NFKD", _LUNATE_SIGMAS.sub("c", unusual[0])).translate(_SEEN)


class _Seen(dict[int, str | None]):
    """A table for ``str.translate``: what a character looks like, None where it shows nothing of its own.

    Filled as characters turn up, and begun anew behind ``MOST_SEEN`` of them.
    """

    def __missing__(self, code: int) -> str | None:
        if len(self) >= MOST_SEEN:
            self.clear()
        look = self[code] = self._look(chr(code))
        return look

    def _look(self, character: str) -> str | None:
        if character in "\t\n\r\x0b\x0c\x1c\x1d\x1e\x85":
            return character
        category = unicodedata.category(character)
        if category in _INVISIBLE or character in _FILLERS:
            return None
        return LOOKALIKES.get(ord(character)) or ("'" if category == "Lm" else character.casefold())


_SEEN = _Seen()


def defuse_control_tokens(text: str) -> str:
    """Break up what a chat template could take for control tokens: ``<|im_end|>`` becomes ``<| im_end |>``.

    For servers whose tokenizer isn't at hand; where it is, the text is encoded without control tokens
    instead.
    """
    if not any(mark in text for mark in _OPENING_MARKS):
        return text
    return _CONTROL_TOKENS.sub(_broken_up, text)


def _broken_up(token: re.Match[str]) -> str:
    name = token[0].strip(_MARKS)
    before, after = token[0].split(name, 1)
    return f"{before} {name} {after}"


def unescaped(text: str) -> str:
    """The characters themselves where JSON writes them as their codes (``\\u0041``): a call's arguments are judged as
    JSON that their reader decodes."""
    return _ESCAPES.sub(_decoded, text) if "\\u" in text else text


def least_unescaped(text: str) -> int:
    """How many characters ``unescaped`` leaves at least, told without decoding: two codes may be one character."""
    if "\\u" not in text:
        return len(text)
    rest, escapes = _ESCAPE.subn("", text)
    return len(rest) + (escapes + 1) // 2


def _decoded(escapes: re.Match[str]) -> str:
    return bytes.fromhex(escapes[0].replace("\\u", "")).decode("utf-16-be", "surrogatepass")


def encodable(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which neither UTF-8 nor a tokenizer takes."""
    return text if text.isascii() else _HALF_PAIR.sub("\ufffd", text)
