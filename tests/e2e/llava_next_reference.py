"""LLaVA-NeXT with pruned images in plain transformers, written from descriptions alone.

Nothing of the package is used: CLIP runs whole on every tile, and what is known of patches goes
through transformers' own packing, as features do. Methods are loops in double precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, LlavaNextForConditionalGeneration

CLS = -1


@dataclass(frozen=True)
class Seen:
    """An image, unpruned: per token of the language model, newlines among them.

    ``features`` [tokens, width] before the projector, ``cls`` [width] of the base, ``lines`` the
    places of newlines, ``patches`` of all others, ``planes`` (row, column, plane) of these. The
    rest is per patch.
    """

    features: np.ndarray
    cls: np.ndarray
    lines: list[int]
    patches: list[int]
    planes: np.ndarray
    context: np.ndarray
    attention: np.ndarray
    keys: np.ndarray
    last_attention: np.ndarray
    last_keys: np.ndarray
    aligned: np.ndarray
    value: np.ndarray
    projected: np.ndarray


@dataclass(frozen=True)
class Kept:
    """Places in order, and what stands there, [kept, width of the language model]."""

    places: list[int]
    rows: Tensor


class LlavaNextReference:
    """The model of a folder and its CLIP, float32."""

    def __init__(self, llava: Path, clip: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(llava)
        self.llava = LlavaNextForConditionalGeneration.from_pretrained(
            llava, dtype=torch.float32
        ).eval()
        self.clip = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
        self.clip_tokenizer = AutoTokenizer.from_pretrained(clip)
        self._seen: dict[int, Seen] = {}

    def see(self, image: Image.Image) -> Seen:
        if id(image) not in self._seen:
            self._seen[id(image)] = self._see(image)
        return self._seen[id(image)]

    @torch.no_grad()
    def _see(self, image: Image.Image) -> Seen:
        made = self.processor.image_processor(images=[image], return_tensors="pt")
        size, tower = made["image_sizes"][0], self.clip.vision_model
        states = tower(made["pixel_values"][0], output_hidden_states=True).hidden_states
        hidden, before = states[-2], states[-3]

        def packed(values: Tensor) -> np.ndarray:
            """[tiles, patches, width] as the language model gets it, NaN for newlines."""
            newline = torch.full(values.shape[-1:], torch.nan)
            [rows], _ = self.llava.model.pack_image_features([values], [size], "default", newline)
            return rows.double().numpy()

        features = packed(hidden[:, 1:])
        lines = np.isnan(features[:, 0])

        def patches(values: Tensor) -> np.ndarray:
            found = packed(values if values.dim() == 3 else values[..., None])[~lines]
            return found if values.dim() == 3 else found[:, 0]

        last, feature = tower.encoder.layers[-1], tower.encoder.layers[-2]
        normed = last.layer_norm1(hidden)
        query, key = last.self_attn.q_proj(normed[:, 0]), last.self_attn.k_proj(normed)
        value = last.self_attn.v_proj(normed[:, 1:])
        logits = (key @ query[:, :, None])[..., 0] / key.shape[-1] ** 0.5
        heads = feature.self_attn.num_heads
        own = feature.layer_norm1(before)
        own_query = feature.self_attn.q_proj(own[:, 0]).unflatten(-1, (heads, -1))
        own_keys = feature.self_attn.k_proj(own).unflatten(-1, (heads, -1))
        attention = torch.zeros(own_keys.shape[:2])
        for head in range(heads):
            asked = (own_keys[:, :, head] @ own_query[:, head, :, None])[..., 0]
            attention += torch.softmax(asked / own_query.shape[-1] ** 0.5, dim=1) / heads
        base = int(hidden.shape[1] - 1)
        side = int(base**0.5)
        planes = [(patch // side, patch % side, 0) for patch in range(base)]
        row = column = 0
        for is_line in lines[base:]:
            row, column = (row + 1, 0) if is_line else (row, column + 1)
            if not is_line:
                planes.append((row, column - 1, 1))

        def aligned(tokens: Tensor) -> Tensor:
            return self.clip.visual_projection(tower.post_layernorm(tokens))

        return Seen(
            features=features,
            cls=hidden[0, 0].double().numpy(),
            lines=np.flatnonzero(lines).tolist(),
            patches=np.flatnonzero(~lines).tolist(),
            planes=np.array(planes),
            context=patches(torch.softmax(logits[:, 1:], dim=1) * value.norm(dim=-1)),
            attention=patches(attention[:, 1:]),
            keys=patches(own_keys[:, 1:].mean(dim=2)),
            last_attention=patches(torch.softmax(logits, dim=1)[:, 1:]),
            last_keys=patches(key[:, 1:]),
            aligned=patches(aligned(hidden[:, 1:])),
            value=patches(aligned(last.self_attn.out_proj(value))),
            projected=patches(self.llava.model.multi_modal_projector(hidden[:, 1:])),
        )

    @torch.no_grad()
    def embed(self, text: str) -> np.ndarray:
        ids = self.clip_tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
        state = self.clip.text_model(input_ids=ids["input_ids"]).pooler_output
        return self.clip.text_projection(state)[0].double().numpy()

    def choose(self, image: Image.Image, texts: Sequence[str], method: str, budget: int) -> Kept:
        """``budget`` tokens: patches by a method, and newlines."""
        seen = self.see(image)
        whole = len(seen.features)
        newlines = (2 * budget * len(seen.lines) + whole) // (2 * whole)
        told = np.array([self.embed(text) for text in texts]).reshape(len(texts), -1)
        chosen, merged = _METHODS[method](seen, told, budget - newlines)
        own = seen.features[seen.patches]
        vectors = [merged.get(one, seen.cls if one == CLS else own[min(one, len(own) - 1)])
                   for one in chosen]  # fmt: skip
        rows = self._project(np.array(vectors))
        places = [_place(seen, one) for one in chosen]
        order = _lined(seen, places, newlines)
        of_place = dict(zip(places, rows, strict=True))
        newline = self.llava.model.image_newline.detach()
        return Kept(order, torch.stack([of_place.get(place, newline) for place in order]))

    @torch.no_grad()
    def _project(self, features: np.ndarray) -> Tensor:
        return self.llava.model.multi_modal_projector(torch.from_numpy(features).float())

    @torch.no_grad()
    def follow(
        self,
        prompt: str,
        images: Sequence[Image.Image],
        kept: Sequence[Kept],
        answer: Sequence[int],
        original: bool,
    ) -> tuple[list[int], list[float]]:
        """Behind the prompt and each part of an answer: the best token, and how likely the next is.

        The latter is the log-probability of the answer's own next token.
        """
        embed = self.llava.get_input_embeddings()
        parts: list[Tensor] = []
        positions: list[int] = []
        following, remaining = 0, list(zip(images, kept, strict=True))
        for token in self.processor.tokenizer(prompt)["input_ids"]:
            if token != self.llava.config.image_token_id:
                parts.append(embed(torch.tensor([token])))
                positions.append(following)
                following += 1
                continue
            image, one = remaining.pop(0)
            parts.append(one.rows)
            if not original:
                positions += [following + slot for slot in range(len(one.places))]
                following += len(one.places)
                continue
            whole = len(self.see(image).features)
            before, behind = CLS in one.places, max(one.places) >= whole
            positions += [following + place + before for place in one.places]
            following += whole + before + behind
        assert not remaining
        said = embed(torch.tensor(list(answer[:-1]), dtype=torch.long))
        later = [following + step for step in range(len(answer) - 1)]
        logits = self.llava(
            inputs_embeds=torch.cat([*parts, said])[None],
            position_ids=torch.tensor([positions + later]),
        ).logits[0, -len(answer) :]
        likely = logits.log_softmax(dim=-1).gather(1, torch.tensor(list(answer))[:, None])
        return logits.argmax(dim=-1).tolist(), likely[:, 0].tolist()


def _place(seen: Seen, patch: int) -> int:
    """Of [CLS], a patch, or what stands behind the image."""
    if patch == CLS:
        return CLS
    behind = patch - len(seen.patches)
    return seen.patches[patch] if behind < 0 else len(seen.features) + behind


def _lined(seen: Seen, places: Sequence[int], count: int) -> list[int]:
    """Places with those of newlines among them."""
    begins = [seen.lines[0] - (seen.lines[1] - seen.lines[0]), *seen.lines]
    rows = [range(begin + 1, end) for begin, end in zip(begins, seen.lines, strict=False)]
    kept = [sum(place in row for place in places) for row in rows]
    falling = sorted(range(len(rows)), key=lambda row: (-kept[row], row))
    behind: dict[int, list[int]] = {}
    for row in sorted(falling[:count]):
        own = [slot for slot, place in enumerate(places) if place in rows[row]]
        above = [slot for slot, place in enumerate(places) if place < seen.lines[row]]
        behind.setdefault(max(own or above, default=-1), []).append(seen.lines[row])
    found = [*behind.get(-1, [])]
    for slot, place in enumerate(places):
        found += [place, *behind.get(slot, [])]
    return found


# Methods: patches in order, and what stands for them where that is not their own feature.

Chosen = tuple[list[int], dict[int, np.ndarray]]


def _falling(scores: Sequence[float] | np.ndarray) -> list[int]:
    return sorted(range(len(scores)), key=lambda patch: (-scores[patch], patch))


def _units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _half_up(number: float) -> int:
    return int(number + 0.5)


def _stretched(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / (scores.max() - scores.min())


def _litelvlm(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    lowest = [_falling(-(seen.aligned @ text)) for text in texts]
    if len(texts) == 1:
        by_text = set(lowest[0][: max(1, _half_up(budget / 2))])
    else:
        by_text = set.intersection(*(set(order[:budget]) for order in lowest))
    rest = [patch for patch in _falling(seen.context) if patch not in by_text]
    return sorted([*by_text, *rest[: budget - len(by_text)]]), {}


def _fovea(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    wanted = _stretched((seen.value @ texts.T).max(axis=1))
    weights = 1 + 8 * wanted + 4 * _stretched(seen.context)
    gaps = np.full(len(weights), 1e9)
    chosen: list[int] = []
    for _ in range(budget):
        newest = int((weights * gaps).argmax())
        chosen.append(newest)
        apart = ((seen.planes - seen.planes[newest])[:, :2] ** 2).sum(axis=1)
        same = seen.planes[:, 2] == seen.planes[newest, 2]
        gaps = np.where(same, np.minimum(gaps, apart), gaps)
    return sorted(chosen), {}


def _random(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    generator = torch.Generator().manual_seed(0)
    return sorted(torch.randperm(len(seen.patches), generator=generator)[:budget].tolist()), {}


def _context(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    return sorted(_falling(seen.context)[:budget]), {}


def _cls_attention(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    return sorted(_falling(seen.attention)[:budget]), {}


def _trim(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    fitting = np.exp(seen.aligned @ texts.T - (seen.aligned @ texts.T).max(axis=0))
    kept = sorted(_falling((fitting / fitting.sum(axis=0)).sum(axis=1))[: budget - 1])
    own = seen.features[seen.patches]
    return [*kept, len(own)], {len(own): np.delete(own, kept, axis=0).mean(axis=0)}


def _merged(seen: Seen, kept: list[int]) -> Chosen:
    own, keys = seen.features[seen.patches], _units(seen.last_keys)
    found = {}
    for patch in kept:
        near = [one for one in _falling(keys @ keys[patch]) if one != patch][:32]
        found[patch] = own[patch] + seen.last_attention[near] @ own[near]
    pruned = sorted({*range(len(own))} - {*kept})
    found[len(own)] = seen.last_attention[pruned] @ own[pruned]
    return [*kept, len(own)], found


def _prumerge(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    return _merged(seen, _falling(seen.last_attention)[: budget - 1])


def _prumerge_plus(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    falling = _falling(seen.last_attention)
    count = _half_up((budget - 1) / 4)
    spread, rest = budget - 1 - count, sorted(falling[count:])
    among = [rest[(2 * step + 1) * len(rest) // (2 * spread)] for step in range(spread)]
    return _merged(seen, [*falling[:count], *among])


def _visionzip(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    own, keys = seen.features[seen.patches], _units(seen.keys)
    dominant = max(1, _half_up(budget * 54 / 64))
    attended = sorted(_falling(seen.attention)[: dominant - 1])
    rest = [patch for patch in range(len(own)) if patch not in attended]
    count = budget - dominant
    targets = rest[:: max(1, len(rest) // count)][:count] if count else []
    joined: dict[int, list[int]] = {target: [] for target in targets}
    for patch in rest if targets else []:
        if patch not in joined:
            joined[targets[int((keys[targets] @ keys[patch]).argmax())]].append(patch)
    found = {
        target: own[target] + (own[members].mean(axis=0) if members else 0)
        for target, members in joined.items()
    }
    return [CLS, *attended, *targets], found


def _vispruner(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    falling, units = _falling(seen.attention), _units(seen.features[seen.patches])
    kept, rest = falling[: budget // 2], falling[budget // 2 :]
    while len(rest) > budget - budget // 2:
        even, odd = rest[::2], rest[1::2]
        nearest = (units[even] @ units[odd].T).max(axis=1)
        drop = min(8, len(rest) - (budget - budget // 2), len(even))
        rest = [even[one] for one in _falling(nearest)[drop:]] + odd
    return sorted([*kept, *rest]), {}


def _divprune(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    units = _units(seen.projected)
    distance = 1 - units @ units.T
    alone = distance + np.diag(np.full(len(units), np.inf))
    chosen = [int(alone.min(axis=1).argmax())]
    while len(chosen) < budget:
        gaps = distance[chosen].min(axis=0)
        gaps[chosen] = -np.inf
        chosen.append(int(gaps.argmax()))
    return sorted(chosen), {}


def _cdpruner(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    units = _units(seen.projected)
    raw = -(_units(seen.aligned) @ _units(texts).T).mean(axis=1)
    weights = (raw - raw.min() + 1e-6) / (raw.max() - raw.min())
    kernel = weights[:, None] * (units @ units.T) * weights
    chosen: list[int] = []
    while len(chosen) < budget:  # the Schur complement is what a token adds to the volume
        gains = kernel.diagonal().copy()
        if chosen:
            across = kernel[:, chosen]
            inside = kernel[np.ix_(chosen, chosen)]
            gains -= (across * np.linalg.solve(inside, across.T).T).sum(axis=1)
        gains[chosen] = -np.inf
        assert gains.max() > 1e-4, "too many tokens for the kernel's rank"
        chosen.append(int(gains.argmax()))
    return sorted(chosen), {}


def _keep_all(seen: Seen, texts: np.ndarray, budget: int) -> Chosen:
    return list(range(len(seen.patches))), {}


_METHODS = {
    "litelvlm": _litelvlm,
    "fovea": _fovea,
    "random": _random,
    "context": _context,
    "cls-attention": _cls_attention,
    "trim": _trim,
    "prumerge": _prumerge,
    "prumerge+": _prumerge_plus,
    "visionzip": _visionzip,
    "vispruner": _vispruner,
    "divprune": _divprune,
    "cdpruner": _cdpruner,
    "keep-all": _keep_all,
}
METHODS = tuple(_METHODS)
