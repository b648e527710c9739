"""Writes a GLaMM as a LLaVA of llava-hf's layout with its [SEG] projection, and a SAM.

Tried only on checkpoints that tests wrote: published ones could not be had.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, LlavaConfig, LlavaProcessor, SamImageProcessorPil

from vllm_litelvlm.convert import language, writing
from vllm_litelvlm.convert.prompt import CHAT_TEMPLATE
from vllm_litelvlm.convert.reading import read_tensors
from vllm_litelvlm.convert.source import Glamm, read_glamm
from vllm_litelvlm.convert.vision_tower import VisionTower
from vllm_litelvlm.grounding.layout import ARCHITECTURE, SAM_FOLDER, SEG_TOKEN_KEY

#: What the plugin serves: a LLaVA that gives the state in front of a [SEG] too.


def convert_glamm(
    source: Path,
    output: Path,
    vision_tower: str,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Glamm:
    """Convert a folder; a shard of the LLaVA and the SAM are all that is in memory at a time.

    Args:
        source: folder of the GLaMM.
        output: folder to write; it stands only when all is done.
        vision_tower: hub name or folder of its CLIP.
        dtype: of every tensor written; None keeps each one's.
        overwrite: whether an ``output`` that is not empty may be replaced.
        show: called with the bytes read so far, and in all.

    Raises OptionsError, CompatibilityError or WeightsError for what cannot be converted; nothing
    is left behind then.
    """
    read = [source, *filter(Path.is_dir, [Path(vision_tower)])]
    with writing.replacing(output, overwrite, keep=read) as folder:
        glamm = read_glamm(source, vision_tower)
        _write_weights(glamm, folder, dtype, show)
        _write_configs(glamm, folder, dtype)
    return glamm


def _write_weights(
    glamm: Glamm, folder: Path, dtype: torch.dtype | None, show: Callable[[int, int], None]
) -> None:
    total = sum(one.size for one in chain(glamm.held.values(), glamm.tower.held.values()))
    done = 0
    llava = writing.ShardWriter(folder, dtype, writing.SHARD_SIZE)
    sam = writing.ShardWriter(folder / SAM_FOLDER, dtype)
    show(done, total)
    for name, tensor in chain(_tower_tensors(glamm.tower), read_tensors(glamm.held)):
        if name in glamm.sam_names:
            sam.add(glamm.sam_names[name], tensor)
        else:
            llava.add(glamm.llava_names.get(name, name), _with_image_row(glamm, name, tensor))
        done += tensor.nbytes
        show(done, total)
    llava.close()
    sam.close()


def _tower_tensors(tower: VisionTower) -> Iterator[tuple[str, Tensor]]:
    ours = {own: name for name, own in tower.own_names.items()}
    held = {own: tower.held[name] for own, name in ours.items()}
    return ((ours[own], tensor) for own, tensor in read_tensors(held))


def _with_image_row(glamm: Glamm, name: str, tensor: Tensor) -> Tensor:
    """Where embedding and head have no row for ``<image>``, add one that repeats ``<unk>``'s.

    It is never looked up for itself, and as the model's answer no likelier than ``<unk>``, which
    stands before it: a row of zeros would beat every token with a logit below zero.
    """
    lacking = glamm.rows - glamm.text_config.vocab_size
    if name not in (language.EMBEDDING, language.HEAD) or not lacking:
        return tensor
    unknown = tensor[glamm.vocabulary.unknown_id]
    return torch.cat([tensor, unknown.expand(lacking, -1)])


def _write_configs(glamm: Glamm, folder: Path, dtype: torch.dtype | None) -> None:
    vision, tokenizer = glamm.tower.config, glamm.vocabulary.tokenizer
    text_config = deepcopy(glamm.text_config)
    text_config.vocab_size = glamm.rows
    text_config.dtype = dtype or glamm.held[language.EMBEDDING].dtype
    LlavaConfig(
        architectures=[ARCHITECTURE],
        dtype=text_config.dtype,
        vision_config=vision,
        text_config=text_config,
        image_token_index=glamm.vocabulary.image_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=glamm.fields.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        **{SEG_TOKEN_KEY: glamm.vocabulary.seg_id},
    ).save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    processor = LlavaProcessor(
        image_processor=glamm.tower.image_processor,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    # Readers older than transformers 5 look for the images' settings here.
    glamm.tower.image_processor.save_pretrained(folder)
    _write_sam_configs(glamm, folder / SAM_FOLDER, dtype)


def _write_sam_configs(glamm: Glamm, folder: Path, dtype: torch.dtype | None) -> None:
    config = deepcopy(glamm.sam_config)
    config.dtype = dtype or glamm.held[next(iter(glamm.sam_names))].dtype
    config.save_pretrained(folder)
    side = config.vision_config.image_size
    masks = 4 * config.prompt_encoder_config.image_embedding_size
    SamImageProcessorPil(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": masks},
        mask_pad_size={"height": masks, "width": masks},
    ).save_pretrained(folder)
