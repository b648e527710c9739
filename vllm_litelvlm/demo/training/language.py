"""The tokenizers of the scenes' language, and prompts as token ids.

Both cover every byte, so any text survives them. Of numbers, every digit is one token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, LlamaTokenizer

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.training.captions import caption
from vllm_litelvlm.demo.training.clip import TEXT_LENGTH
from vllm_litelvlm.demo.vocabularies import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    clip_tokenizer,
    train_llama,
)
from vllm_litelvlm.evaluation.scenes.answers import right_answer
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset
from vllm_litelvlm.evaluation.scenes.wording import ANSWERS
from vllm_litelvlm.grounding.conversation import rounds
from vllm_litelvlm.grounding.layout import SEG_TOKEN

#: Samples that the vocabularies are made from: enough that every word comes often.
_SAMPLES = 4000
#: The most entries beside the bytes.
_ENTRIES = 512
#: The same for CLIP: every byte alone and at the end of a word, and the start and end tokens.
_CLIP_ENTRIES = 2 * 256 + _ENTRIES + 2
#: What vLLM renders of a chat request with one image and one text, by the model's template.
_PROMPT = "USER: " + IMAGE_TOKEN + "\n{text} ASSISTANT:"


@dataclass(frozen=True)
class Pointed:
    """A conversation about masks, behind its image.

    ``tokens`` are its ids, ``answers`` the places of those that are to be said, and ``points`` of
    [SEG] among them. ``guides`` are its expressions as CLIP reads them.
    """

    tokens: list[int]
    answers: list[int]
    points: list[int]
    guides: list[list[int]]


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of the CLIP and of the LLaVA."""

    clip: CLIPTokenizer
    llama: LlamaTokenizer

    @classmethod
    def load_or_make(cls, folder: Path) -> "Tokenizers":
        """Those that ``folder`` has; made and written there, where it has none."""
        names = {"clip": CLIPTokenizer, "llama": LlamaTokenizer}
        if not (folder / "complete").is_file():
            cls.make().save(folder)
        # Read back even when just made: what is trained on is what is exported.
        return cls(**{name: kind.from_pretrained(folder / name) for name, kind in names.items()})

    def save(self, folder: Path) -> None:
        """Write both, for :meth:`load_or_make` to load."""
        self.clip.save_pretrained(folder / "clip")
        self.llama.save_pretrained(folder / "llama")
        (folder / "complete").touch()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Tokenizers":
        """Those of exported models."""
        return cls(
            CLIPTokenizer.from_pretrained(checkpoint.clip),
            LlamaTokenizer.from_pretrained(checkpoint.llava),
        )

    @classmethod
    def make(cls, samples: int = _SAMPLES) -> "Tokenizers":
        """Train both on the training split's texts."""
        texts = list(_corpus(samples))
        return cls(clip_tokenizer(_CLIP_ENTRIES, TEXT_LENGTH, texts), _llama_tokenizer(texts))

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts as CLIP reads them, start and end token included."""
        ids: list[list[int]] = self.clip(list(texts))["input_ids"]
        return ids

    def prefix(self, start: bool) -> list[int]:
        """What stands before the image; ``start``: with the start token, which vLLM leaves out."""
        ids: list[int] = self.llama(_PROMPT.format(text=""), add_special_tokens=start)["input_ids"]
        return ids[: ids.index(self._image)]

    def questions(
        self, prompts: Sequence[str], answers: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """Of each prompt what stands behind the image, and its answer with the end token."""
        asked = [_PROMPT.format(text=prompt) for prompt in prompts]
        said = [f"{prompt} {answer}" for prompt, answer in zip(asked, answers, strict=True)]
        ids = self.llama(asked + said, add_special_tokens=False)["input_ids"]
        pairs = []
        for short, whole in zip(ids[: len(asked)], ids[len(asked) :], strict=True):
            answer = [*whole[len(short) :], self.llama.eos_token_id]
            pairs.append((short[short.index(self._image) + 1 :], answer))
        return pairs

    def pointing(self, expressions: Sequence[str]) -> Pointed:
        """The rounds of one conversation as the server asks them, with the end token behind."""
        messages = rounds({"type": "image"}, expressions)
        asked = self.llama.apply_chat_template(
            messages, chat_template=CHAT_TEMPLATE, tokenize=False
        )
        ids = self.llama(asked.rstrip(), add_special_tokens=False)["input_ids"]
        tokens = [*ids[ids.index(self._image) + 1 :], self.llama.eos_token_id]
        seg = self.llama.convert_tokens_to_ids(SEG_TOKEN)
        points = [place for place, token in enumerate(tokens) if token == seg]
        [(_, said)] = self.questions([""], [messages[1]["content"][0]["text"]])
        before = said.index(seg)
        answers = [
            place for point in points for place in range(point - before, point - before + len(said))
        ]
        # The end token is said behind the last answer alone.
        ends = {point - before + len(said) - 1 for point in points[:-1]}
        learned = [place for place in answers if place not in ends]
        return Pointed(tokens, learned, points, self.texts(expressions))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer up to its end token."""
        said = list(ids)
        end = self.llama.eos_token_id
        said = said[: said.index(end)] if end in said else said
        text: str = self.llama.decode(said, skip_special_tokens=True)
        return text.strip()

    @property
    def _image(self) -> int:
        image: int = self.llama.convert_tokens_to_ids(IMAGE_TOKEN)
        return image


def _corpus(samples: int) -> Iterator[str]:
    """Texts of the training split with every answer, as they stand between the roles' names."""
    random = np.random.Generator(np.random.PCG64(0))
    dataset = SceneDataset("train", samples)
    for sample in islice(dataset, samples):
        yield f"{sample.prompt} ASSISTANT: {right_answer(sample)}"
        yield from sample.texts
        yield caption(sample.scene.objects, random).text
    for words in ANSWERS.values():
        yield from (f"ASSISTANT: {word}" for word in words for _ in range(3))
    yield from [" USER: ASSISTANT:"] * 20


def _llama_tokenizer(texts: Sequence[str]) -> LlamaTokenizer:
    """BPE with byte fallback; line breaks are bytes, as in Llama's own vocabulary."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="removed"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Split(Regex("▁?[0-9]|[?.,;!]"), behavior="isolated"),
        ]
    )
    # Every letter and sign is in the alphabet, so that other words are spelled, not bytes.
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + _ENTRIES,
        special_tokens=special,
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    return train_llama(tokenizer, trainer, texts)
