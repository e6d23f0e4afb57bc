"""Vocabularies of other people's models: from a Hugging Face folder or a GGUF file, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jielong.errors import UserError
from jielong.tokens.chat import JINJA
from jielong.tokens.tokenizer import SETTINGS, SPECIAL, Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of GGUF

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {"llama-bpe": _WORDS + r"|\p{N}{1,3}" + _REST, "qwen2": _WORDS + r"|\p{N}" + _REST}
SPLITS = ("gpt-2", "smollm", *PATTERNS)  # the names by which GGUF files know how a text is split


def pre_tokenizer(split: str) -> Any:
    """The split of a text into pieces that GGUF calls `split`. Raises UserError for an unknown one."""
    from tokenizers import Regex, pre_tokenizers

    if split == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == "smollm":
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    if split in PATTERNS:
        cut = pre_tokenizers.Split(Regex(PATTERNS[split]), behavior="isolated")
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise UserError(f"The file splits texts as {split!r}; known are {', '.join(SPLITS)}.")


def split_of(rust: RustTokenizer) -> str:
    """GGUF's name for the split of a tokenizer. Raises UserError when llama.cpp would not know it."""
    mine = _essence(json.loads(rust.to_str())["pre_tokenizer"])
    for name in SPLITS:
        probe = type(rust)(rust.model)
        probe.pre_tokenizer = pre_tokenizer(name)
        if _essence(json.loads(probe.to_str())["pre_tokenizer"]) == mine:
            return name
    raise UserError("llama.cpp does not know how this vocabulary splits a text; export it with --to hf.")


def _essence(part: Any) -> Any:
    """A pre-tokenizer without what changes no ids."""
    if isinstance(part, list):
        return [_essence(p) for p in part]
    if isinstance(part, dict):
        return {k: _essence(v) for k, v in part.items() if k not in ("trim_offsets", "invert")}
    return part


def from_hf(folder: Path, raw: dict[str, Any], read_json: Callable[[Path], dict[str, Any]]) -> Tokenizer:
    """The tokenizer of a Hugging Face folder whose config.json is `raw`. Raises UserError when there is none."""
    from tokenizers import Tokenizer as RustTokenizer

    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            rust = RustTokenizer.from_file(str(path))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            rust = _from_merges(folder)
        else:
            raise UserError(f"{folder} has no tokenizer.json; save the tokenizer with transformers' save_pretrained.")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The tokenizer in {folder} cannot be read: {error}") from error
    theirs, generation = read_json(folder / SETTINGS), read_json(folder / "generation_config.json")
    settings: dict[str, Any] = {
        name: value["content"] if isinstance(value := theirs.get(name), dict) else value
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
    }
    ends = [*_ids(generation.get("eos_token_id")), *_ids(raw.get("eos_token_id"))]
    if settings["eos_token"] is None and ends:
        settings["eos_token"] = rust.id_to_token(ends[0])
    settings["ends"] = sorted(set(ends))
    settings["chat_template"] = _template(folder, theirs)
    begins = rust.encode("x", add_special_tokens=True).ids[:1]
    settings["add_bos_token"] = bool(begins) and begins[0] == rust.token_to_id(settings["bos_token"] or "")
    return _finish(rust, settings)


def _ids(value: Any) -> list[int]:
    return [] if value is None else [int(v) for v in (value if isinstance(value, list) else [value])]


def _template(folder: Path, theirs: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = theirs.get("chat_template")
    if isinstance(found, list):  # several by name
        named = {t.get("name"): t.get("template") for t in found}
        return named.get("default") or next(iter(named.values()), None)
    return found


def _from_merges(folder: Path) -> RustTokenizer:
    """GPT-2's first form: vocab.json and merges.txt."""
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as RustTokenizer

    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    rust = RustTokenizer(model)
    rust.pre_tokenizer, rust.decoder = pre_tokenizer("gpt-2"), decoders.ByteLevel()
    if rust.token_to_id("<|endoftext|>") is not None:
        rust.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return rust


def _finish(rust: RustTokenizer, settings: dict[str, Any]) -> Tokenizer:
    """A home-grown vocabulary that comes back is home-grown again."""
    home = settings["chat_template"] == JINJA and all(rust.token_to_id(t) is not None for t in SPECIAL)
    return Tokenizer(rust, None if home else settings)


def from_gguf(meta: Callable[..., Any]) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata. Raises UserError for a kind or a split that is not known."""
    kind, tokens = meta("tokenizer.ggml.model"), meta("tokenizer.ggml.tokens")
    if not tokens or kind not in ("gpt2", "llama"):
        raise UserError(f"The file's vocabulary is of the kind {kind!r}; known are gpt2 and llama.")
    types = meta("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    rust = _bytes_bpe(tokens, types, meta) if kind == "gpt2" else _sentence_pieces(tokens, types, meta)

    def token(key: str) -> str | None:
        found = meta(f"tokenizer.ggml.{key}_token_id")
        return tokens[found] if found is not None and 0 <= found < len(tokens) else None

    ends = [meta(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    settings = {
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "ends": sorted({int(e) for e in ends if e is not None}),
        "chat_template": meta("tokenizer.chat_template"),
        "add_bos_token": bool(meta("tokenizer.ggml.add_bos_token", kind == "llama")),
    }
    return _finish(rust, settings)


def _bytes_bpe(tokens: list[str], types: list[int], meta: Callable[..., Any]) -> RustTokenizer:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import decoders, models, normalizers

    split = meta("tokenizer.ggml.pre", "gpt-2")
    merges = [tuple(m.split(" ", 1)) for m in meta("tokenizer.ggml.merges") or []]
    vocab = {t: i for i, t in enumerate(tokens)}
    rust = RustTokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=split == "llama-bpe"))
    if split == "qwen2":
        rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer, rust.decoder = pre_tokenizer(split), decoders.ByteLevel()
    _add_specials(rust, tokens, types)
    return rust


def _add_specials(rust: RustTokenizer, tokens: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken

    for content, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL, UNKNOWN):
            rust.add_special_tokens([AddedToken(content, special=True, normalized=False)])
        elif kind == USER:
            rust.add_tokens([AddedToken(content, special=False, normalized=False)])


def _sentence_pieces(tokens: list[str], types: list[int], meta: Callable[..., Any]) -> RustTokenizer:
    """SentencePiece's BPE: a merge for every way to put a piece together, likelier pieces first."""
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import decoders, models, normalizers

    scores = meta("tokenizer.ggml.scores")
    vocab = {t: i for i, t in enumerate(tokens)}
    merges: list[tuple[float, int, int, tuple[str, str]]] = []
    for n, piece in enumerate(tokens):
        if types[n] != NORMAL:
            continue
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        merges += [(-scores[n], vocab[a], vocab[b], (a, b)) for a, b in cuts if a in vocab and b in vocab]
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    pairs = [pair for *_, pair in sorted(merges)]
    rust = RustTokenizer(models.BPE(vocab=vocab, merges=pairs, fuse_unk=True, byte_fallback=True, unk_token=unknown))
    prepend = [normalizers.Prepend("▁")] if meta("tokenizer.ggml.add_space_prefix", True) else []
    rust.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)]
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    _add_specials(rust, tokens, types)
    return rust


def to_gguf(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """The metadata of a GGUF file with `size` rows of embeddings. Raises UserError where llama.cpp has no such split."""
    raw = json.loads(tokenizer.rust.to_str())
    if raw["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(raw["pre_tokenizer"]):
        raise UserError("Only byte-level BPE vocabularies are exported to GGUF; export this one with --to hf.")
    added = {t["id"]: t["special"] for t in raw["added_tokens"]}
    tokens = [tokenizer.rust.id_to_token(i) for i in range(size)]
    kinds = [
        UNUSED if t is None else {True: CONTROL, False: USER, None: NORMAL}[added.get(i)] for i, t in enumerate(tokens)
    ]
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split_of(tokenizer.rust),
        "tokenizer.ggml.tokens": [t if t is not None else f"[PAD{i}]" for i, t in enumerate(tokens)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": bool(tokenizer.settings.get("add_bos_token")),
        "tokenizer.ggml.bos_token_id": tokenizer.begin if tokenizer.begin is not None else tokenizer.end_of_text,
        "tokenizer.ggml.eos_token_id": tokenizer.im_end,
        "tokenizer.ggml.padding_token_id": tokenizer.pad,
        "tokenizer.chat_template": tokenizer.template if tokenizer.imported else JINJA,
    }
    return {k: v for k, v in found.items() if v is not None}


def to_hf(tokenizer: Tokenizer, folder: Path, context: int) -> list[int]:
    """tokenizer.json and tokenizer_config.json as transformers reads them. Returns the ids that end an answer."""
    tokenizer.rust.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.imported:
        settings |= {k: v for k, v in tokenizer.settings.items() if v is not None and k != "ends"}
    else:
        end, _, im_end, pad = SPECIAL
        settings |= {"bos_token": end, "eos_token": im_end, "pad_token": pad, "chat_template": JINJA}
        settings["add_bos_token"] = False
    (folder / SETTINGS).write_text(json.dumps(settings, ensure_ascii=False, indent=1), encoding="utf-8")
    return sorted(_without_pad(tokenizer))


def _without_pad(tokenizer: Tokenizer) -> Iterable[int]:
    return tokenizer.ends - {tokenizer.pad} or tokenizer.ends
