"""The network that is trained: transformers' own, with PEFT's adapter on it unless all is trained.

The engine's forward passes are for scoring alone. The network here is loaded from the same folder,
computes the same (a test holds that), and what it saves is what the engine loads.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sie_core.errors import MissingDependencyError, UnsupportedModelError
from sie_core.models.checkpoint import CONFIG
from sie_core.models.recognition import recognise
from sie_core.models.sources import ModelFiles
from sie_core.training.settings import TrainingSettings

try:
    import torch
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model
    from torch import nn
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[local,training]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc

from sie_core.local.device import choose_device, fast_dtype
from sie_core.local.tokenization import PairTokenizer
from sie_core.training.batches import Batcher

TARGETS = (
    r".*\.layers?\.\d+\.(.*\.)?(query|value|dense|Wqkv|Wo|Wi)"  # the body's layers
    r"|(.*\.)?(pooler|head)\.dense"  # what stands before the classifier
)
"""The layers that an adapter adapts: all linear ones but keys, and what the engine can adapt."""

HEAD = "classifier"
"""Small, and trained whole."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
)


@dataclass(slots=True, kw_only=True)
class Network:
    """A cross-encoder in training.

    Attributes:
        files: Where it came from.
        model: Transformers' or PEFT's.
        batcher: Makes its inputs.
        device: Where it is.
        uses_bfloat16: Whether products are computed in it.
    """

    files: ModelFiles
    model: Any
    batcher: Batcher
    device: torch.device
    uses_bfloat16: bool

    @classmethod
    def load(cls, files: ModelFiles, settings: TrainingSettings) -> Network:
        """Load a model's folder for training.

        Raises:
            UnsupportedModelError: It is no cross-encoder, or one whose code is its repository's.
            InvalidRequestError: There is no such device.
        """
        _check_trainable(files)
        device = choose_device(settings.device)
        transformers_logging.disable_progress_bar()
        torch.manual_seed(settings.seed)  # an adapter begins with random numbers
        model = AutoModelForSequenceClassification.from_pretrained(
            files.folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            # On the CPU the fused attention's backward pass takes longer than plain products.
            attn_implementation="eager" if device.type == "cpu" else "sdpa",
        )
        model.config.use_cache = False
        max_length = min(settings.max_length, _longest(model.config))
        batcher = Batcher(
            pair_tokenizer=PairTokenizer.load(files.folder),
            max_length=max_length,
            documents_per_query=settings.documents_per_query,
            has_types=getattr(model.config, "type_vocab_size", 0) > 1,
            pad_token_id=model.config.pad_token_id or 0,
        )
        uses_bfloat16 = settings.bfloat16
        if uses_bfloat16 is None:
            found = fast_dtype(device).dtype
            # Half precision on GPUs older than Ampere is float16, which needs scaled losses.
            uses_bfloat16 = found is torch.bfloat16 or (
                device.type == "cuda" and torch.cuda.is_bf16_supported()
            )
        made = model if settings.full else _adapted(model, settings)
        return cls(
            files=files,
            model=made.to(device),
            batcher=batcher,
            device=device,
            uses_bfloat16=uses_bfloat16,
        )

    @property
    def num_trained(self) -> int:
        """Count the numbers that are trained."""
        return sum(one.numel() for one in self.model.parameters() if one.requires_grad)

    def save(self, folder: Path, *, merged: Path | None = None) -> None:
        """Write the adapter, or all weights, as the engine loads them.

        Args:
            folder: Where to.
            merged: Also write a full model with the adapter merged in here.
        """
        if isinstance(self.model, PeftModel):
            self._save_adapter(folder)
            if merged is not None:
                whole: Any = self.model.merge_and_unload()
                self._save_whole(whole, merged)
        else:
            self._save_whole(self.model, folder)

    def _save_adapter(self, folder: Path) -> None:
        self.model.peft_config["default"].base_model_name_or_path = self.files.name
        # Otherwise PEFT asks the hub whether the base's vocabulary was changed.
        self.model.save_pretrained(folder, save_embedding_layers=False)

    def _save_whole(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        for name in _TOKENIZER_FILES:
            if (self.files.folder / name).is_file():
                shutil.copyfile(self.files.folder / name, folder / name)
        _carry_activation(self.files.folder, folder)


def score(
    model: nn.Module,
    chunks: Sequence[Mapping[str, torch.Tensor]],
    places: torch.Tensor,
    shape: torch.Size,
) -> torch.Tensor:
    """Return the raw scores [queries, documents], zero where there is no document."""
    found = torch.cat([to_scores(model(**chunk).logits) for chunk in chunks])
    scores = found.new_zeros(shape.numel()).index_copy(0, places, found)
    return scores.view(shape)


def to_scores(logits: torch.Tensor) -> torch.Tensor:
    """Return one raw score per pair, as the engine does, in float32."""
    logits = logits.float()
    return logits[:, 1] - logits[:, 0] if logits.shape[1] > 1 else logits[:, 0]


def _adapted(model: Any, settings: TrainingSettings) -> Any:
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=TARGETS,
        modules_to_save=[HEAD],
    )
    with warnings.catch_warnings():
        # PEFT asks for an attribute that transformers is about to rename.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(model, config)


def _check_trainable(files: ModelFiles) -> None:
    kind = recognise(files.folder)
    config = json.loads((files.folder / CONFIG).read_text(encoding="utf-8"))
    if kind != "cross-encoder" or "auto_map" in config:
        what = f"a {kind} model" if kind != "cross-encoder" else "made by its repository's own code"
        msg = (
            f"{files.name} is {what}, which cannot be fine-tuned here; what can are cross-encoders "
            "made of BERT, RoBERTa, XLM-RoBERTa and ModernBERT"
        )
        raise UnsupportedModelError(msg)


def _longest(config: Any) -> int:
    longest = int(config.max_position_embeddings)
    # RoBERTa counts positions from behind its padding's id.
    is_roberta = config.model_type in {"roberta", "xlm-roberta"}
    return longest - config.pad_token_id - 1 if is_roberta else longest


def _carry_activation(base: Path, folder: Path) -> None:
    """Keep what the base's configuration says of its scores, where transformers dropped it."""
    known = json.loads((base / CONFIG).read_text(encoding="utf-8"))
    path = folder / CONFIG
    written = json.loads(path.read_text(encoding="utf-8"))
    names = ("sentence_transformers", "sbert_ce_default_activation_function")
    kept = {name: known[name] for name in names if name in known and name not in written}
    path.write_text(json.dumps(written | kept, indent=2) + "\n", encoding="utf-8")
