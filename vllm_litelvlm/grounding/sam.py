"""SAM with prompts that a language model gives instead of points and boxes."""

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import ImageProcessingMixin, SamModel

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.grounding.layout import SAM_FOLDER, read_sam_config, unreadable
from vllm_litelvlm.grounding.masks import Mask
from vllm_litelvlm.grounding.picture import Fit

#: Bytes that masks on their way may take together.
WORKING_BYTES = 1 << 29


class Sam:
    """transformers' ``SamModel``, of any geometry, as GLaMM calls the original SAM.

    Its three parts are called one by one, since ``SamModel.forward`` takes no prompts but its own.
    Threads may share one.

    Args:
        model: float32, on the device where all is computed.
        mean: of the colours, RGB on the scale 0 to 255, float32 [3].
        deviation: theirs, the same.
        working_bytes: bounds how many masks are made at a time; it is one at the least.
    """

    def __init__(
        self,
        model: SamModel,
        mean: Tensor,
        deviation: Tensor,
        working_bytes: int = WORKING_BYTES,
    ) -> None:
        self._model = model.eval()
        self._mean, self._deviation = mean, deviation
        self._working_bytes = working_bytes

    @classmethod
    def load(
        cls,
        model: str,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        working_bytes: int = WORKING_BYTES,
    ) -> "Sam":
        """The SAM of a checkpoint of the layout in :mod:`~vllm_litelvlm.grounding.layout`.

        Args:
            model: hub name or folder of the whole model.
            revision: of a hub repository.
            device: where to compute.
            working_bytes: as above.

        Raises WeightsError naming what is missing or does not fit.
        """
        config = read_sam_config(model, revision)
        try:
            sam, report = SamModel.from_pretrained(
                model,
                config=config,
                subfolder=SAM_FOLDER,
                revision=revision,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise unreadable(model, "model.safetensors", error) from error
        if missing := report["missing_keys"]:
            raise unreadable(model, "model.safetensors", f"it has no tensor {min(missing)!r}")
        for name, found, wanted in sorted(report["mismatched_keys"]):
            shapes = f"its tensor {name!r} has shape {list(found)}; expected {list(wanted)}"
            raise unreadable(model, "model.safetensors", shapes)
        mean, deviation = _colours(model, revision, sam.config.vision_config.image_size)
        return cls(sam.to(device), mean, deviation, working_bytes)

    @property
    def prompt_width(self) -> int:
        """Of a prompt; 256 in every published SAM."""
        return int(self._model.config.prompt_encoder_config.hidden_size)

    @property
    def side(self) -> int:
        """Of the square that pictures are put into, in pixels."""
        return int(self._model.config.vision_config.image_size)

    @torch.no_grad()
    def encode(self, picture: Image.Image) -> Tensor:
        """Features of an RGB picture, float32 [1, prompt width, grid, grid]."""
        pixels = self._fit(picture.size).pixels(picture, self._mean, self._deviation)
        encoded = self._model.vision_encoder(pixels[None].to(self._model.device))
        features: Tensor = encoded.last_hidden_state
        return features

    @torch.no_grad()
    def decode(self, features: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the square, float32 [expressions, 4 grid, 4 grid], and scores [expressions].

        A prompt is the only sparse one of its mask, and "no mask" the dense one; of the decoder's
        masks it is the first, that for prompts which leave no doubt.

        Args:
            features: as :meth:`encode` gives them.
            prompts: float32 [expressions, prompt width].
        """
        model = self._model
        _, dense = model.prompt_encoder(
            input_points=None, input_labels=None, input_boxes=None, input_masks=None
        )
        logits, scores = model.mask_decoder(
            image_embeddings=features,
            image_positional_embeddings=model.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=prompts[None, :, None],  # [pictures, masks, tokens, width]
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return logits[0, :, 0], scores[0, :, 0]

    @torch.no_grad()
    def masks(self, features: Tensor, prompts: Tensor, size: tuple[int, int]) -> list[Mask]:
        """A mask a prompt, of the picture's own size.

        Args:
            features: of the picture, as :meth:`encode` gives them.
            prompts: float [expressions, prompt width], of any device.
            size: width and height of the picture.

        Raises CompatibilityError for prompts of another width, or that are not finite.
        """
        self._check(prompts)
        fit, chunk = self._fit(size), self.chunk(size)
        made: list[Mask] = []
        if not len(prompts):
            return made  # the decoder divides by their number
        for part in prompts.to(self._model.device, torch.float32).split(chunk):
            logits, scores = self.decode(features, part)
            pixels = fit.masks(logits).cpu().numpy()
            made += [Mask(own, score) for own, score in zip(pixels, scores.tolist(), strict=True)]
        return made

    def chunk(self, size: tuple[int, int]) -> int:
        """How many masks of a picture of this width and height are made at a time."""
        config = self._model.config.prompt_encoder_config
        cells = int(config.image_embedding_size) ** 2
        # The decoder was seen to take 8 times the features, and is given 10; then come the logits
        # of the square, and logits and mask of the picture.
        decoded = 10 * 4 * cells * self.prompt_width
        resized = 4 * self.side**2 + 5 * size[0] * size[1]
        return max(1, self._working_bytes // max(decoded, resized))

    def _fit(self, size: tuple[int, int]) -> Fit:
        return Fit(self.side, height=size[1], width=size[0])

    def _check(self, prompts: Tensor) -> None:
        if prompts.ndim != 2 or prompts.shape[1] != self.prompt_width:
            raise CompatibilityError(
                f"Prompts have shape {list(prompts.shape)}; this SAM takes [expressions, "
                f"{self.prompt_width}]. Its projection and the SAM have to be of one checkpoint."
            )
        if bad := [row for row, prompt in enumerate(prompts) if not prompt.isfinite().all()]:
            raise CompatibilityError(
                f"The prompts of expressions {bad} are not finite. The states that they come from "
                "were not computed; ask for them again."
            )


def _colours(model: str, revision: str | None, side: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of ``preprocessor_config.json``, on the scale 0 to 255."""
    file = "preprocessor_config.json"
    try:
        fields, _ = ImageProcessingMixin.get_image_processor_dict(
            model, subfolder=SAM_FOLDER, revision=revision
        )
        longest, scale = fields["size"]["longest_edge"], fields["rescale_factor"]
        mean, deviation = (
            torch.tensor(fields[name], dtype=torch.float64) / scale
            for name in ("image_mean", "image_std")
        )
    except KeyError as error:
        raise unreadable(model, file, f"it has no {error}") from error
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(model, file, error) from error
    if longest != side:
        reason = f"its longest_edge is {longest}, the model's image_size {side}"
        raise unreadable(model, file, reason)
    return mean.float(), deviation.float()
