"""Whether a checkpoint holds what it should."""

from collections.abc import Iterable, Mapping

from vllm_litelvlm.convert.reading import Held
from vllm_litelvlm.convert.words import few
from vllm_litelvlm.errors import WeightsError

Shape = tuple[int, ...]


def check_tensors(
    place: str, held: Mapping[str, Held], expected: Mapping[str, Shape], kind: str
) -> None:
    """Raise WeightsError unless names and shapes are the expected ones, and all floating-point.

    Args:
        place: what holds them, for the sentence.
        held: what is there, by name.
        expected: what has to be there, and no more.
        kind: what it would be if it held that.
    """
    wrong = []
    if missing := [name for name in expected if name not in held]:
        wrong.append(f"it lacks {few(missing, 'tensor')}")
    if unknown := [name for name in held if name not in expected]:
        wrong.append(f"it has {few(unknown, 'tensor')} that nothing is known of")
    if wrong:
        raise WeightsError(f"{place} is not {kind}: {', and '.join(wrong)}.")
    _check_each(place, ((name, held[name], shape) for name, shape in expected.items()))


def _check_each(place: str, tensors: Iterable[tuple[str, Held, Shape]]) -> None:
    for name, one, shape in tensors:
        if one.shape != shape:
            raise WeightsError(
                f"Tensor {name!r} of {place} has shape {list(one.shape)}; expected {list(shape)}."
            )
        if not one.dtype.is_floating_point:
            raise WeightsError(
                f"Tensor {name!r} of {place} has dtype {one.dtype}; expected a floating-point one."
            )
