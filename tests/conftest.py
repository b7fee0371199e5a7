"""Tiny checkpoints with random weights, servers and clients: what several test folders need."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import string
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sie_core.types import Item

# Forked children of tests would print the tokenizers library's warning otherwise.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# No test may reach for the hub; the ones about the hub set their own endpoint.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Nor tell anyone that it ran: Haystack's threads would warn for minutes that they cannot.
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "false")

# fmt: off
_WORDS = [
    "the", "of", "and", "to", "in", "is", "was", "for", "on", "as", "with", "by", "that", "from",
    "at", "it", "an", "be", "are", "this", "which", "or", "has", "have", "had", "not", "but",
    "they", "he", "she", "his", "her", "its", "one", "two", "first", "new", "city", "population",
    "people", "berlin", "museum", "river", "capital", "many", "live", "how", "where", "who",
    "what", "when", "why", "born", "film", "director", "american", "british", "band", "album",
    "song", "year", "python", "language", "weather", "sunny", "banana", "yellow", "fruit",
    "programming", "tower", "tall", "eiffel", "paris", "france",
]
# fmt: on
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation + "äöüßéñ中文日本語😀🚀"


@pytest.fixture(autouse=True)
def _no_server_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a developer's own SIE_BASE_URL out of the tests."""
    monkeypatch.delenv("SIE_BASE_URL", raising=False)
    monkeypatch.delenv("SIE_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def _dead_servers_are_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as ever, but without the waits, which `tests/remote` is about."""
    from sie_core.remote.retry import RULES, Kind

    patient = RULES[Kind.CONNECTION]
    monkeypatch.setitem(RULES, Kind.CONNECTION, replace(patient, first_seconds=1e-3))


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Give the process its logging back, after a test that configures it."""
    names = (None, "sie_core", "uvicorn", "uvicorn.access")
    loggers = [logging.getLogger(name) for name in names]
    before = [(it.handlers[:], it.level, it.propagate) for it in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture(scope="session", autouse=True)
def _children_heed_ctrl_c() -> Iterator[None]:
    """Let SIGINT end what tests start, also where a shell started these in its background.

    It does so with SIGINT ignored, and children inherit that.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT cross-encoder with random weights whose configuration asks for raw logits."""
    return make_bert(
        tmp_path_factory.mktemp("checkpoints") / "tiny-bert",
        activation="torch.nn.modules.linear.Identity",
    )


@pytest.fixture(scope="session")
def tiny_bert_two_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT cross-encoder with two labels, as older rerankers have."""
    return make_bert(tmp_path_factory.mktemp("checkpoints") / "tiny-bert-two", num_labels=2)


@pytest.fixture
def make_tiny_bert(tmp_path: Path) -> Callable[..., Path]:
    """A maker of BERT cross-encoders of other shapes; it takes what `make_bert` takes."""
    return lambda **settings: make_bert(tmp_path / "made-bert", **settings)


@pytest.fixture(scope="session")
def tiny_xlmr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XLM-RoBERTa cross-encoder with random weights and no activation in its configuration."""
    return make_xlmr(tmp_path_factory.mktemp("checkpoints") / "tiny-xlmr")


@pytest.fixture(scope="session")
def tiny_jina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """jina-reranker-v2-base-multilingual with random weights, of a size that the kernels take."""
    folder = make_xlmr(
        tmp_path_factory.mktemp("checkpoints") / "tiny-jina",
        hidden_size=64,
        num_attention_heads=2,
        intermediate_size=128,
        initializer_range=0.3,
    )
    return rename_as_jina(folder, position_embedding_type="absolute")


@pytest.fixture(scope="session")
def tiny_rotary_jina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier on the body of jina-colbert-v2: the same without a table of positions."""
    from safetensors.torch import load_file, save_file

    folder = make_xlmr(
        tmp_path_factory.mktemp("checkpoints") / "tiny-rotary-jina", initializer_range=0.3
    )
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["roberta.embeddings.position_embeddings.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    return rename_as_jina(folder, position_embedding_type="rotary", rotary_emb_base=20000.0)


@pytest.fixture(scope="session")
def tiny_modernbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ModernBERT cross-encoder with random weights, most layers of which see 8 tokens around."""
    return make_modernbert(tmp_path_factory.mktemp("checkpoints") / "tiny-modernbert")


@pytest.fixture
def make_tiny_modernbert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of ModernBERT cross-encoders of other shapes; it takes `ModernBertConfig`'s names."""
    return lambda **settings: make_modernbert(tmp_path_factory.mktemp("modernbert"), **settings)


@pytest.fixture
def make_sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of sentence encoders; it takes what `write_sentence_encoder` takes."""
    return lambda **settings: write_sentence_encoder(
        tmp_path_factory.mktemp("sentence-encoder"), **settings
    )


@pytest.fixture(scope="session")
def make_colbert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of late-interaction models; it takes what `write_colbert` takes."""
    return lambda **settings: write_colbert(tmp_path_factory.mktemp("colbert"), **settings)


@pytest.fixture(scope="session")
def tiny_colbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ColBERT with random weights in the layout of ColBERT's own code."""
    return write_colbert(tmp_path_factory.mktemp("checkpoints") / "tiny-colbert")


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma with random weights in the files of BAAI/bge-reranker-v2-gemma, in several shards."""
    return make_gemma(tmp_path_factory.mktemp("checkpoints") / "tiny-gemma")


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with random weights in the files of mixedbread-ai/mxbai-rerank-base-v2."""
    return make_qwen(tmp_path_factory.mktemp("checkpoints") / "tiny-qwen2", "qwen2")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 with random weights in the files of Qwen/Qwen3-Reranker-0.6B."""
    return make_qwen(tmp_path_factory.mktemp("checkpoints") / "tiny-qwen3", "qwen3")


@pytest.fixture(scope="session")
def short_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 reranker that reads no more than 256 tokens."""
    folder = tmp_path_factory.mktemp("checkpoints") / "short-qwen3"
    return make_qwen(folder, "qwen3", max_position_embeddings=256)


@pytest.fixture
def make_tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of Gemmas of other shapes; it takes `GemmaConfig`'s names."""
    return lambda **settings: make_gemma(tmp_path_factory.mktemp("gemma"), **settings)


@pytest.fixture
def make_tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of Qwens of other shapes; it takes a `model_type` and its configuration's names."""
    return lambda kind, **settings: make_qwen(tmp_path_factory.mktemp(kind), kind, **settings)


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT sentence encoder with random weights that puts `query: ` before queries."""
    return write_sentence_encoder(
        tmp_path_factory.mktemp("checkpoints") / "tiny-embedder",
        general={"prompts": {"query": "query: ", "document": ""}},
    )


@pytest.fixture(scope="session")
def serve_command() -> Any:
    """`running_command`."""
    return running_command


@pytest.fixture(scope="session")
def served_adapter(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of random weights for `tiny_bert`."""
    return write_adapter(tmp_path_factory.mktemp("adapters") / "random", tiny_bert)


@pytest.fixture(scope="session")
def sie_server(tiny_bert: Path) -> Iterator[str]:
    """The address of `sie serve`, in a process of its own, which scores as `test/tiny-bert`."""
    with running_command(f"test/tiny-bert={tiny_bert}") as (url, _):
        yield url


@pytest.fixture(scope="session")
def encoding_server(tiny_bert: Path, tiny_embedder: Path) -> Iterator[str]:
    """The same, encoding as `test/tiny-embedder`, in float32: rounding is not its users' affair."""
    models = (f"test/tiny-embedder={tiny_embedder}", f"test/tiny-bert={tiny_bert}")
    with running_command(*models, "--mode", "exact") as (url, _):
        yield url


@contextlib.contextmanager
def running_command(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `sie serve` until the end of the block; give its address, when it is ready, and it."""
    command = [sys.executable, "-m", "sie_core.cli", "serve", "--port", "0"]
    with subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("sie serves at "):
                break
        else:
            pytest.fail("".join(lines))
        url = lines[-1].split()[-1]
        # Its log is read to the end, or the pipe would be full some time.
        reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            _wait_until_ready(url)
            yield url, process
        finally:
            process.terminate()
            process.wait(_SERVER_PATIENCE_SECONDS)
            reader.join(_SERVER_PATIENCE_SECONDS)


_SERVER_PATIENCE_SECONDS = 60


def _wait_until_ready(url: str) -> None:
    """Wait until a server has loaded its models."""
    for _ in range(10 * _SERVER_PATIENCE_SECONDS):
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{url}/readyz"):  # noqa: S310  it is ours
            return
        threading.Event().wait(0.1)
    pytest.fail(f"{url} was not ready in time")


@pytest.fixture(scope="session")
def python312() -> Path:
    """Python 3.12, which SIE's own packages need, or a skip that says that there is none.

    SIE_TEST_PYTHON312 names one; else it is looked for on PATH, then in pyenv.
    """
    named = os.environ.get("SIE_TEST_PYTHON312")
    if named:
        return Path(named)
    found = shutil.which("python3.12")
    candidates = [Path(found)] if found else []
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(root.glob("versions/3.12*/bin/python"), reverse=True)
    for python in candidates:
        asked = [str(python), "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        if answer.stdout.strip() == "3.12":  # a pyenv shim may answer for another version
            return python
    return pytest.skip("this needs Python 3.12: set SIE_TEST_PYTHON312 to one")


@pytest.fixture
def released() -> Iterator[None]:
    """Begin and end with no model loaded in this process."""
    from sie_core.local import release

    release()
    yield
    release()


def make_bert(
    folder: Path,
    *,
    num_labels: int = 1,
    activation: str | None = None,
    num_hidden_layers: int = 2,
) -> Path:
    """Write a tiny BERT classifier and its WordPiece tokenizer to `folder`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS, *_CHARACTERS]
    vocab += [f"##{character}" for character in _CHARACTERS]
    tokens = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=num_labels,
        initializer_range=0.5,  # large, so that random scores differ clearly
    )
    if activation is not None:
        config.sentence_transformers = {"activation_fn": activation}
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer(vocab=tokens, model_max_length=128).save_pretrained(folder)
    return folder


def write_adapter(folder: Path, base: Path) -> Path:
    """Write an adapter of random weights for a BERT cross-encoder's queries and values."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(3)
    rank, tensors = 4, {}
    for key, weight in load_file(base / "model.safetensors").items():
        if key.endswith(("query.weight", "value.weight")):
            name = f"base_model.model.{key.removesuffix('.weight')}"
            for letter, shape in (("A", (rank, weight.shape[1])), ("B", (weight.shape[0], rank))):
                share = 0.3 * torch.randn(shape, generator=generator)
                tensors[f"{name}.lora_{letter}.weight"] = share
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "test/tiny-bert-ce",
        "r": rank,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["query", "value"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def make_xlmr(folder: Path, *, num_labels: int = 1, **settings: Any) -> Path:
    """Write a tiny XLM-RoBERTa classifier and its Unigram tokenizer to `folder`.

    Args:
        folder: Where to.
        num_labels: Of the classifier.
        settings: Of its configuration, in place of those here.
    """
    import torch
    from transformers import (
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
        XLMRobertaTokenizer,
    )

    pieces = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces += [f"▁{word}" for word in _WORDS] + ["▁", *_CHARACTERS]
    vocab = [(piece, 0.0 if i < 4 else -float(i)) for i, piece in enumerate(dict.fromkeys(pieces))]
    vocab.append(("<mask>", 0.0))
    torch.manual_seed(11)
    config = {
        "vocab_size": len(vocab),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
        "type_vocab_size": 1,
        "num_labels": num_labels,
        "initializer_range": 0.5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**(config | settings)))
    model.save_pretrained(folder)
    XLMRobertaTokenizer(vocab=vocab, model_max_length=128).save_pretrained(folder)
    return folder


_JINA_NAMES = {
    "embeddings.LayerNorm": "emb_ln",
    "attention.output.dense": "mixer.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "norm2",
    "encoder.layer.": "encoder.layers.",
}


def _jina_name(name: str) -> str:
    return functools.reduce(lambda name, pair: name.replace(*pair), _JINA_NAMES.items(), name)


def rename_as_jina(folder: Path, **config: Any) -> Path:
    """Turn an XLM-RoBERTa's checkpoint into one as Jina's repositories have it.

    Their config.json names code that must not run; here it is code that cannot.

    Args:
        folder: The checkpoint.
        config: What else is in its config.json.
    """
    import torch
    from safetensors.torch import load_file, save_file

    tensors: dict[str, torch.Tensor] = {}
    stored = load_file(folder / "model.safetensors")
    for name, tensor in stored.items():
        if ".query." in name:
            parts = [stored[name.replace("query", part)] for part in ("query", "key", "value")]
            fused = name.replace("attention.self.query", "mixer.Wqkv")
            tensors[_jina_name(fused)] = torch.cat(parts)
        elif ".key." not in name and ".value." not in name:
            tensors[_jina_name(name)] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kind = "XLMRobertaForSequenceClassification"
    config |= {
        "auto_map": {
            "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModelForSequenceClassification": f"modeling_xlm_roberta.{kind}",
        },
        "use_flash_attn": True,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    for name in ("configuration_xlm_roberta.py", "modeling_xlm_roberta.py"):
        (folder / name).write_text("raise SystemExit('code of a repository was run')\n")
    return folder


def make_modernbert(folder: Path, **settings: Any) -> Path:
    """Write a tiny ModernBERT classifier and a byte-level tokenizer to `folder`.

    Args:
        folder: Where to.
        settings: Of its configuration, in place of those here.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        ModernBertConfig,
        ModernBertForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    vocab = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = {token: i for i, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = {f"{token[1:4].lower()}_token": token for token in special} | {"mask_token": "[MASK]"}
    del names["mas_token"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    ).save_pretrained(folder)
    torch.manual_seed(13)
    config = {
        "vocab_size": len(vocab),
        "hidden_size": 32,
        "num_hidden_layers": 4,  # global, two with a window, global
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "local_attention": 16,
        "num_labels": 1,
        "classifier_pooling": "mean",
        "initializer_range": 0.3,  # large, so that random scores differ clearly
        "cls_token_id": ids["[CLS]"],
        "bos_token_id": ids["[CLS]"],
        "sep_token_id": ids["[SEP]"],
        "eos_token_id": ids["[SEP]"],
        "pad_token_id": ids["[PAD]"],
    }
    model = ModernBertForSequenceClassification(ModernBertConfig(**(config | settings)))
    model.save_pretrained(folder)
    return folder


def make_gemma(folder: Path, **settings: Any) -> Path:
    """Write a tiny Gemma and its tokenizer to `folder`.

    Args:
        folder: Where to.
        settings: Of its configuration, in place of those here.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaConfig, GemmaForCausalLM, GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))  # noqa: S106  no secret
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    trained.train_from_iterator([*_CORPUS, *["Yes"] * 200], trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = GemmaTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]]
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(17)
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,  # more than hidden_size / num_attention_heads, as in the real one
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # large, so that random scores differ clearly
        "dtype": "float32",
    }
    network = GemmaForCausalLM(GemmaConfig(**(config | settings)))
    _randomise_norms(network)
    network.save_pretrained(folder, max_shard_size="60KB")
    _spell_as_before(folder, hidden_act="gelu", rope_theta=10000.0)
    return folder


def make_qwen(folder: Path, model_type: str, **settings: Any) -> Path:
    """Write a tiny Qwen2 or Qwen3 and its tokenizer to `folder`.

    Args:
        folder: Where to.
        model_type: `qwen2` or `qwen3`.
        settings: Of its configuration, in place of those here.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2Tokenizer, Qwen3Config

    empty = Qwen2Tokenizer()  # cuts texts up as the real ones do
    trained = Tokenizer(models.BPE())
    trained.normalizer = empty.backend_tokenizer.normalizer
    trained.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([*_CORPUS, *["yes", "no"] * 200], trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=131072,
    )
    if model_type == "qwen3":
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(19)
    config = {
        "vocab_size": len(tokenizer) + 3,  # the real ones have rows for no token, too
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # large, so that random scores differ clearly
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if model_type == "qwen3":
        config["head_dim"] = 16  # more than hidden_size / num_attention_heads, as in the real one
    kind = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}[model_type]
    theta = {"rope_type": "default", "rope_theta": 1000000.0}
    network = AutoModelForCausalLM.from_config(kind(**(config | settings), rope_parameters=theta))
    _randomise_norms(network)
    network.save_pretrained(folder)
    _spell_as_before(folder, rope_theta=1000000.0, sliding_window=4096)
    return folder


_CORPUS = [
    *(" ".join(_WORDS[i:] + _WORDS[:i]) for i in range(20)),
    "Given a query A and a passage B, determine whether the passage contains an answer",
    "You are a search relevance expert who evaluates how well documents match search queries.",
    "Judge whether the Document meets the requirements based on the Query and the Instruct",
    "<Instruct>: Given a web search query, retrieve relevant passages\n<Query>: a\n<Document>: b "
    * 9,
    f"{_CHARACTERS} query: a\ndocument: b A: B: Relevance:",
]
"""What the tokenizers of tiny language models are trained on."""


def _randomise_norms(network: Any) -> None:
    """Give norms and biases, which begin as ones and zeros, numbers that count."""
    import torch

    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, parameter.mean().item(), 0.2)


def _spell_as_before(folder: Path, **settings: Any) -> None:
    """Rewrite config.json as transformers 4 wrote it, which is what the real models have."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["rope_parameters"]
    config.pop("layer_types", None)
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config | settings, indent=2), encoding="utf-8")


def write_body(folder: Path, model_type: str = "bert", *, tokens: Sequence[str] = ()) -> None:
    """Write a body by itself and its tokenizer to `folder`, as `AutoModel` saves it.

    Args:
        folder: Where to.
        model_type: `bert`, `xlm-roberta` or `modernbert`; the first two fit the compiled kernels.
        tokens: Added to the vocabulary.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    make = {"bert": make_bert, "xlm-roberta": make_xlmr, "modernbert": make_modernbert}[model_type]
    config = AutoConfig.from_pretrained(make(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)
    config.vocab_size = len(tokenizer)
    config.initializer_range = 0.2
    config.id2label = {i: f"LABEL_{i}" for i in range(3)}  # means nothing for a body
    if model_type != "modernbert":
        config.update({"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96})
    torch.manual_seed(17)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # all zero otherwise
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)


def write_sentence_encoder(
    folder: Path,
    *,
    model_type: str = "bert",
    pooling: str | None = "mean",
    dense: tuple[int, str] | None = None,
    is_normalized: bool = True,
    sentence: dict[str, Any] | None = None,
    general: dict[str, Any] | None = None,
) -> Path:
    """Write a sentence encoder with the files of sentence-transformers to `folder`.

    Args:
        folder: Where to.
        model_type: The body's.
        pooling: The Pooling's mode, in the older spelling; None for no modules at all.
        dense: Width and activation of a Dense behind it.
        is_normalized: Whether a Normalize is last.
        sentence: sentence_bert_config.json.
        general: config_sentence_transformers.json.
    """
    write_body(folder, model_type)
    if pooling is None:
        return folder
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else [])]
    kinds += ["Normalize"] if is_normalized else []
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    for path in paths:
        (folder / path).mkdir(exist_ok=True)
    write_json(folder / "modules.json", _module_list(kinds, paths))
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    modes |= {"mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "lasttoken": "lasttoken"}
    modes |= {"weightedmean": "weightedmean_tokens"}
    flags = {f"pooling_mode_{key}": mode == pooling for mode, key in modes.items()}
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width} | flags)
    if dense:
        write_dense(folder / "2_Dense", width, dense[0], activation=dense[1], has_bias=True)
    for name, content in (
        ("sentence_bert_config.json", sentence),
        ("config_sentence_transformers.json", general),
    ):
        if content is not None:
            write_json(folder / name, content)
    return folder


def write_colbert(
    folder: Path,
    *,
    layout: str = "colbert",
    model_type: str = "bert",
    sees_masks: bool = False,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write a late-interaction model to `folder`.

    Args:
        folder: Where to.
        layout: `colbert` (ColBERT's own code) or `pylate`.
        model_type: The body's.
        sees_masks: Whether a query's tokens see the masks behind them.
        settings: More of artifact.metadata or config_sentence_transformers.json.
    """
    import torch
    from safetensors.torch import load_file, save_file

    is_own = layout == "colbert"
    write_body(
        folder, model_type, tokens=["[unused0]", "[unused1]"] if is_own else ["[Q] ", "[D] "]
    )
    config = json.loads((folder / "config.json").read_text())
    if is_own:
        weights = folder / "model.safetensors"
        tensors = {f"bert.{name}": tensor for name, tensor in load_file(weights).items()}
        torch.manual_seed(19)
        tensors["linear.weight"] = torch.randn(16, config["hidden_size"])
        save_file(tensors, weights, metadata={"format": "pt"})
        write_json(folder / "config.json", config | {"architectures": ["HF_ColBERT"]})
        said = {
            "query_token_id": "[unused0]",
            "doc_token_id": "[unused1]",
            "query_maxlen": 16,
            "doc_maxlen": 60,
            "dim": 16,
            "mask_punctuation": True,
            "attend_to_mask_tokens": sees_masks,
            "similarity": "cosine",
        }
        write_json(folder / "artifact.metadata", said | (settings or {}))
        return folder
    kinds, paths = ["Transformer", "Dense"], ["", "1_Dense"]
    modules = _module_list(kinds, paths)
    modules[1]["type"] = "pylate.models.Dense.Dense"
    write_json(folder / "modules.json", modules)
    identity = "torch.nn.modules.linear.Identity"
    (folder / "1_Dense").mkdir()
    write_dense(folder / "1_Dense", config["hidden_size"], 16, activation=identity, has_bias=False)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 59, "do_lower_case": False})
    said = {
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 16,
        "document_length": 60,
        "attend_to_expansion_tokens": sees_masks,
        "do_query_expansion": True,
        "skiplist_words": list(string.punctuation),
        "prompts": {},
        "default_prompt_name": None,
    }
    write_json(folder / "config_sentence_transformers.json", said | (settings or {}))
    return folder


def write_dense(
    folder: Path, num_in: int, num_out: int, *, activation: str, has_bias: bool
) -> None:
    """Write a Dense with random weights to `folder`."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(23)
    tensors = {"linear.weight": torch.randn(num_out, num_in) / 8}
    if has_bias:
        tensors["linear.bias"] = torch.randn(num_out)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"in_features": num_in, "out_features": num_out, "bias": has_bias}
    write_json(folder / "config.json", config | {"activation_function": activation})


def write_json(path: Path, content: Any) -> None:
    """Write a settings file."""
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _module_list(kinds: Sequence[str], paths: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]


# --- clients for the tests of the components, written by hand ------------------------------------


@dataclass
class OverlapClient:
    """Score a text by how many of the query's words it has, and remember what was asked."""

    queries: list[str] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)
    arguments: list[dict[str, Any]] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    error: BaseException | None = None

    def score(
        self, model: str, query: Item, items: Sequence[Item], **arguments: Any
    ) -> dict[str, Any]:
        """Answer as a real client does, in reverse order: results must be matched by id."""
        self.queries.append(query["text"])
        self.texts.append([item["text"] for item in items])
        self.arguments.append(arguments)
        self.threads.append(threading.get_ident())
        if self.error is not None:
            raise self.error
        words = set(query["text"].lower().split())
        scores = [
            {"item_id": item["id"], "score": float(len(words & set(item["text"].lower().split())))}
            for item in reversed(items)
        ]
        reply = {"model": model, "query_id": None, "scores": scores, "usage": {"input_tokens": 7}}
        asked = (arguments.get("options") or {}).get("score_space")
        return reply if asked is None else reply | {"score_space": asked}


class AsyncOverlapClient(OverlapClient):
    """The same for asyncio."""

    async def score(  # type: ignore[override]  # awaited, or else the same
        self, model: str, query: Item, items: Sequence[Item], **arguments: Any
    ) -> dict[str, Any]:
        """Answer without leaving the event loop's thread."""
        return super().score(model, query, items, **arguments)


NUM_WORD_DIMS = 16


@dataclass
class WordsClient:
    """Encode a text by which words it has, and remember what was asked.

    The last dimension tells queries from documents.
    """

    texts: list[list[str]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    arguments: list[dict[str, Any]] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    error: BaseException | None = None

    def encode(self, model: str, items: Sequence[Item], **arguments: Any) -> list[dict[str, Any]]:
        """Answer as a real client does."""
        self.texts.append([item["text"] for item in items])
        self.models.append(model)
        self.arguments.append(arguments)
        self.threads.append(threading.get_ident())
        if self.error is not None:
            raise self.error
        return [{"dense": self.vector(item["text"], **arguments)} for item in items]

    @staticmethod
    def vector(text: str, *, is_query: bool = False, **_: Any) -> Any:
        """Return the vector of a text."""
        import numpy as np

        dense = np.zeros(NUM_WORD_DIMS + 1, np.float32)
        for word in text.lower().split():
            dense[zlib.crc32(word.encode()) % NUM_WORD_DIMS] += 1
        dense[-1] = 0.5 if is_query else 0.25
        return dense


class AsyncWordsClient(WordsClient):
    """The same for asyncio."""

    async def encode(  # type: ignore[override]  # awaited, or else the same
        self, model: str, items: Sequence[Item], **arguments: Any
    ) -> list[dict[str, Any]]:
        """Answer without leaving the event loop's thread."""
        return super().encode(model, items, **arguments)


class SIEClient:
    """A client as in SIE's own package: it takes these keywords and no others."""

    def __init__(self) -> None:
        self.inner = OverlapClient()
        self.words = WordsClient()

    def encode(
        self,
        model: str,
        items: list[Item],
        *,
        output_types: list[str] | None = None,
        instruction: str | None = None,
        output_dtype: str | None = None,
        is_query: bool | None = None,
        options: dict[str, Any] | None = None,
        gpu: str | None = None,
        wait_for_capacity: bool = True,
        provision_timeout_s: float | None = None,
        max_oom_retries: int = 3,
    ) -> list[dict[str, Any]]:
        """Answer with results that say more than ours do."""
        del output_types, instruction, output_dtype, gpu
        del wait_for_capacity, provision_timeout_s, max_oom_retries
        found = self.words.encode(model, items, is_query=bool(is_query), options=options)
        return [result | {"timing": {"total_ms": 1.0}} for result in found]

    def score(
        self,
        model: str,
        query: Item,
        items: list[Item],
        *,
        instruction: str | None = None,
        options: dict[str, Any] | None = None,
        gpu: str | None = None,
        wait_for_capacity: bool = True,
        provision_timeout_s: float | None = None,
        max_oom_retries: int = 3,
    ) -> dict[str, Any]:
        """Answer with a dictionary that says less, and more, than ours do."""
        del wait_for_capacity, provision_timeout_s, max_oom_retries
        given = {"instruction": instruction, "options": options, "gpu": gpu}
        reply = self.inner.score(model, query, items, **given)
        return {"model": model, "scores": reply["scores"], "request": {"id": "r-1"}}


class SIEAsyncClient:
    """The same for asyncio."""

    def __init__(self) -> None:
        self.sync = SIEClient()
        self.inner = self.sync.inner
        self.words = self.sync.words

    async def encode(self, model: str, items: list[Item], **arguments: Any) -> list[dict[str, Any]]:
        """Answer without leaving the event loop's thread."""
        return self.sync.encode(model, items, **arguments)

    async def score(
        self,
        model: str,
        query: Item,
        items: list[Item],
        *,
        instruction: str | None = None,
        options: dict[str, Any] | None = None,
        gpu: str | None = None,
        wait_for_capacity: bool = True,
        provision_timeout_s: float | None = None,
        max_oom_retries: int = 3,
    ) -> dict[str, Any]:
        """Answer without leaving the event loop's thread."""
        del wait_for_capacity, provision_timeout_s, max_oom_retries
        return self.sync.score(
            model, query, items, instruction=instruction, options=options, gpu=gpu
        )


class Guard(ThreadingHTTPServer):
    """A server that refuses every key, repeats it in the refusal, and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _GuardHandler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.keys: list[str | None] = []


class _GuardHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    server: Guard

    def do_POST(self) -> None:
        """Refuse."""
        self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers.get("Authorization")
        self.server.keys.append(key)
        detail = {"code": "UNAUTHORIZED", "message": f"nobody knows {key}"}
        body = json.dumps({"detail": detail}).encode()
        self.send_response(HTTPStatus.UNAUTHORIZED)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Log nothing."""


@pytest.fixture
def client() -> OverlapClient:
    """A client for sync calls."""
    return OverlapClient()


@pytest.fixture
def async_client() -> AsyncOverlapClient:
    """A client for async calls."""
    return AsyncOverlapClient()


@pytest.fixture
def encoder() -> WordsClient:
    """A client for sync calls that encodes."""
    return WordsClient()


@pytest.fixture
def async_encoder() -> AsyncWordsClient:
    """A client for async calls that encodes."""
    return AsyncWordsClient()


@pytest.fixture
def official_client() -> SIEClient:
    """A client of SIE's own package, for sync calls."""
    return SIEClient()


@pytest.fixture
def official_async_client() -> SIEAsyncClient:
    """A client of SIE's own package, for async calls."""
    return SIEAsyncClient()


@pytest.fixture
def guard() -> Iterator[Guard]:
    """A server that lets nobody in."""
    server = Guard()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


# --- what is traced and counted -------------------------------------------------------------------


class Telemetry:
    """The spans and metrics of a test, by OpenTelemetry's SDK."""

    def __init__(self, *, max_attributes: int | None = None) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        limits = SpanLimits(max_span_attributes=max_attributes)
        self.tracer_provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self._reader], shutdown_on_exit=False)

    def spans(self, kind: str | None = None) -> list[Any]:
        """Return the spans that have ended, or those of one OpenInference kind."""
        found = list(self._exporter.get_finished_spans())
        if kind is None:
            return found
        return [span for span in found if span.attributes.get("openinference.span.kind") == kind]

    def span(self, kind: str) -> Any:
        """Return the only span of a kind."""
        [span] = self.spans(kind)
        return span

    def points(self, name: str) -> list[Any]:
        """Return a metric's data points; none where nothing was recorded."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in ([] if data is None else data.resource_metrics)
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def close(self) -> None:
        """Stop collecting."""
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """What is traced and counted during the test."""
    from sie_core.telemetry import use_providers

    collected = Telemetry()
    use_providers(
        tracer_provider=collected.tracer_provider, meter_provider=collected.meter_provider
    )
    yield collected
    use_providers()
    collected.close()
