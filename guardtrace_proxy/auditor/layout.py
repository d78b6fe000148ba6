"""The prompt as token ids: the chat template's control tokens from us alone, everything else as plain text.

The chat template is rendered once with marks in place of the untrusted text, then split at the tokenizer's
added tokens. What lies between two of them is encoded by a copy of the tokenizer that knows no added tokens.
That is what the tokenizer itself does with a whole prompt, so text without control tokens comes out the same,
and text with them comes out as characters.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer, models, pre_tokenizers

from guardtrace_proxy.auditor.growing import GrowingText, encoded, has_borders
from guardtrace_proxy.auditor.processor import ImageOnlyProcessor
from guardtrace_proxy.auditor.protocol import AuditorSettingsError

_SYSTEM, _USER, _REPLY = "\ue000system\ue000", "\ue000user\ue000", "\ue000reply\ue000"


class Stretch(NamedTuple):
    """A part of the rendered template: one control token, or text (``token`` None) with marks in it."""

    text: str
    token: int | None


Stretches = dict[int, GrowingText]
"""What one session's last prompt looked like, for the next: the texts between control tokens, by their place."""


class Layout:
    """Builds prompts for one tokenizer and chat template.

    Raises:
        AuditorSettingsError: the tokenizer makes control tokens of plain text.
    """

    def __init__(self, processor: ImageOnlyProcessor) -> None:
        self._processor = processor
        tokenizer = processor.tokenizer.backend_tokenizer
        self._plain = _without_added_tokens(tokenizer)
        self._added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)))
        made = [token for token, number in self._added.items() if number in self.encode(token)]
        if made:
            raise AuditorSettingsError(
                f"the auditor's tokenizer makes the control token {made[0]} of plain text, so any text could forge it: "
                "use a tokenizer whose control tokens are added tokens alone"
            )
        self._image_id: int = processor.image_token_id
        self._can_grow = has_borders(self._plain)
        self._longest_token = _longest_token(self._plain) if self._can_grow else math.inf
        self._stretches: dict[int, list[Stretch]] = {}
        self.most_tokens_per_byte = 2 if tokenizer.normalizer is None else 3
        """Tokens that a UTF-8 byte of text makes at most: quoting adds to it, and so does NFC (three
        times)."""

    def encode(self, text: str) -> list[int]:
        """Token ids of text that stands between two control tokens; never a control token."""
        ids: list[int] = encoded(self._plain, text).ids
        return ids

    def most_bytes(self, tokens: int) -> float:
        """UTF-8 bytes of text, in the form that the tokenizer brings it into, that so many tokens are at most."""
        return tokens * self._longest_token

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each of a text's tokens begins and ends, in characters."""
        found: list[tuple[int, int]] = encoded(self._plain, text).offsets
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of what the model wrote, without control tokens."""
        return str(self._processor.tokenizer.decode(list(ids), skip_special_tokens=True))

    def prompt(
        self,
        system: str,
        user: str,
        image_tokens: Sequence[int],
        opening: Sequence[int] | None = None,
        last: Stretches | None = None,
    ) -> list[int]:
        """Ids of the whole prompt, up to where the assistant's turn is to go on.

        Args:
            system: the system prompt.
            user: the user turn's text.
            image_tokens: for each image how many tokens it takes.
            opening: ids that stand for the template's last stretch; see :meth:`opening`.
            last: of the same session's last prompt; what this one has in common with it isn't encoded again.
        """
        ids: list[int] = []
        images = iter(image_tokens)
        for place, (text, token) in enumerate(self._template(len(image_tokens))[:-1]):
            if token == self._image_id:
                ids += [token] * next(images)
            elif token is not None:
                ids.append(token)
            else:
                ids += self._encode_again(text.replace(_SYSTEM, system).replace(_USER, user), place, last)
        return ids + list(self.opening("") if opening is None else opening)

    def _encode_again(self, text: str, place: int, last: Stretches | None) -> list[int]:
        if last is None or not self._can_grow:
            return self.encode(text)
        return last.setdefault(place, GrowingText()).encode(self._plain, text)

    def opening(self, begun: str) -> list[int]:
        """Ids of the template's last stretch (``assistant`` and a line break) with ``begun`` after it."""
        return self.encode(self._template(0)[-1].text + begun)

    def end_of_turn(self) -> int:
        """The control token that the chat template puts behind the assistant's turn.

        Raises:
            AuditorSettingsError: it puts something else there.
        """
        texts = {"system": _SYSTEM, "user": _USER, "assistant": _REPLY}
        messages: list[Any] = [
            {"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts.items()
        ]
        rendered = self._rendered(messages)
        token = self._split(rendered.partition(_REPLY)[2])[0].token
        if token is None:
            raise AuditorSettingsError("the chat template doesn't end the assistant's turn with a control token")
        return token

    def _template(self, images: int) -> list[Stretch]:
        """The rendered chat template for so many images, in stretches."""
        if images not in self._stretches:
            content: list[Any] = [{"type": "image"} for _ in range(images)]
            messages: list[Any] = [
                {"role": "system", "content": [{"type": "text", "text": _SYSTEM}]},
                {"role": "user", "content": [*content, {"type": "text", "text": _USER}]},
            ]
            rendered = self._rendered(messages, add_generation_prompt=True)
            self._stretches[images] = self._split(rendered)
        return self._stretches[images]

    def _rendered(self, messages: list[Any], **settings: Any) -> str:
        """By transformers' sandbox, in which a template can read what it is given, and nothing else."""
        try:
            return str(self._processor.apply_chat_template(messages, tokenize=False, **settings))
        except Exception as error:  # a template may raise whatever it likes
            raise AuditorSettingsError(f"the checkpoint's chat template can't be rendered: {error}") from error

    def _split(self, rendered: str) -> list[Stretch]:
        stretches: list[Stretch] = []
        position = 0
        for control in self._control.finditer(rendered):
            if control.start() > position:
                stretches.append(Stretch(rendered[position : control.start()], None))
            stretches.append(Stretch(control[0], self._added[control[0]]))
            position = control.end()
        stretches.append(Stretch(rendered[position:], None))
        return stretches


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A copy to which ``<|im_end|>`` is ten characters; it shares no state, so threads don't disturb each
    other."""
    settings = json.loads(tokenizer.to_str())
    settings.update(added_tokens=[], truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(settings))


def _longest_token(tokenizer: Tokenizer) -> float:
    """Bytes of a byte-level BPE's longest token; infinite where some byte has none, so that text may vanish."""
    model = tokenizer.model
    if not isinstance(model, models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return math.inf
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if not vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
        return math.inf
    return max(map(len, vocabulary))  # each byte is written as one character
