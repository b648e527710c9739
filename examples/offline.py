"""Prune visual tokens with vLLM's offline class.

    python examples/offline.py llava-hf/llava-1.5-7b-hf photo.jpg "Where is the red cup?"

Prints the answer with all visual tokens and with fewer of them.
"""

import argparse

import vllm_litelvlm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="hub name or folder of a LLaVA-1.5 checkpoint")
    parser.add_argument("image", help="path of a photograph")
    parser.add_argument("question")
    parser.add_argument("--budgets", type=int, nargs="+", default=[576, 192, 64])
    parser.add_argument("--clip-model", help="the vision tower's CLIP, if not the published one")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()

    vllm_litelvlm.activate()  # before the engine is built
    from PIL import Image
    from vllm import LLM, SamplingParams

    server_options = {"clip_model": arguments.clip_model} if arguments.clip_model else {}
    llm = LLM(
        arguments.model,
        dtype=arguments.dtype,
        max_model_len=4096,
        enforce_eager=True,
        additional_config={"litelvlm": server_options},
    )
    message = {
        "role": "user",
        "content": [
            {"type": "image_pil", "image_pil": Image.open(arguments.image).convert("RGB")},
            {"type": "text", "text": arguments.question},
        ],
    }
    for budget in arguments.budgets:
        [output] = llm.chat(
            [message],
            SamplingParams(temperature=0, max_tokens=arguments.max_tokens),
            mm_processor_kwargs={"litelvlm": {"budget": budget}},
            use_tqdm=False,
        )
        print(f"budget {budget}: {len(output.prompt_token_ids)} prompt tokens")
        print(f"  {output.outputs[0].text.strip()}")


if __name__ == "__main__":
    main()
