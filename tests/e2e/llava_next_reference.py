"""LLaVA-NeXT with pruned images in plain transformers, written from descriptions alone.

Nothing of the package is used: CLIP runs whole on every tile, and what is known of patches goes
through transformers' own packing, as features do. Methods are loops in double precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, LlavaNextForConditionalGeneration

from tests.e2e.texts import telling_words, token_cosine

CLS = -1


@dataclass(frozen=True)
class Seen:
    """An image, unpruned: per token of the language model, newlines among them.

    ``features`` [tokens, width] before the projector, ``cls`` [width] of the base, ``lines`` the
    places of newlines, ``patches`` of all others, ``planes`` (row, column, plane) of these.
    ``tiles`` are like ``aligned``, with padding, the base first, and ``numbers`` say which of all
    their patches each one is. The rest is per patch.
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
    tiles: list[np.ndarray]
    numbers: np.ndarray


@dataclass(frozen=True)
class Told:
    """The texts of an image.

    ``wholes`` [texts, projection]; ``tokens`` of each text, in the same space, [tokens,
    projection]; ``words`` of all of them, as the language model reads them, [words, its width].
    """

    wholes: np.ndarray
    tokens: list[np.ndarray]
    words: np.ndarray


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
            tiles=list(aligned(hidden[:, 1:]).double().numpy()),
            numbers=patches(torch.arange(len(hidden) * base).float().view(-1, base)).astype(int),
        )

    @torch.no_grad()
    def tell(self, texts: Sequence[str]) -> Told:
        wholes, tokens, words = [], [], list[int]()
        for text in texts:
            ids = self.clip_tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
            made = self.clip.text_model(input_ids=ids["input_ids"])
            states = torch.cat([made.pooler_output, made.last_hidden_state[0]])
            whole, *own = self.clip.text_projection(states).double().numpy()
            wholes.append(whole)
            tokens.append(np.array(own))
            said = telling_words(text)
            words += self.processor.tokenizer(said, add_special_tokens=False)["input_ids"]
        embedded = self.llava.get_input_embeddings()(torch.tensor(words))
        return Told(np.array(wholes), tokens, embedded.double().numpy())

    def choose(
        self,
        image: Image.Image,
        texts: Sequence[str],
        method: str,
        budget: int,
        centred: bool = False,
    ) -> Kept:
        """``budget`` tokens: patches by a method, and newlines."""
        seen = self.see(image)
        whole = len(seen.features)
        newlines = (2 * budget * len(seen.lines) + whole) // (2 * whole)
        methods = _CENTRED if centred else _METHODS
        chosen, merged = methods[method](seen, self.tell(texts), budget - newlines)
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


def _litelvlm(seen: Seen, told: Told, budget: int) -> Chosen:
    lowest = [_falling(-(seen.aligned @ text)) for text in told.wholes]
    if len(told.wholes) == 1:
        by_text = set(lowest[0][: max(1, _half_up(budget / 2))])
    else:
        by_text = set.intersection(*(set(order[:budget]) for order in lowest))
    rest = [patch for patch in _falling(seen.context) if patch not in by_text]
    return sorted([*by_text, *rest[: budget - len(by_text)]]), {}


def _fovea(seen: Seen, told: Told, budget: int) -> Chosen:
    wanted = _stretched((seen.value @ told.wholes.T).max(axis=1))
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


def _random(seen: Seen, told: Told, budget: int) -> Chosen:
    generator = torch.Generator().manual_seed(0)
    return sorted(torch.randperm(len(seen.patches), generator=generator)[:budget].tolist()), {}


def _context(seen: Seen, told: Told, budget: int) -> Chosen:
    return sorted(_falling(seen.context)[:budget]), {}


def _cls_attention(seen: Seen, told: Told, budget: int) -> Chosen:
    return sorted(_falling(seen.attention)[:budget]), {}


def _trim(seen: Seen, told: Told, budget: int) -> Chosen:
    fits = seen.aligned @ told.wholes.T
    fitting = np.exp(fits - fits.max(axis=0))
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


def _prumerge(seen: Seen, told: Told, budget: int) -> Chosen:
    return _merged(seen, _falling(seen.last_attention)[: budget - 1])


def _prumerge_plus(seen: Seen, told: Told, budget: int) -> Chosen:
    falling = _falling(seen.last_attention)
    count = _half_up((budget - 1) / 4)
    spread, rest = budget - 1 - count, sorted(falling[count:])
    among = [rest[(2 * step + 1) * len(rest) // (2 * spread)] for step in range(spread)]
    return _merged(seen, [*falling[:count], *among])


def _visionzip(seen: Seen, told: Told, budget: int) -> Chosen:
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


def _vispruner(seen: Seen, told: Told, budget: int) -> Chosen:
    falling, units = _falling(seen.attention), _units(seen.features[seen.patches])
    kept, rest = falling[: budget // 2], falling[budget // 2 :]
    while len(rest) > budget - budget // 2:
        even, odd = rest[::2], rest[1::2]
        nearest = (units[even] @ units[odd].T).max(axis=1)
        drop = min(8, len(rest) - (budget - budget // 2), len(even))
        rest = [even[one] for one in _falling(nearest)[drop:]] + odd
    return sorted([*kept, *rest]), {}


def _divprune(seen: Seen, told: Told, budget: int) -> Chosen:
    units = _units(seen.projected)
    distance = 1 - units @ units.T
    alone = distance + np.diag(np.full(len(units), np.inf))
    chosen = [int(alone.min(axis=1).argmax())]
    while len(chosen) < budget:
        gaps = distance[chosen].min(axis=0)
        gaps[chosen] = -np.inf
        chosen.append(int(gaps.argmax()))
    return sorted(chosen), {}


def _cdpruner(seen: Seen, told: Told, budget: int) -> Chosen:
    return _voluminous(_units(seen.projected), _relevance(seen, told), budget)


def _relevance(seen: Seen, told: Told) -> np.ndarray:
    raw = -(_units(seen.aligned) @ _units(told.wholes).T).mean(axis=1)
    relevance: np.ndarray = (raw - raw.min() + 1e-6) / (raw.max() - raw.min())
    return relevance


def _voluminous(units: np.ndarray, weights: np.ndarray, budget: int) -> Chosen:
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


def _centred(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Directions of patches less their mean, and how rare each is, from 0 to 1."""
    units = _units(seen.projected - seen.projected.mean(axis=0))
    return units, _stretched(-(units @ units.T).mean(axis=1))


def _divprune_centred(seen: Seen, told: Told, budget: int) -> Chosen:
    units, rarity = _centred(seen)
    chosen = [int(rarity.argmax())]
    while len(chosen) < budget:
        gaps = rarity * (1 - units[chosen] @ units.T).min(axis=0)
        gaps[chosen] = -np.inf
        chosen.append(int(gaps.argmax()))
    return sorted(chosen), {}


def _cdpruner_centred(seen: Seen, told: Told, budget: int) -> Chosen:
    units, rarity = _centred(seen)
    return _voluminous(units, rarity * _relevance(seen, told), budget)


def _cover(likeness: np.ndarray, worth: np.ndarray, budget: int) -> Chosen:
    """By what each token (a row) covers better than all before it, times its worth."""
    best, chosen = np.zeros(likeness.shape[1]), list[int]()
    while len(chosen) < budget:
        gains = worth * np.maximum(0, likeness - best).sum(axis=1)
        gains[chosen] = -np.inf
        chosen.append(int(gains.argmax()))
        best = np.maximum(best, likeness[chosen[-1]])
    return sorted(chosen), {}


def _scope(seen: Seen, told: Told, budget: int) -> Chosen:
    units = _units(seen.features[seen.patches])
    return _cover(units @ units.T, seen.attention, budget)


def _shared_out(cosines: np.ndarray, temperature: float) -> np.ndarray:
    """Each row over all patches."""
    powers = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def _mmtok(seen: Seen, told: Told, budget: int) -> Chosen:
    units = _units(seen.features[seen.patches])
    of_words = _shared_out(_units(told.words) @ _units(seen.projected).T, 0.02) / len(told.words)
    of_patches = 0.5 * _shared_out(units @ units.T, 0.2) / len(units)
    return _cover(np.concatenate([of_words, of_patches]).T, np.ones(len(units)), budget)


def _eadp(seen: Seen, told: Told, budget: int) -> Chosen:
    score = np.zeros(len(seen.patches))
    for text in zip(told.wholes, told.tokens, strict=True):  # a tile has its own sharpest tokens
        by_tile = [token_cosine(tile, *text) for tile in seen.tiles]
        score -= np.concatenate(by_tile)[seen.numbers] / len(told.wholes)
    score -= score.min()
    relevance = []
    for place in seen.planes:
        away = np.abs(seen.planes - place)
        near = np.flatnonzero((away.max(axis=1) <= 1) & (away[:, 2] == 0))
        weights = np.exp(-(away[near] ** 2).sum(axis=1) / 2)
        relevance.append(1e-6 + weights @ score[near] / weights.sum())
    units = _units(seen.projected)
    return _cover((1 + units @ units.T) / 2 * relevance, np.ones(len(units)), budget)


def _holov(seen: Seen, told: Told, budget: int) -> Chosen:
    own, count = seen.features[seen.patches], len(seen.patches)
    length = -(-count // 16)
    crops = [range(start, min(start + length, count)) for start in range(0, count, length)]
    scores = []
    for crop in crops:
        tokens = np.zeros((length, own.shape[1]))  # what a last crop lacks stays 0
        tokens[: len(crop)] = _units(own[crop])
        cosines = tokens @ tokens.T * (1 - np.eye(length))
        variance = cosines.var(axis=1, ddof=1).mean()
        scores.append(seen.attention[crop].sum() * (1 + 0.09 * variance / (variance + 1e-6)))
    shares = np.array(scores) / sum(scores) * budget
    given = [min(int(share), len(crop)) for share, crop in zip(shares, crops, strict=True)]
    for best in _falling(scores):
        if sum(given) < budget and given[best] < len(crops[best]):
            given[best] += 1
    for best in _falling(scores):
        given[best] += min(budget - sum(given), len(crops[best]) - given[best])
    chosen = [
        crop[one]
        for crop, some in zip(crops, given, strict=True)
        for one in _falling(seen.attention[crop])[:some]
    ]
    return sorted(chosen), {}


def _nuwa(seen: Seen, told: Told, budget: int) -> Chosen:
    own, units = seen.features[seen.patches], _units(seen.features[seen.patches])
    regions: dict[tuple[int, ...], list[int]] = {}
    for patch in _falling(seen.attention):
        row, column, plane = seen.planes[patch]
        regions.setdefault((row // 2, column // 2, plane), []).append(patch)
    each = -(-4 * budget // len(own))
    candidates = {patch for region in regions.values() for patch in region[:each]}
    first = sorted(_falling(seen.attention), key=lambda patch: patch not in candidates)
    kept = sorted(first[:budget])
    bound = np.quantile(seen.attention[kept], 0.55)
    merged = {}
    for patch in kept:
        if seen.attention[patch] >= bound - 1e-12:
            continue
        away = seen.planes - seen.planes[patch]
        near = np.maximum(0, 1 - np.sqrt((away**2).sum(axis=1) / 280)) * (away[:, 2] == 0)
        weights = near * np.maximum(0, units @ units[patch])
        weights /= weights.sum()
        weights[patch] = 1
        merged[patch] = weights @ own
    return kept, merged


def _components(own: np.ndarray, count: int) -> np.ndarray:
    """How much each patch has of each principal component, [count, patches].

    Found from the start that the package draws; another one may find others.
    """
    values = 1 / (1 + np.exp(-own))
    centred = values - values.mean(axis=1, keepdims=True)
    numbers = 256 * values.shape[1]  # for as many components as there may be
    drawn = torch.randperm(numbers, generator=torch.Generator().manual_seed(0)).double().numpy()
    weights = (drawn - drawn.mean()).reshape(256, -1)[:count] @ values.T
    for _ in range(2):
        basis, _ = np.linalg.qr(centred.T @ weights.T)
        weights = basis.T @ centred.T
    return np.abs(np.linalg.svd(weights, full_matrices=False)[2])


def _prunesid(seen: Seen, told: Told, budget: int) -> Chosen:
    own, units = seen.features[seen.patches], _units(seen.features[seen.patches])
    cosines = units @ units.T
    limit = budget / 32 * cosines[np.triu_indices(len(own), 1)].mean()
    groups = _components(own, max(1, budget // 4))
    lines: list[list[int]] = [[] for _ in groups]
    for patch in _falling(seen.attention):
        lines[int(groups[:, patch].argmax())].append(patch)
    left = []
    for number, line in enumerate(lines):
        stay: list[int] = []
        for patch in line:
            if not stay or cosines[patch, stay].max() <= limit:
                stay.append(patch)
        left.append(len(stay))
        lines[number] = stay + [patch for patch in line if patch not in stay]
    most = [min(5 * -(-budget // 64), some) for some in left]
    while sum(most) < budget:
        most = [min(one + 1, len(line)) for one, line in zip(most, lines, strict=True)]
    given = [min(1, len(line)) for line in lines]
    rest = budget - 1 - sum(given)
    bounds = [round(Fraction(rest * sum(left[:end]), sum(left))) for end in range(len(left) + 1)]
    given = [
        min(one + bounds[number + 1] - bounds[number], most[number])
        for number, one in enumerate(given)
    ]
    for number in _falling(left):
        given[number] += min(most[number] - given[number], budget - 1 - sum(given))
    chosen = [patch for line, some in zip(lines, given, strict=True) for patch in line[:some]]
    return [CLS, *chosen], {}


def _keep_all(seen: Seen, told: Told, budget: int) -> Chosen:
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
    "scope": _scope,
    "mmtok": _mmtok,
    "eadp": _eadp,
    "holov": _holov,
    "nuwa": _nuwa,
    "prunesid": _prunesid,
    "keep-all": _keep_all,
}
METHODS = tuple(_METHODS)
#: With the option of that name.
_CENTRED = {"divprune": _divprune_centred, "cdpruner": _cdpruner_centred}
CENTRED = tuple(_CENTRED)
