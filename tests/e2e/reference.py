"""LiteLVLM on LLaVA in plain transformers, written from the method's description alone.

Nothing of the package is used: CLIP runs whole, scores are loops over patches, sets are sets.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, LlavaForConditionalGeneration


@dataclass(frozen=True)
class Choice:
    """Kept patch indices in the order that the language model gets, and who chose each."""

    kept: list[int]
    guided: list[bool]


class Reference:
    """The model of a LLaVA folder and its CLIP folder, float32."""

    def __init__(self, llava: Path, clip: Path) -> None:
        self.clip = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
        self.clip_tokenizer = AutoTokenizer.from_pretrained(clip)
        self.processor = AutoProcessor.from_pretrained(llava)
        self.llava = LlavaForConditionalGeneration.from_pretrained(
            llava, dtype=torch.float32
        ).eval()

    def pixels(self, image: Image.Image) -> torch.Tensor:
        return self.processor.image_processor(image, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def choose(
        self, image: Image.Image, texts: list[str], budget: int, variant: str = "paper"
    ) -> Choice:
        vision = self.clip.vision_model(self.pixels(image), output_hidden_states=True)
        hidden = vision.hidden_states[-2][0]
        last = self.clip.vision_model.encoder.layers[-1]
        aligned = self.clip.visual_projection(self.clip.vision_model.post_layernorm(hidden[1:]))
        lowest = []  # for each text, patches by rising similarity
        for text in texts:
            ids = self.clip_tokenizer(text, truncation=True, max_length=77, return_tensors="pt")[
                "input_ids"
            ]
            state = self.clip.text_model(input_ids=ids).pooler_output
            similarity = (aligned @ self.clip.text_projection(state)[0]).tolist()
            lowest.append(sorted(range(len(similarity)), key=lambda j, s=similarity: s[j]))

        normed = last.layer_norm1(hidden)
        query = last.self_attn.q_proj(normed[0])
        keys = last.self_attn.k_proj(normed[1:])
        values = last.self_attn.v_proj(normed[1:])
        if variant == "reference":
            query = query / query.norm()
            keys = keys / keys.norm(dim=-1, keepdim=True)
        attention = torch.softmax(keys @ query / keys.shape[-1] ** 0.5, dim=0)
        context = (attention[:, None] * values).norm(dim=-1).tolist()

        if variant == "paper":
            if len(texts) == 1:
                chosen = set(lowest[0][: max(1, int(budget * 0.5 + 0.5))])
            else:
                chosen = set.intersection(*(set(order[:budget]) for order in lowest))
        else:
            each = budget if len(texts) == 1 else budget // len(texts)
            chosen = set.union(*(set(order[:each]) for order in lowest))
        others = sorted(set(range(len(context))) - chosen, key=lambda j: -context[j])
        recovered = others[: budget - len(chosen)]
        kept = recovered + sorted(chosen)
        if variant == "paper":
            kept = sorted(kept)
        return Choice(kept, [patch in chosen for patch in kept])

    @torch.no_grad()
    def fovea(
        self,
        image: Image.Image,
        texts: list[str],
        budget: int,
        weights: tuple[float, float],
        base: list[int] | None = None,
    ) -> list[int]:
        """Weighted farthest-point sampling, on from a base; ``weights`` of text and context."""
        vision = self.clip.vision_model(self.pixels(image), output_hidden_states=True)
        hidden = vision.hidden_states[-2][0]
        last = self.clip.vision_model.encoder.layers[-1]
        normed = last.layer_norm1(hidden)
        values = last.self_attn.v_proj(normed[1:])
        path = last.self_attn.out_proj(values)
        aligned = self.clip.visual_projection(self.clip.vision_model.post_layernorm(path))
        likeness = []
        for text in texts:
            ids = self.clip_tokenizer(text, truncation=True, max_length=77, return_tensors="pt")[
                "input_ids"
            ]
            state = self.clip.text_model(input_ids=ids).pooler_output
            likeness.append((aligned @ self.clip.text_projection(state)[0]).tolist())
        query, keys = last.self_attn.q_proj(normed[0]), last.self_attn.k_proj(normed[1:])
        attention = torch.softmax(keys @ query / keys.shape[-1] ** 0.5, dim=0)
        context = _stretched((attention[:, None] * values).norm(dim=-1).tolist())
        text = [0.0] * len(context)
        if texts:
            text = _stretched([max(scores) for scores in zip(*likeness, strict=True)])
        weight = [
            1 + weights[0] * wanted + weights[1] * given
            for wanted, given in zip(text, context, strict=True)
        ]
        side = round(len(weight) ** 0.5)
        gaps: list[float] = [1e6] * len(weight)  # of the first, only the weight counts
        chosen: list[int] = []

        def choose(patch: int) -> None:
            chosen.append(patch)
            for j, gap in enumerate(gaps):
                down, across = j // side - patch // side, j % side - patch % side
                gaps[j] = min(gap, down**2 + across**2)

        for patch in base or []:
            choose(patch)
        for _ in range(budget):
            worth = [w * gap for w, gap in zip(weight, gaps, strict=True)]
            choose(worth.index(max(worth)))
        return sorted(chosen[len(base or []) :])

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        images: list[Image.Image],
        kept: list[list[int]],
        tokens: int,
        add_special_tokens: bool = False,
        original: bool = False,
    ) -> list[int]:
        """Greedy continuation when each ``<image>`` is replaced by its kept tokens' embeddings.

        ``original``: these stand where they do in the whole image, and so does what follows.
        """
        inputs, positions = self._inputs(prompt, images, kept, add_special_tokens, original)
        output = self.llava.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
            position_ids=positions,
            max_new_tokens=tokens,
            do_sample=False,
        )
        return output[0].tolist()

    @torch.no_grad()
    def follow(
        self,
        prompt: str | list[int],
        images: list[Image.Image],
        kept: list[list[int]],
        answer: list[int],
        original: bool,
        within: list[int | None] | None = None,
    ) -> tuple[list[int], list[float]]:
        """Behind the prompt and each part of an answer: the best token, and how likely the next is.

        The latter is the log-probability of the answer's own next token. ``within``: the number of
        the item whose positions an item shares.
        """
        inputs, positions = self._inputs(prompt, images, kept, True, original, within)
        said = self.llava.get_input_embeddings()(torch.tensor([answer[:-1]]))
        later = positions[:, -1:] + 1 + torch.arange(len(answer) - 1)
        logits = self.llava(
            inputs_embeds=torch.cat([inputs, said], dim=1),
            position_ids=torch.cat([positions, later], dim=1),
        ).logits[0, -len(answer) :]
        likely = logits.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None])
        return logits.argmax(dim=-1).tolist(), likely[:, 0].tolist()

    def _inputs(
        self,
        prompt: str | list[int],
        images: list[Image.Image],
        kept: list[list[int]],
        add_special_tokens: bool,
        original: bool,
        within: list[int | None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [1, tokens, width] and positions [1, tokens] of a prompt."""
        ids = prompt
        if isinstance(ids, str):
            ids = self.processor.tokenizer(ids, add_special_tokens=add_special_tokens)["input_ids"]
        parts: list[torch.Tensor] = []
        positions: list[int] = []
        within = within or [None] * len(images)
        following, remaining = 0, list(zip(images, kept, within, strict=True))
        starts: list[int] = []
        for token in ids:
            if token != self.llava.config.image_token_id:
                parts.append(self.llava.get_input_embeddings()(torch.tensor([token])))
                positions.append(following)
                following += 1
                continue
            image, indices, below = remaining.pop(0)
            parts.append(self._features(image)[indices])
            own = indices if original else range(len(indices))
            shares = original and below is not None
            starts.append(starts[below] if shares else following)
            positions += [starts[-1] + place for place in own]
            if not shares:
                following += 576 if original else len(indices)
        assert not remaining
        return torch.cat(parts)[None], torch.tensor([positions])

    def _features(self, image: Image.Image) -> torch.Tensor:
        tower = self.llava.model.vision_tower
        hidden = tower(self.pixels(image), output_hidden_states=True).hidden_states[-2][0, 1:]
        return self.llava.model.multi_modal_projector(hidden)


def _stretched(scores: list[float]) -> list[float]:
    """Scores from 0 to 1."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 0.0 for score in scores]
