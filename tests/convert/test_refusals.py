"""What is no GLaMM, or not whole, is refused by name, and nothing is left behind."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.convert.builder import Source, write_bins, write_clip, write_glamm
from vllm_litelvlm.cli import main
from vllm_litelvlm.convert.glamm import convert_glamm
from vllm_litelvlm.errors import CompatibilityError, LiteLVLMError, OptionsError, WeightsError

SAM = "model.grounding_encoder."

SpoilState = Callable[[dict[str, torch.Tensor]], object]
SpoilFolder = Callable[[Path], object]


@pytest.fixture
def folder(source: Source, tmp_path: Path) -> Path:
    """A GLaMM that may be spoilt."""
    return write_glamm(tmp_path / "glamm", source, "bins")


def without(name: str) -> SpoilState:
    return lambda state: state.pop(name)


def with_one(name: str, tensor: torch.Tensor) -> SpoilState:
    return lambda state: state.update({name: tensor})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            with_one("model.vision_tower.x", torch.ones(1)),
            r"it has 1 tensor \('model.vision_tower.x'\) that nothing is known of",
        ),
        (
            with_one(f"{SAM}image_encoder.blocks.0.attn.rel_pos_d", torch.ones(5, 16)),
            r"has 1 tensor \('model.grounding_encoder.image_encoder.blocks.0.attn.rel_pos_d'\)",
        ),
        (
            without("model.layers.1.mlp.up_proj.weight"),
            r"it lacks 1 tensor \('model.layers.1.mlp.up_proj.weight'\)",
        ),
        (
            without(f"{SAM}mask_decoder.output_hypernetworks_mlps.2.layers.1.bias"),
            r"lacks 1 tensor \('model.grounding_encoder.*mlps.2.layers.1.bias'\)",
        ),
        (
            without(f"{SAM}image_encoder.pos_embed"),
            r"SAM's tensor 'image_encoder.pos_embed' is missing",
        ),
        (
            with_one("model.text_hidden_fcs.0.2.bias", torch.ones(31)),
            r"'model.text_hidden_fcs.0.2.bias' .* has shape \[31\]; expected \[32\]",
        ),
        (
            with_one("lm_head.weight", torch.ones(3, 64)),
            r"'lm_head.weight' .* has shape \[3, 64\]; expected \[\d+, 64\]",
        ),
        (
            with_one(f"{SAM}prompt_encoder.no_mask_embed.weight", torch.ones(1, 31)),
            r"no_mask_embed.weight' .* has shape \[1, 31\]; expected \[1, 32\]",
        ),
        (
            with_one(f"{SAM}image_encoder.blocks.2.attn.rel_pos_h", torch.ones(7, 16)),
            r"rows that fit no window: 5 in .*, 7 in .*Expected 15 where a layer sees all 8 x 8",
        ),
        (
            with_one("model.norm.weight", torch.ones(64, dtype=torch.int64)),
            r"'model.norm.weight' .* has dtype torch.int64; expected a floating-point one",
        ),
    ],
)
def test_tensors_that_are_not_glamms_are_named(
    folder: Path, clip: Path, source: Source, tmp_path: Path, spoil: SpoilState, said: str
) -> None:
    state = dict(source.state)
    spoil(state)
    write_bins(folder, state)
    with pytest.raises(WeightsError, match=said):
        convert_glamm(folder, tmp_path / "output", str(clip))
    assert {one.name for one in tmp_path.iterdir()} == {"glamm"}


def rewrite(file: str, **fields: object) -> SpoilFolder:
    def spoil(folder: Path) -> None:
        read = json.loads((folder / file).read_text()) | fields
        kept = {name: value for name, value in read.items() if value is not None}
        (folder / file).write_text(json.dumps(kept))

    return spoil


SHARD = "pytorch_model-00002-of-00003.bin"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (rewrite("config.json", model_type="llama"), "has model_type 'llama'; GLaMM's is 'llava'"),
        (rewrite("config.json", text_config={}), "that is llava-hf's layout"),
        (rewrite("config.json", num_attention_heads=None), "lacks num_attention_heads"),
        (rewrite("config.json", hidden_size="wide"), "config.json is not a Llama's"),
        (rewrite("config.json", vocab_size=500), "a tokenizer of 607 .* vocab_size of 500"),
        (rewrite("added_tokens.json", **{"[SEG]": None}), r"has no \[SEG\] among its added tokens"),
        (rewrite("added_tokens.json", **{"</p>": 700}), "expected 600 and on without a gap"),
        (rewrite("tokenizer_config.json", add_eos_token=True), "add_eos_token True"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "is not a SentencePiece model"),
        (lambda folder: (folder / SHARD).unlink(), rf"lacks 1 file \('{SHARD}'\)"),
        (lambda folder: (folder / SHARD).write_bytes(b"PK"), f"{SHARD} cannot be read"),
        (
            lambda folder: torch.save({"model.norm.weight": torch.ones(64)}, folder / SHARD),
            r"lack \d+ tensors \(.*\) of pytorch_model.bin.index.json",
        ),
        (lambda folder: (folder / "pytorch_model.bin.index.json").unlink(), "has no weights"),
        (lambda folder: shutil.rmtree(folder), "is not a folder with a config.json"),
    ],
)
def test_folder_that_is_no_glamm_is_refused(
    folder: Path, clip: Path, tmp_path: Path, spoil: SpoilFolder, said: str
) -> None:
    spoil(folder)
    with pytest.raises((CompatibilityError, WeightsError), match=said):
        convert_glamm(folder, tmp_path / "output", str(clip))
    assert not (tmp_path / "output").exists()


def test_clip_of_another_kind_or_incomplete_is_refused(
    folder: Path, source: Source, tmp_path: Path
) -> None:
    output, tower = tmp_path / "output", tmp_path / "clip"
    with pytest.raises(OptionsError, match="--vision-tower nobody/clip is neither a folder nor"):
        convert_glamm(folder, output, "nobody/clip")
    with pytest.raises(OptionsError, match=r"--vision-tower .*config.json cannot be read"):
        convert_glamm(folder, output, str(tmp_path))
    with pytest.raises(OptionsError, match="model_type is 'llava', not 'clip'"):
        convert_glamm(folder, output, str(folder))
    write_clip(tower, source, "safetensors")
    rewrite(
        "config.json",
        vision_config={**source.clip.config.vision_config.to_dict(), "num_hidden_layers": 4},
    )(tower)
    with pytest.raises(WeightsError, match=r"it lacks 16 tensors \('vision_model.encoder.layers.3"):
        convert_glamm(folder, output, str(tower))
    rewrite("preprocessor_config.json", crop_size={"height": 28, "width": 28})(tower)
    with pytest.raises(OptionsError, match=r"images are cropped to \(28, 28\)"):
        convert_glamm(folder, output, str(tower))
    assert not output.exists()


def test_interrupted_conversion_leaves_nothing_and_what_was_there(
    folder: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            assert (tmp_path / "output.partial").is_dir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_glamm(folder, output, str(clip), show=interrupt)
    assert {one.name for one in tmp_path.iterdir()} == {"glamm"}
    output.mkdir()
    (output / "mine").write_text("")
    with pytest.raises(KeyboardInterrupt):
        convert_glamm(folder, output, str(clip), overwrite=True, show=interrupt)
    assert [one.name for one in output.iterdir()] == ["mine"]
    with pytest.raises(OptionsError, match=r"exists and is not empty.*--overwrite"):
        convert_glamm(folder, output, str(clip))
    convert_glamm(folder, output, str(clip), overwrite=True)
    assert (output / "config.json").is_file()
    assert not (output / "mine").exists()
    assert {one.name for one in tmp_path.iterdir()} == {"glamm", "output"}

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("vllm_litelvlm.convert.writing.save_file", full)
    with pytest.raises(WeightsError, match=r"cannot be written .*No space left"):
        convert_glamm(folder, tmp_path / "other", str(clip))
    assert not (tmp_path / "other").exists()


def test_output_that_would_take_what_is_read_with_it_is_refused(
    folder: Path, clip: Path, tmp_path: Path
) -> None:
    for output in (folder, tmp_path):
        with pytest.raises(OptionsError, match=r"holds .*, which is read"):
            convert_glamm(folder, output, str(clip), overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionsError, match="is a file"):
        convert_glamm(folder, tmp_path / "file", str(clip), overwrite=True)
    assert (folder / "config.json").is_file()


def test_number_beyond_float16_is_refused(
    folder: Path, clip: Path, source: Source, tmp_path: Path
) -> None:
    large = torch.full((64,), 1e5)
    write_bins(folder, {**source.state, "model.norm.weight": large})
    with pytest.raises(WeightsError, match=r"model.norm.weight' has numbers beyond float16"):
        convert_glamm(folder, tmp_path / "output", str(clip), torch.float16)


def test_command_says_what_it_did(
    folder: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "output"
    given = ["convert", "glamm", str(folder), str(output), "--vision-tower", str(clip)]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "left out: 2 tensors model.region_encoder.*, of boxes in a prompt" in printed
    assert "<image> is token 607, in the embedding a row more than its 607" in printed
    assert "[SEG] is token 604" in printed
    assert "4 layers of width 48 with 3 heads, images of 64 pixels" in printed
    assert main(given) == 1
    assert capsys.readouterr().err.startswith(f"litelvlm: {output} exists and is not empty")
    assert (output / "sam/model.safetensors").is_file()


def test_missing_sentencepiece_is_told(
    folder: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(LiteLVLMError, match="pip install sentencepiece"):
        convert_glamm(folder, tmp_path / "output", str(clip))


def test_help_needs_neither_torch_nor_transformers() -> None:
    program = (
        "import sys\n"
        "from vllm_litelvlm.cli import main\n"
        "try: main(['convert', 'glamm', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "litelvlm convert glamm [-h] [--vision-tower CLIP]" in " ".join(done.stdout.split())
