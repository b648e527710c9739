"""Qwen-VLs with pruned images and videos in plain transformers, written from descriptions alone.

Nothing of the package is used: the model runs whole, positions are the unpruned prompt's less the
dropped columns, and scores are computed head by head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_window_index

from tests.e2e.texts import telling_words, token_cosine

Picture = Image.Image | list[Image.Image]


@dataclass(frozen=True)
class Seen:
    """What the tower makes of an image: rows for the language model, and its last attention.

    ``levels`` are [tokens, width], the first for the input, others for deeper layers. The others
    are [tokens, cell, heads, width], in raster order.
    """

    grid: tuple[int, int, int]
    levels: list[Tensor]
    query: Tensor
    key: Tensor
    value: Tensor
    rotated_query: Tensor
    rotated_key: Tensor


class QwenReference:
    """The model of a folder, float32."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.config = self.model.config
        self.merge = self.config.vision_config.spatial_merge_size

    def prompt(self, question: str, pictures: Sequence[Picture]) -> str:
        """A chat with one question about the pictures, rendered."""
        kinds = ["image" if isinstance(one, Image.Image) else "video" for one in pictures]
        parts: list[dict[str, str]] = [{"type": kind} for kind in kinds]
        content = [*parts, {"type": "text", "text": question}]
        rendered: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return rendered

    @torch.no_grad()
    def see(self, image: Image.Image) -> Seen:
        made = self.processor.image_processor(images=[image], return_tensors="pt")
        return self._see(made["pixel_values"], made["image_grid_thw"])

    def _see(self, pixels: Tensor, grid: Tensor) -> Seen:
        visual, noted = self.model.model.visual, {}
        last = visual.blocks[-1].attn

        def note(_: Any, given: Any, kwargs: Any) -> None:
            noted["input"] = kwargs.get("hidden_states", given[0] if given else None)
            noted["rotary"] = kwargs["position_embeddings"]

        handle = last.register_forward_pre_hook(note, with_kwargs=True)
        output = visual(pixels, grid_thw=grid, return_dict=True)
        handle.remove()
        heads = self.config.vision_config.num_heads
        parts = last.qkv(noted["input"]).reshape(len(pixels), 3, heads, -1).unbind(1)
        query, key, value = parts
        cosine, sine = noted["rotary"]
        rotated = apply_rotary_pos_emb_vision(query, key, cosine, sine)

        def cells(patches: Tensor) -> Tensor:
            found = patches.unflatten(0, (-1, self.merge**2))
            if not hasattr(visual, "window_size"):
                return found
            order, _ = get_vision_window_index(
                grid,
                spatial_merge_size=self.merge,
                window_size=visual.window_size,
                patch_size=visual.patch_size,
            )
            back = torch.empty_like(found)
            back[order] = found
            return back

        time, rows, columns = grid[0].tolist()
        return Seen(
            (time, rows // self.merge, columns // self.merge),
            [output.pooler_output, *getattr(output, "deepstack_features", [])],
            *map(cells, (query, key, value, *rotated)),
        )

    @torch.no_grad()
    def scores(self, seen: Seen, texts: Sequence[str]) -> dict[str, Tensor]:
        """By the names of the package's signals, each [tokens], or [texts or words, tokens]."""
        received = torch.zeros(seen.key.shape[0] * seen.key.shape[1])
        heads, width = seen.query.shape[2:]
        for head in range(heads):
            keys = seen.rotated_key[:, :, head].flatten(0, 1)
            for token in range(len(seen.query)):
                asking = seen.rotated_query[token, :, head].mean(dim=0)
                received += torch.softmax(keys @ asking / width**0.5, dim=0)
        received = received.view(len(seen.query), -1).mean(dim=1) / (heads * len(seen.query))
        first = int(received.argmax())
        query = seen.query[first].mean(dim=0).flatten()
        keys, values = (one.flatten(0, 1).flatten(1) for one in (seen.key, seen.value))
        scale = (heads * width) ** 0.5
        lengths = values.norm(dim=-1)
        context = torch.softmax(keys @ query / scale, dim=0) * lengths
        unit_keys = keys / keys.norm(dim=-1, keepdim=True)
        normalised = torch.softmax(unit_keys @ (query / query.norm()) / scale, dim=0) * lengths
        tokens = seen.levels[0]
        said = [self._embed(text) for text in texts]
        means = torch.stack([one.mean(dim=0) for one in said]) if said else tokens[:0]
        similarity = means @ tokens.T
        by_token = [
            torch.from_numpy(token_cosine(*(one.double().numpy() for one in (tokens, mean, own))))
            for mean, own in zip(means, said, strict=True)
        ]
        words = torch.cat([tokens[:0], *(self._embed(telling_words(text)) for text in texts)])
        return {
            "features": torch.cat(seen.levels, dim=1),
            "projected": tokens,
            "cls_attention": received,
            "keys": seen.key.mean(dim=1).mean(dim=1),
            "context": context.view(len(seen.query), -1).mean(dim=1),
            "context_normalised": normalised.view(len(seen.query), -1).mean(dim=1),
            "similarity": similarity,
            "cosine": _cosines(means, tokens),
            "token_cosine": torch.stack(by_token).float() if said else similarity,
            "word_cosine": _cosines(words, tokens),
        }

    def _embed(self, text: str) -> Tensor:
        ids = self.processor.tokenizer.encode(text, add_special_tokens=False)
        embedded: Tensor = self.model.get_input_embeddings()(torch.tensor(ids))
        return embedded

    @torch.no_grad()
    def follow(
        self,
        prompt: str,
        pictures: Sequence[Picture],
        kept: Sequence[Sequence[int]],
        answer: Sequence[int],
        original: bool = True,
    ) -> tuple[list[int], list[float]]:
        """Behind the prompt and each part of an answer: the best token, and how likely the next is.

        Args:
            prompt: rendered, with a placeholder a picture.
            pictures: images, or one video.
            kept: the numbers of each image's or frame's tokens that stay, in order.
            answer: token ids; the second result has the log-probability of each.
            original: whether tokens keep their places; all of a picture always do.
        """
        made, seen, token = self._read(prompt, pictures)
        ids = made["input_ids"][0]
        grids = {name: one for name, one in made.items() if name.endswith(("_thw", "grid_ts"))}
        whole, _ = self.model.model.get_rope_index(
            made["input_ids"], made["mm_token_type_ids"], **grids
        )
        counts = [len(one.levels[0]) for one in seen]
        is_run = (
            not self.config.model_type.startswith("qwen3") and token == self.config.video_token_id
        )
        columns: list[int] = []
        rows: list[list[Tensor]] = []
        positions: list[Tensor] = []
        following, ahead = 0, 0  # of the prompt's columns; positions saved so far

        def take_words(end: int) -> None:
            for column in range(following, end):
                columns.append(column)
                positions.append(whole[:, 0, column] - ahead)

        for number, places in enumerate((ids == token).nonzero()[:, 0].split(counts)):
            take_words(int(places[0]))
            here = whole[:, 0, places[0]] - ahead
            placed = original or len(kept[number]) == len(places)
            for order, index in enumerate(kept[number]):
                columns.append(int(places[index]))
                rows.append([level[index] for level in seen[number].levels])
                own = whole[:, 0, places[index]] - ahead
                positions.append(own if placed else here + order)
            following = int(places[-1]) + 1
            ahead += 0 if placed else max(seen[number].grid[1:]) - len(kept[number])
        # transformers 5.19 lets words go on behind a video's height and width, vLLM behind its time
        # too, as transformers 4 did.
        times = whole[0, 0, ids == token]
        ahead -= max(0, int(times.max() - times.min()) + 1 - max(seen[-1].grid[1:])) * is_run
        take_words(len(ids))
        chosen = ids[columns]
        is_visual = chosen == token
        inputs = self.model.get_input_embeddings()(chosen)
        inputs[is_visual] = torch.stack([one[0] for one in rows])
        said = self.model.get_input_embeddings()(torch.tensor(list(answer[:-1]), dtype=torch.long))
        later = positions[-1].max() + 1 + torch.arange(len(answer) - 1)
        every = torch.cat([torch.stack(positions).T, later.expand(3, -1)], dim=1)
        more: dict[str, Any] = {}
        if len(rows[0]) > 1:
            padding = torch.zeros(len(answer) - 1, dtype=torch.bool)
            more["visual_pos_masks"] = torch.cat([is_visual, padding])[None]
            more["deepstack_visual_embeds"] = [
                torch.stack([one[level] for one in rows]) for level in range(1, len(rows[0]))
            ]
        states = self.model.model.language_model(
            inputs_embeds=torch.cat([inputs, said])[None], position_ids=every[:, None], **more
        ).last_hidden_state
        logits = self.model.lm_head(states)[0, -len(answer) :]
        likely = logits.log_softmax(dim=-1).gather(1, torch.tensor(list(answer))[:, None])
        return logits.argmax(dim=-1).tolist(), likely[:, 0].tolist()

    def _read(self, prompt: str, pictures: Sequence[Picture]) -> tuple[Any, list[Seen], int]:
        """The unpruned inputs, what is seen of every image or frame, and the placeholder."""
        if isinstance(pictures[0], Image.Image):
            made = self.processor(text=[prompt], images=list(pictures), return_tensors="pt")
            return made, [self.see(one) for one in pictures], self.config.image_token_id
        [frames] = pictures
        made = self.processor(
            text=[prompt],
            videos=[as_array(frames)],
            video_metadata=[video_metadata(len(frames))],
            do_sample_frames=False,
            return_tensors="pt",
        )
        video = self._see(made["pixel_values_videos"], made["video_grid_thw"])
        seen = [
            replace(video, levels=list(levels))
            for levels in zip(*(level.chunk(video.grid[0]) for level in video.levels), strict=True)
        ]
        return made, seen, self.config.video_token_id


def _cosines(said: Tensor, tokens: Tensor) -> Tensor:
    return said @ tokens.T / said.norm(dim=1, keepdim=True) / tokens.norm(dim=1)[None]


def video_metadata(frames: int) -> dict[str, Any]:
    """Of a video of a frame a second, as which vLLM takes a sequence of JPEGs."""
    return {
        "fps": 1.0,
        "duration": float(frames),
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "jpeg_sequence",
    }


def as_array(frames: Sequence[Image.Image]) -> np.ndarray:
    """A video, [frames, height, width, 3]."""
    return np.stack([np.asarray(frame) for frame in frames])
