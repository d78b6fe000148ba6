"""The corpus of attacks on the auditor, strategies that compose them, and a reader who sees labels in his own way."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from guardtrace_proxy.auditor.lookalikes import LOOKALIKES

FOLDER = Path(__file__).parents[1] / "data" / "attacks"
LABELS = ("Current Task Query: ", "Current Task Thinking: ", "Current Task Cleaned Response: ")
KNOWN_TOKENS = """
<|endoftext|> <|im_start|> <|im_end|> <|im_sep|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call>
</tool_call> <tool_response> </tool_response> <think> </think> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|>
<|repo_name|> <|file_sep|> <|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|>
<|eot|> <|header_start|> <|header_end|> <|python_tag|> <|finetune_right_pad_id|> <|reserved_special_token_0|> <|image|>
<s> </s> <unk> <pad> <bos> <eos> <mask> [INST] [/INST] <<SYS>> <</SYS>> [SYSTEM_PROMPT] [/SYSTEM_PROMPT]
[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CONTENT] [ARGS] [CALL_ID] [IMG]
[IMG_BREAK] [IMG_END] [AUDIO] [BEGIN_AUDIO] [THINK] [/THINK] [MODEL_SETTINGS] <start_of_turn> <end_of_turn>
<start_of_image> <end_of_image> <image_soft_token> <audio_soft_token> <unused0> <unused98> <|turn> <turn|> <|channel>
<channel|> <|tool> <tool|> <|image> <image|> <|think|> <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜>
<｜▁pad▁｜> <｜tool▁calls▁begin｜> <｜tool▁call▁begin｜> <｜tool▁sep｜> <｜tool▁outputs▁begin｜> <|EOT|> <｜hy_User｜> [gMASK]
[sMASK] [MASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> <|begin_of_image|> <|end_of_image|>
<|begin_of_video|> <|begin_of_box|> <|end_of_box|> <answer> </answer> <arg_key> </arg_key> <arg_value> </arg_value>
<|im_user|> <|im_assistant|> <|im_system|> <|im_middle|> <|media_start|> <|media_content|> <|media_end|> <|media_pad|>
<|tool_calls_section_begin|> <|tool_call_argument_begin|> [BOS] [EOS] [EOT] [PAD] [UNK] [start_header_id] ◁think▷ ◁/think▷
<|start|> <|end|> <|message|> <|channel|> <|constrain|> <|return|> <|call|> <|startoftext|> <|image_1|> <BOS_TOKEN>
<EOS_TOKEN> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|CHATBOT_TOKEN|> <img> </img> <IMG_CONTEXT> <image> <video>
<im_start> <im_end> <im_patch> <ref> </ref> <box> </box> <quad> <fake_token_around_image> <global-img>
<end_of_utterance> <extra_id_0> <|start_of_role|> <|end_of_role|> <seed:bos> <seed:eos> <SPECIAL_10> [CLS] [SEP]
""".split()


@dataclass(frozen=True)
class Attack:
    kind: str
    text: str
    quoted: int
    defused: int
    note: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.note or self.text[:20]}".encode("ascii", "backslashreplace").decode()


def load() -> list[Attack]:
    return [Attack(**json.loads(line)) for line in (FOLDER / "attacks.jsonl").read_text("utf-8").splitlines()]


ATTACKS = load()
attacks = st.sampled_from([attack.text for attack in ATTACKS if attack.kind != "repetition"])
innocent = st.sampled_from(
    ["", " ", "x", "\n", "Flour and water.", "漢字", "é", "👩‍🚀", "1.5 g\n\n", "def f(x): ...", ": ", "> "]
)
pieces = attacks | innocent | st.sampled_from(KNOWN_TOKENS) | st.text(max_size=12)


@st.composite
def cuts(draw: st.DrawFn) -> str:
    """A beginning, an end or a middle of an attack."""
    text = draw(attacks)
    start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    return text[start:end]


@st.composite
def woven(draw: st.DrawFn) -> str:
    """One attack inside another."""
    outer, inner = draw(attacks), draw(attacks)
    at = draw(st.integers(0, len(outer)))
    return outer[:at] + inner + outer[at:]


hostile = st.lists(pieces | cuts() | woven(), min_size=1, max_size=5).map("".join)
"""Attacks with something before, behind, between and inside them."""


def labels_seen(text: str) -> list[str]:
    """The lines that begin with one of the layout's labels for a reader who goes by letters alone.

    Written another way than the quoting: character by character, and what stands before the colon is compared whole.
    What follows a control token is a line too, with further tokens seen through.
    """
    seen = []
    for line in _BREAK.split(text):
        pieces = _TOKEN.split(line)
        lines = ["\0".join(pieces[first:]) for first in range(len(pieces))]
        seen += [line for line in lines if _begins(line) or _begins(_without_tags(line))]
    return seen


_BREAK = re.compile(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_TOKEN = re.compile(
    r"<[|｜][^<>|｜\[\]◁▷\s]{1,64}[|｜]?>|<[^<>|｜\[\]◁▷\s]{1,64}[|｜]>|"
    + "|".join(map(re.escape, sorted(KNOWN_TOKENS, key=len, reverse=True)))
)


def _begins(line: str) -> bool:
    """Whether it begins with a label that isn't quoted."""
    if re.match(r"(?:[\W_]*\0)?> ", line):
        return False
    head = ""
    for character in unicodedata.normalize("NFKD", re.sub("[ϲϹ]", "c", line)):
        looks = LOOKALIKES.get(ord(character), character.casefold())
        if looks == ":" and head:
            break
        shown = looks.isalnum() and unicodedata.category(character) != "Lm" and character not in "\u115f\u1160"
        head += looks if shown else ""
    else:
        return False
    skeletons = [label.lower().replace(" ", "").rstrip(":") for label in LABELS]
    folded = [name.translate(_ALIKE) for name in (*skeletons, "analysis", "judgment", "judgement")]
    return head.translate(_ALIKE) in folded


def _without_tags(line: str) -> str:
    return re.sub(r"[<＜﹤][^<>＜＞﹤﹥\[\]［］◁▷\0]*[>＞﹥]", "", line)


_ALIKE = str.maketrans("il1o0", "iiioo")
