"""Every method with plain transformers, those inside the language model included."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.backend import Answer, Question
from vllm_litelvlm.evaluation.llava import HfLlava
from vllm_litelvlm.options import PruningOptions, ServerOptions, parse_request_options
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.batch import prune
from vllm_litelvlm.pruning.decoder import DecoderPruner
from vllm_litelvlm.pruning.order import Order
from vllm_litelvlm.pruning.registry import (
    build_decoder_pruner,
    check_texts,
    decoder_method_names,
    method_names,
    settle,
)
from vllm_litelvlm.vision.checkpoint import find_clip_model, read_clip_config
from vllm_litelvlm.vision.clip_guidance import ClipGuidance
from vllm_litelvlm.vision.frame import Frame, window
from vllm_litelvlm.vision.text import ClipTextTokenizer
from vllm_litelvlm.vision.weights import ClipWeights
from vllm_litelvlm.vision.words import word_ids


class TransformersBackend:
    """A LLaVA that answers one question after the other.

    Prompts are rendered and tokenized as ``vllm serve`` does it, so that greedy answers are the
    same. Methods inside the language model are guided by the prompt alone, whatever ``texts`` is.

    Args:
        llava: hub name or folder of a LLaVA-1.5 checkpoint.
        clip_model: the CLIP that its tower was taken from; by default the one that the checkpoint
            names, or the published one.
        dtype: of the model; by default the checkpoint's own. ClipGuidance is always float32.
        device: by default the GPU, where there is one.

    Raises WeightsError or CompatibilityError for checkpoints that do not fit.
    """

    def __init__(
        self,
        llava: str | Path,
        clip_model: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: str | None = None,
    ) -> None:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._llava = HfLlava(str(llava), dtype, place)
        tower = self._llava.config.vision_config
        given = None if clip_model is None else str(clip_model)
        clip_model = find_clip_model(given, self._llava.config, str(llava))
        clip = read_clip_config(clip_model, tower)
        with place:
            self._guidance = ClipGuidance(tower, clip, self._llava.model.dtype)
        weights = ClipWeights(self._guidance.scorer, self._guidance.text_tower)
        weights.load(self._llava.tower_tensors, clip_model)
        text_tokens = clip.text_config.max_position_embeddings
        self._text_tokenizer = ClipTextTokenizer(clip_model, text_tokens)
        self.patch_size = int(tower.patch_size)  #: pixels a side
        self.grid = int(tower.image_size) // self.patch_size  #: patches a side

    def methods(self) -> tuple[str, ...]:
        """Those of the engine, then those inside the language model."""
        return (*method_names(), *decoder_method_names())

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question. Raises OptionsError for options that are not allowed."""
        answers = []
        for question in questions:
            began = time.perf_counter()
            answer = self._answer(question)
            answers.append(replace(answer, seconds=time.perf_counter() - began))
        return answers

    @torch.no_grad()
    def signals(
        self,
        image: Image.Image,
        texts: Sequence[str],
        needs: frozenset[Signal],
        frame: Frame = "crop",
    ) -> Signals:
        """What methods go by: of one image and any number of texts."""
        ids = self._text_tokenizer(texts) if texts else torch.zeros(0, 1, dtype=torch.int32)
        words = word_ids(self._llava.tokenizer, texts)
        return self._guidance.signals(self._llava.images(image, frame), [ids], needs, [words])

    @torch.no_grad()
    def _answer(self, question: Question) -> Answer:
        options = parse_request_options(question.options, ServerOptions())
        if options.method not in decoder_method_names():
            return self._prune_before(question, options)
        if options.frame == "pad":
            raise OptionsError(
                f"litelvlm option 'frame' is \"pad\", but method {options.method!r} prunes inside "
                'the language model, which then sees the padding. Choose "crop", or another method.'
            )
        patches = self.grid**2
        pruner = build_decoder_pruner(options.method, options.parameters)
        budget = options.budget_tokens(patches)
        if budget == patches:  # keeps all, as with every other method
            return self._prune_before(question, PruningOptions(method="keep-all"))
        return self._prune_inside(question, pruner, budget)

    def _prune_before(self, question: Question, options: PruningOptions) -> Answer:
        """By a method of the engine: the language model gets fewer tokens."""
        if options.focus > 0:
            raise OptionsError(
                f"litelvlm option 'focus' is {options.focus}, but transformers gives an image's "
                "tokens in one layer; leave it out, or ask the engine or a server."
            )
        seen = window(question.image.size, self.grid) if options.frame == "pad" else None
        pruner, budget = settle(options, self.grid**2, seen)
        texts = options.texts or tuple(filter(None, [question.prompt.strip()]))
        check_texts(pruner.name, texts)
        guiding = texts if pruner.reads_text else ()
        signals = self.signals(question.image, guiding, pruner.needs, options.frame)
        [selection] = prune(signals, [Order(pruner, budget, window=seen)], [None])
        places, offsets = pruner.places(self.grid**2), None
        if options.positions == "original":
            offsets = selection.indices - places.start
        prompt = self._llava.prompt(question.prompt, selection.tokens, offsets, len(places))
        token_ids = self._llava.generate(prompt, question.max_tokens)
        return Answer(
            text=self._llava.decode(token_ids),
            token_ids=token_ids,
            prompt_tokens=len(prompt.embedded),
            visual_tokens=prompt.visual,
            kept=tuple(selection.indices.tolist()),
            guided=tuple(selection.guided.tolist()),
            seconds=0,
        )

    def _prune_inside(self, question: Question, pruner: DecoderPruner, budget: int) -> Answer:
        """By a method of the decoder: the language model gets all tokens and drops some."""
        features, _ = self._llava.images(question.image).run([0], with_input=False)
        prompt = self._llava.prompt(question.prompt, features[0, 1:])
        walked = self._llava.walk.generate(prompt, pruner, budget, question.max_tokens)
        return Answer(
            text=self._llava.decode(walked.token_ids),
            token_ids=walked.token_ids,
            prompt_tokens=len(prompt.embedded),
            visual_tokens=len(walked.places),
            kept=walked.places,
            guided=tuple(place < self.grid**2 for place in walked.places),
            seconds=0,
        )
