"""Changes the weights of a running engine in every way, and asks the same questions after each.

``python -m tests.e2e.weights_run JOBS.json``; the file holds ``{"model", "clip", "other", "image",
"options": [...]}``, and "clip" is the CLIP of both checkpoints. Answers are written beside it as
``answers.json``, step by step. The engine runs in this process, as vLLM does with multiprocessing
off.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file

PROMPT = "USER: <image>\nWhere is the red cup? ASSISTANT:"


class Engine:
    """An offline engine with the plugin, and the questions that it is asked."""

    def __init__(self, jobs: dict[str, Any], model: str, **arguments: Any) -> None:
        from vllm import LLM

        self._jobs = jobs
        self.llm = LLM(
            model,
            dtype="float32",
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=4,
            additional_config={"litelvlm": {"clip_model": jobs["clip"]}},
            **arguments,
        )

    def answers(self) -> list[Any]:
        from vllm import SamplingParams

        image = Image.open(self._jobs["image"]).convert("RGB")
        sampling = SamplingParams(temperature=0, max_tokens=4, logprobs=0)
        prompts = [
            {
                "prompt": PROMPT,
                "multi_modal_data": {"image": image},
                "mm_processor_kwargs": {"litelvlm": options},
            }
            for options in self._jobs["options"]
        ]
        found = []
        for prompt in prompts:
            [output] = self.llm.generate(prompt, sampling, use_tqdm=False)
            [answer] = output.outputs
            found.append(
                [
                    [token, entry[token].logprob]
                    for token, entry in zip(answer.token_ids, answer.logprobs, strict=True)
                ]
            )
        return found

    def reset(self) -> None:
        """As a training loop does."""
        engine = self.llm.llm_engine
        engine.reset_encoder_cache()
        engine.reset_prefix_cache()
        engine.reset_mm_cache()

    def load(self, tensors: dict[str, Any]) -> float:
        """``load_weights`` on the model, and how many seconds it took."""
        began = time.perf_counter()
        self.llm.apply_model(lambda model: model.load_weights(tensors.items()))
        return time.perf_counter() - began

    def change_in_place(self, tensors: dict[str, Any]) -> None:
        """Write tensors over those that the model has under their names, or fused."""

        def change(model: Any) -> None:
            own = dict(model.named_parameters())
            for name, tensor in tensors.items():
                if name in own:
                    own[name].data.copy_(tensor)
                for place, kind in enumerate(("q_proj", "k_proj", "v_proj")):
                    fused = name.replace(kind, "qkv_proj")
                    if kind in name and fused in own:
                        own[fused].data.chunk(3)[place].copy_(tensor)

        self.llm.apply_model(change)

    def sleep_deep(self) -> None:
        """What sleep level 2 does on a GPU, and a trainer that sends parameters as vLLM has them.

        vLLM saves buffers, and nothing else survives.
        """

        def sleep(model: Any) -> None:
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            parameters = [parameter.data.clone() for parameter in model.parameters()]
            guidance = model.litelvlm
            for part in (model, guidance.scorer, guidance.text_tower):
                for tensor in (*part.parameters(), *part.buffers()):
                    tensor.data.zero_()
            for name, buffer in model.named_buffers():
                buffer.data.copy_(buffers[name])
            for parameter, saved in zip(model.parameters(), parameters, strict=True):
                parameter.data.copy_(saved)

        self.llm.llm_engine.reset_encoder_cache()
        self.llm.apply_model(sleep)


def main(path: Path) -> None:
    import vllm_litelvlm

    vllm_litelvlm.activate()
    jobs = json.loads(path.read_text())
    first, second = (
        load_file(Path(jobs[name]) / "model.safetensors") for name in ("model", "other")
    )
    changed = {name: tensor for name, tensor in second.items() if not tensor.equal(first[name])}
    steps: dict[str, Any] = {}

    fresh = Engine(jobs, jobs["other"])
    steps["other, fresh"] = fresh.answers()
    del fresh
    engine = Engine(jobs, jobs["model"])
    steps["model, fresh"] = engine.answers()
    norm = "language_model.model.norm.weight"
    steps["seconds"] = [engine.load({norm: first[norm]}) for _ in range(5)]
    steps["model, one tensor loaded"] = engine.answers()
    # vLLM's tower ends before the last layer: that can be loaded alone.
    engine.load({name: tensor for name, tensor in changed.items() if jobs["last"] in name})
    engine.answers()
    engine.change_in_place(changed)
    steps["other, in place"] = (engine.reset(), engine.answers())[1]
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": jobs["model"]})
    steps["model, reloaded"] = (engine.reset(), engine.answers())[1]
    engine.load(changed)
    steps["other, loaded in part"] = (engine.reset(), engine.answers())[1]
    engine.sleep_deep()
    steps["other, after a deep sleep"] = (engine.reset(), engine.answers())[1]
    del engine
    dummy = Engine(jobs, jobs["model"], load_format="dummy")
    steps["dummy"] = dummy.answers()
    dummy.llm.llm_engine.vllm_config.load_config.load_format = "auto"
    dummy.llm.collective_rpc("reload_weights", kwargs={"weights_path": jobs["model"]})
    steps["model, after dummy"] = (dummy.reset(), dummy.answers())[1]
    (path.parent / "answers.json").write_text(json.dumps(steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
