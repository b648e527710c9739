"""Both backends: promised token counts, agreement with plain transformers, refused options."""

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from PIL import Image

from tests.e2e.reference import Reference
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.errors import CompatibilityError, OptionsError
from vllm_litelvlm.evaluation.backend import Answer, Backend, Question
from vllm_litelvlm.evaluation.llava import HfLlava
from vllm_litelvlm.evaluation.server_backend import ServerBackend
from vllm_litelvlm.evaluation.tower import HfTower, vision_model
from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend
from vllm_litelvlm.pruning.registry import build_pruner, decoder_method_names, method_names

TEXTS = ["Where is the red cup?", "Is there a dog?", "What is on the left?"]


@pytest.fixture(scope="module")
def reference(deep: Checkpoint) -> Reference:
    return Reference(deep.llava, deep.clip)


def one(backend: Backend, image: Image.Image, text: str, tokens: int = 1, **options: Any) -> Answer:
    [answer] = backend.answer([Question(image, text, options, tokens)])
    return answer


def text_tokens(backend: Backend, image: Image.Image) -> int:
    return one(backend, image, TEXTS[0], method="keep-all").prompt_tokens - 576


def test_backend_runs_the_methods_of_the_engine_and_of_the_decoder(
    backend: TransformersBackend,
) -> None:
    assert backend.methods() == (*method_names(), *decoder_method_names())


@pytest.mark.parametrize("method", method_names())
def test_method_of_the_engine_gives_the_language_model_what_it_promises(
    backend: TransformersBackend, photographs: Sequence[Image.Image], method: str
) -> None:
    answer = one(backend, photographs[1], TEXTS[0], tokens=2, method=method, budget=64)
    promised = 576 if method == "keep-all" else build_pruner(method, {}).output_count(64)
    assert answer.visual_tokens == promised
    assert answer.prompt_tokens == promised + text_tokens(backend, photographs[1])
    assert answer.kept is not None
    assert answer.guided is not None
    assert len(set(answer.kept)) == len(answer.guided) == promised
    assert len(answer.token_ids) == 2
    assert answer.seconds > 0


@pytest.mark.parametrize(("method", "visual"), [("fastv", 64), ("sparsevlm", 17 + 1)])
def test_method_of_the_decoder_gets_all_tokens_and_drops_them_on_the_way(
    backend: TransformersBackend, photographs: Sequence[Image.Image], method: str, visual: int
) -> None:
    answer = one(backend, photographs[1], TEXTS[0], tokens=2, method=method, budget=64)
    assert answer.visual_tokens == visual
    assert answer.prompt_tokens == 576 + text_tokens(backend, photographs[1])
    assert answer.kept is not None
    assert answer.guided == tuple(place < 576 for place in answer.kept)
    assert one(backend, photographs[1], "Is it?", 2, method=method, budget=64).kept != answer.kept


@pytest.mark.parametrize("method", decoder_method_names())
def test_budget_of_all_tokens_prunes_nothing_in_the_decoder_either(
    backend: TransformersBackend, photographs: Sequence[Image.Image], method: str
) -> None:
    whole = one(backend, photographs[0], TEXTS[1], 3, method=method, budget=576)
    kept = one(backend, photographs[0], TEXTS[1], 3, method="keep-all")
    assert whole.token_ids == kept.token_ids
    assert whole.kept == tuple(range(576))


@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS])
@pytest.mark.parametrize("budget", [29, 128])
def test_litelvlm_keeps_what_plain_transformers_keeps(
    backend: TransformersBackend,
    reference: Reference,
    photographs: Sequence[Image.Image],
    budget: int,
    texts: list[str],
    variant: str,
) -> None:
    image = photographs[budget % 4]
    answer = one(backend, image, "Look.", budget=budget, texts=texts, variant=variant)
    expected = reference.choose(image, texts, budget, variant)
    assert answer.kept == tuple(expected.kept)
    assert answer.guided == tuple(expected.guided)


def test_greedy_answers_equal_those_of_plain_transformers(
    backend: TransformersBackend,
    reference: Reference,
    llava: HfLlava,
    photographs: Sequence[Image.Image],
) -> None:
    for image, text in zip(photographs, TEXTS, strict=False):
        answer = one(backend, image, text, 8, budget=64)
        kept = reference.choose(image, [text], 64).kept
        expected = reference.generate(f"USER: <image>\n{text} ASSISTANT:", [image], [kept], 8)
        assert list(answer.token_ids) == expected
        assert answer.text == llava.decode(expected) != ""


def test_end_token_is_not_part_of_the_text(llava: HfLlava) -> None:
    words = [380, 250]
    assert llava.decode([*words, 2]) == llava.decode(words)


def test_options_that_are_not_allowed_are_refused(
    backend: TransformersBackend, photographs: Sequence[Image.Image]
) -> None:
    image = photographs[0]
    for said, options in [
        ("'budget' is 577", {"budget": 577}),
        ("'budget' is 577", {"budget": 577, "method": "fastv"}),
        ("'method' is \"nonsense\"", {"method": "nonsense"}),
        ("'schedule' is unknown", {"method": "fastv", "schedule": [3]}),
        ("'layer' is 18", {"method": "fastv", "layer": 18}),
        ("no schedule", {"method": "sparsevlm", "budget": 100}),
        ("'clip_model' is unknown", {"clip_model": "x"}),
    ]:
        with pytest.raises(OptionsError) as refused:
            one(backend, image, TEXTS[0], **options)
        assert said in str(refused.value)


def test_method_that_needs_a_text_is_refused_without_one(
    backend: TransformersBackend, photographs: Sequence[Image.Image]
) -> None:
    with pytest.raises(OptionsError, match="by the text alone"):
        one(backend, photographs[0], " \n", method="trim")
    assert one(backend, photographs[0], " \n", method="trim", texts="a cup").kept
    without = one(backend, photographs[0], "", method="litelvlm", budget=64)
    assert without.kept == one(backend, photographs[0], "", method="context", budget=64).kept


def test_text_with_a_placeholder_of_its_own_is_refused(
    backend: TransformersBackend, photographs: Sequence[Image.Image]
) -> None:
    with pytest.raises(OptionsError, match="2 image placeholders"):
        one(backend, photographs[0], "What is an <image>?")


@torch.no_grad()
def test_blocks_of_the_tower_one_by_one_are_the_tower(
    llava: HfLlava, photographs: Sequence[Image.Image]
) -> None:
    images = llava.images(photographs[0])
    tower = images.tower
    features, feature_input = images.run([0], with_input=True)
    hidden = tower.rows([0]).embed()
    sizes = torch.ones(hidden.shape[:2])
    for layer in range(tower.layers):
        if layer == tower.layers - 1:
            torch.testing.assert_close(hidden, feature_input, atol=1e-4, rtol=1e-4)
        hidden, keys = tower.attend(layer, hidden, sizes)
        hidden = tower.feed_forward(layer, hidden)
    torch.testing.assert_close(hidden, features, atol=1e-4, rtol=1e-4)
    heads = llava.config.vision_config.num_attention_heads
    assert keys.shape == (1, 577, llava.config.vision_config.hidden_size // heads)


@torch.no_grad()
def test_token_of_size_two_is_attended_to_like_two_tokens(llava: HfLlava) -> None:
    torch.manual_seed(0)
    tower = HfTower(vision_model(llava.model.model.vision_tower), torch.empty(1), layers=3)
    hidden = torch.randn(2, 6, llava.config.vision_config.hidden_size)
    sizes = torch.ones(2, 6)
    sizes[:, 5] = 2
    merged, _ = tower.attend(0, hidden, sizes)
    twice, _ = tower.attend(0, torch.cat([hidden, hidden[:, 5:]], dim=1), torch.ones(2, 7))
    torch.testing.assert_close(merged, twice[:, :6], atol=1e-5, rtol=1e-5)


def test_other_layouts_of_llava_are_refused(
    llava: HfLlava, checkpoint: Checkpoint, tmp_path: Any
) -> None:
    folder = tmp_path / "llava"
    folder.mkdir()
    for file in checkpoint.llava.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((checkpoint.llava / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "vision_feature_layer": -1}))
    with pytest.raises(CompatibilityError, match="vision_feature_layer"):
        TransformersBackend(str(folder), str(checkpoint.clip), device="cpu")


class _Server(BaseHTTPRequestHandler):
    """Answers as ``vllm serve`` does, as far as the backend reads it."""

    bodies: list[dict[str, Any]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "the-model", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        options = body.get("mm_processor_kwargs", {}).get("litelvlm", {})
        budget = options.get("budget", 192)
        if budget > 576:
            self._send(400, {"error": {"message": "litelvlm option 'budget' is too high"}})
            return
        prompt = [1, 5, *[7] * budget, 8, 9]
        self._send(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "prompt_token_ids": prompt,
                "usage": {
                    "prompt_tokens": len(prompt),
                    "completion_tokens": 2,
                    "total_tokens": len(prompt) + 2,
                },
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "length",
                        "token_ids": [budget, 12],
                        "message": {"role": "assistant", "content": f"budget {budget}"},
                    }
                ],
            },
        )

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _Server.bodies.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("concurrent", [1, 4])
def test_server_backend_asks_and_reads_in_order(
    url: str, photographs: Sequence[Image.Image], concurrent: int
) -> None:
    backend = ServerBackend(url, concurrent)
    budgets = [64, 3, 1, 128, 576]
    answers = backend.answer(
        [Question(photographs[0], "Where?", {"budget": b, "texts": ["a"]}, 2) for b in budgets]
    )
    assert [answer.visual_tokens for answer in answers] == budgets
    assert [answer.token_ids[0] for answer in answers] == budgets
    assert [answer.prompt_tokens for answer in answers] == [4 + budget for budget in budgets]
    assert answers[0].text == "budget 64"
    assert answers[0].kept is answers[0].guided is None
    asked = _Server.bodies[-1]
    assert asked["model"] == "the-model"
    assert asked["temperature"] == 0
    assert asked["mm_processor_kwargs"]["litelvlm"]["texts"] == ["a"]
    assert [part["type"] for part in asked["messages"][0]["content"]] == ["image_url", "text"]


def test_server_backend_refuses_methods_inside_the_language_model(
    url: str, photographs: Sequence[Image.Image]
) -> None:
    backend = ServerBackend(url)
    assert backend.methods() == method_names()
    for method in decoder_method_names():
        with pytest.raises(OptionsError, match="inside the language model"):
            one(backend, photographs[0], "Where?", method=method)
    assert not _Server.bodies


def test_server_backend_hands_on_what_the_server_refuses(
    url: str, photographs: Sequence[Image.Image]
) -> None:
    with pytest.raises(OptionsError, match="'budget' is too high"):
        one(ServerBackend(url), photographs[0], "Where?", budget=577)
