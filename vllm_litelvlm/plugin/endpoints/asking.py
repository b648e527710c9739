"""From what a request says to what the engine reads: conversations up to what predicts [SEG]."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import ClientError
from PIL import Image
from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaWithBytes
from vllm.renderers import ChatParams

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.grounding.conversation import asking_ids, named, rounds
from vllm_litelvlm.grounding.layout import SEG_TOKEN, seg_token_index
from vllm_litelvlm.plugin.conversation import CONVERSATION_KEY
from vllm_litelvlm.plugin.endpoints.protocol import Message
from vllm_litelvlm.plugin.refusal import FIELD
from vllm_litelvlm.plugin.turns import decode

#: What fetching a picture raises that is nobody's fault but the link's.
_UNFETCHED = (
    ClientError,
    Image.DecompressionBombError,
    OSError,
    RuntimeError,
    SyntaxError,
    TimeoutError,
)


@dataclass(frozen=True)
class Answer:
    """An assistant's turn: its tokens in front of its last [SEG], and what each [SEG] is of."""

    ids: list[int]
    names: list[str]


class Asking:
    """Renders conversations as the server's chat does.

    Args:
        engine: of a model with [SEG].
        chat_params: how the server renders messages.
    """

    def __init__(self, engine: EngineClient, chat_params: ChatParams) -> None:
        self._renderer, self._config = engine.renderer, engine.model_config.hf_config
        self._seg_token = seg_token_index(self._config)
        self._longest = engine.model_config.max_model_len
        self._whole, self._open = (
            replace(
                chat_params,
                chat_template_kwargs={
                    **chat_params.chat_template_kwargs,
                    "add_generation_prompt": is_open,
                    "continue_final_message": False,
                    "tokenize": False,  # as chat does: behind the template
                },
            )
            for is_open in (False, True)
        )
        self._tokens = self._renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)

    async def rounds(self, image: Mapping[str, Any], expressions: Sequence[str]) -> Any:
        """A prompt that asks for expressions, up to what predicts its last [SEG]."""
        rendered = await self._rendered(rounds(dict(image), expressions), self._whole)
        [prompt] = await self._renderer.tokenize_prompts_async([rendered], self._tokens)
        try:
            ids = asking_ids(prompt["prompt_token_ids"], expressions, self._config)
        except OptionsError as error:
            raise VLLMValidationError(str(error), parameter="expressions") from error
        prompt["prompt_token_ids"] = ids
        prompt[CONVERSATION_KEY] = prompt[CONVERSATION_KEY].about(expressions)
        return prompt

    async def about(self, link: str, conversations: Sequence[Sequence[str]]) -> list[Any]:
        """A prompt for each conversation about a picture, which is fetched once."""
        image = {"type": "image_url", "image_url": {"url": link}}
        first = await self.rounds(image, conversations[0])
        fetched = first["multi_modal_data"]
        [picture] = pictures_of(first)
        part = {"type": "image_pil", "image_pil": picture}
        prompts = [first, *[await self.rounds(part, one) for one in conversations[1:]]]
        for prompt in prompts:
            prompt["multi_modal_data"] = fetched
        return prompts

    def points(self, message: Message) -> bool:
        """Whether it is an answer with [SEG]."""
        if message.role != "assistant":
            return False
        if message.token_ids is not None:
            return self._seg_token in message.token_ids
        return SEG_TOKEN in message.text

    async def answered(self, messages: list[dict[str, Any]], answer: Message) -> tuple[Any, Answer]:
        """The prompt of chat that was answered, and the answer, which points."""
        rendered = await self._rendered(messages, self._open)
        text = rendered["prompt"]
        [prompt] = await self._renderer.tokenize_prompts_async([rendered], self._tokens)
        ids = answer.token_ids
        if ids is None:
            ids = await self._tokenized(text, prompt["prompt_token_ids"], answer.text)
        return prompt, self._read(ids)

    def _read(self, ids: list[int]) -> Answer:
        if len(ids) > self._longest:
            raise VLLMValidationError(
                f"An answer has {len(ids)} tokens; the model reads {self._longest} at most, with "
                "all that stands in front of it. Send the conversation as it was had.",
                parameter="messages",
            )
        tokenizer = self._renderer.get_tokenizer()
        beyond = [one for one in ids if one >= len(tokenizer)]
        if beyond:
            raise VLLMValidationError(
                f"token_ids of an answer have {beyond[0]}; the model's tokens are 0 to "
                f"{len(tokenizer) - 1}.",
                parameter="messages",
            )
        ends = [place for place, token in enumerate(ids) if token == self._seg_token]
        starts = [0, *(end + 1 for end in ends)]
        said = [decode(tokenizer, ids[start:end]) for start, end in zip(starts, ends, strict=False)]
        return Answer(ids[: ends[-1]], named(said))

    async def processed(
        self, prompt: Any, kwargs: Mapping[str, Any] | None, answer: Sequence[int] = ()
    ) -> Any:
        """A prompt with its images as the engine takes it, and what was answered behind it."""
        prompt.pop("prompt", None)
        self._renderer._apply_prompt_extras([prompt], {FIELD: dict(kwargs or {})})
        processed = await self._renderer.process_for_engine_async(
            prompt, time.time(), tok_params=self._tokens
        )
        ids = [*processed["prompt_token_ids"], *answer]
        return {**processed, "prompt_token_ids": ids}

    async def _rendered(self, messages: list[Any], params: ChatParams) -> Any:
        try:
            _, rendered = await self._renderer.render_messages_async(messages, params)
        except _UNFETCHED as error:
            raise VLLMValidationError(
                f"The picture at {_links(messages)} cannot be fetched ({error}). Give a URL that "
                "this server reaches, or a data URL.",
                parameter="image",
            ) from error
        return rendered

    async def _tokenized(self, before: str, ids: Sequence[int], text: str) -> list[int]:
        """An answer's tokens behind its prompt, whose own tokens stay what they are."""
        tokenize = self._renderer.tokenize_prompts_async
        [whole] = await tokenize([{"prompt": before + text}], self._tokens)
        found: list[int] = whole["prompt_token_ids"]
        if found[: len(ids)] == list(ids):
            return found[len(ids) :]
        [alone] = await tokenize([{"prompt": text}], self._tokens)
        return list(alone["prompt_token_ids"])


def pictures_of(prompt: Any) -> list[Image.Image]:
    """The pictures of a prompt, in order."""
    given = (prompt.get("multi_modal_data") or {}).get("image", [])
    images = given if isinstance(given, list) else [given]
    return [image.media if isinstance(image, MediaWithBytes) else image for image in images]


def _links(messages: list[Any]) -> str:
    parts = (part for one in messages for part in one["content"] if isinstance(part, dict))
    links = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return " or ".join(repr(link[:200]) for link in links)
