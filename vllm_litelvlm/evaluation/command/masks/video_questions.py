"""A video's expressions and frames as questions, each of a part that one request takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_litelvlm.evaluation.command.conditions import Condition
from vllm_litelvlm.evaluation.command.masks.opening import Opened
from vllm_litelvlm.evaluation.command.masks.settings import MaskSettings
from vllm_litelvlm.evaluation.command.settings import EvaluationError
from vllm_litelvlm.evaluation.masks.backend import MaskAnswer, MaskQuestion
from vllm_litelvlm.evaluation.masks.videos import Video


@dataclass(frozen=True)
class VideoPart:
    """Some expressions about some frames, by their places in the video.

    ``texts``: the expressions as the model is asked.
    """

    video: Video
    expressions: tuple[int, ...]
    frames: tuple[int, ...]
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the conversation, the same for all frames: by it, methods that draw are seeded."""
        numbers = [self.video.expressions[place].number for place in self.expressions]
        return " ".join([self.video.name, *numbers])

    @property
    def masks(self) -> int:
        """How many it asks for."""
        return len(self.frames) * len(self.expressions)

    def question(self, settings: MaskSettings, condition: Condition) -> MaskQuestion:
        """What is asked under a condition."""
        files = [self.video.frame_file(self.video.frames[place]) for place in self.frames]
        return MaskQuestion(files, self.texts, settings.options(condition, self))


def parts(settings: MaskSettings, video: Video) -> Iterator[VideoPart]:
    """All parts of a video: of some expressions after the other the frames in order."""
    for expressions in _runs(len(video.expressions), settings.together):
        texts = tuple(settings.asked(video.expressions[place].text) for place in expressions)
        for frames in _runs(len(video.frames), settings.frames_per_request):
            yield VideoPart(video, expressions, frames, texts)


def ask_parts(
    settings: MaskSettings, condition: Condition, opened: Opened, asked: Sequence[VideoPart]
) -> Iterator[tuple[VideoPart, MaskAnswer]]:
    """Each part of one video with its answer, as soon as that is there.

    Raises EvaluationError for masks of another size than the frames.
    """
    if not asked:
        return
    size = asked[0].video.size()
    questions = [part.question(settings, condition) for part in asked]
    for part, answer in zip(asked, opened.answer(questions), strict=True):
        for place, masks in zip(part.frames, answer.masks, strict=True):
            if masks.shape[1:] != size[::-1]:
                raise EvaluationError(
                    f"{part.video.frame_file(part.video.frames[place])} has masks of "
                    f"{masks.shape[2]} x {masks.shape[1]} pixels; its video has {size[0]} x "
                    f"{size[1]}. If its EXIF data turn it, save it without."
                )
        yield part, answer


def _runs(count: int, size: int) -> list[tuple[int, ...]]:
    places = range(count)
    return [tuple(places[start : start + size]) for start in range(0, count, size)]
