"""Cross-encoders that classify a pair: BERT, RoBERTa and XLM-RoBERTa with a classification head."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from sie_core.errors import ModelLoadError, UnsupportedModelError
from sie_core.local.packing import pad
from sie_core.local.tokenization import Pair, PairTokenizer, read_tokenizer_config
from sie_core.models.sources import ModelFiles
from sie_core.types import ScoreSpace

_NUM_TWO_LABEL = 2
_UNSET_MODEL_MAX_LENGTH = 10**9
"""transformers writes a huge number where a tokenizer names no maximum."""

_ACTIVATIONS: dict[str, ScoreSpace] = {
    "torch.nn.modules.linear.Identity": "raw",
    "torch.nn.Identity": "raw",
    "torch.nn.modules.activation.Sigmoid": "probability",
    "torch.nn.Sigmoid": "probability",
}


class PairEncoder:
    """One loaded cross-encoder: pairs of token ids in, one float32 logit each out.

    The body runs in `dtype`; everything from the first token's hidden state on runs in float32, so
    that half precision makes no ties.

    Attributes:
        tokenizer: Makes the pairs.
        max_length: The most tokens of a pair that the model reads.
        score_space: What the model's own configuration says its scores are.
    """

    def __init__(
        self, model: PreTrainedModel, folder: Path, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        config = model.config
        self.tokenizer = PairTokenizer.load(folder)
        self.max_length = read_max_length(config, folder)
        self.score_space = read_score_space(config, folder)
        self._num_labels = check_num_labels(config)
        self._pad_token_id = config.pad_token_id or 0
        self._has_type_ids = getattr(config, "type_vocab_size", 1) > 1
        self._device = device
        self._body, self._head = _split(model)
        self._body.to(device=device, dtype=dtype).eval()
        self._head.to(device=device, dtype=torch.float32).eval()

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        *,
        device: torch.device,
        dtype: torch.dtype,
        allow_pickle: bool = False,
    ) -> PairEncoder:
        """Load weights and tokenizer from a model folder. No code in it is ever run.

        Raises:
            UnsupportedModelError: Another architecture than those of this module.
            ModelLoadError: Files are missing or broken, or weights do not fit the architecture.
        """
        config = _read_config(files)
        check_num_labels(config)
        try:
            with _no_progress_bar():
                model, report = AutoModelForSequenceClassification.from_pretrained(
                    files.folder,
                    config=config,
                    dtype="auto",
                    use_safetensors=None if allow_pickle else True,
                    trust_remote_code=False,
                    local_files_only=True,
                    output_loading_info=True,
                )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as exc:
            msg = f"the weights of {files.name} in {files.folder} could not be loaded: {exc}"
            raise ModelLoadError(msg) from exc
        missing = sorted(report["missing_keys"])
        if missing:
            msg = (
                f"the weights of {files.name} in {files.folder} lack {len(missing)} tensors of a "
                f"trained classifier, such as {missing[0]!r}: it is not a reranker"
            )
            raise ModelLoadError(msg)
        return cls(model, files.folder, device=device, dtype=dtype)

    def logits(self, pairs: Sequence[Pair]) -> list[float]:
        """Run one batch and return one raw score per pair."""
        batch = pad(pairs, pad_token_id=self._pad_token_id)
        inputs = {
            "input_ids": batch.input_ids.to(self._device, non_blocking=True),
            "attention_mask": batch.attention_mask.to(self._device, non_blocking=True),
        }
        if self._has_type_ids:
            inputs["token_type_ids"] = batch.token_type_ids.to(self._device, non_blocking=True)
        with torch.inference_mode():
            hidden = self._body(**inputs).last_hidden_state
            logits = self._head(hidden[:, :1].float())
            if self._num_labels == _NUM_TWO_LABEL:
                # The difference of two logits is the logit of their softmax.
                logits = logits[:, 1] - logits[:, 0]
        scores: list[float] = logits.reshape(-1).tolist()
        return scores


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar for a load that takes a moment."""
    was_enabled = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            enable_progress_bar()


def to_score_space(logits: Sequence[float], space: ScoreSpace) -> list[float]:
    """Turn logits into the scores asked for; the sigmoid is taken in double precision."""
    if space == "raw":
        return list(logits)
    return torch.sigmoid(torch.tensor(logits, dtype=torch.float64)).tolist()


def _split_bert(model: Any) -> tuple[nn.Module, nn.Module]:
    body, pooler = model.bert, model.bert.pooler
    body.pooler = None
    return body, nn.Sequential(pooler, model.classifier)


def _split_roberta(model: Any) -> tuple[nn.Module, nn.Module]:
    return model.roberta, model.classifier


_HEADS: dict[str, Callable[[Any], tuple[nn.Module, nn.Module]]] = {
    "bert": _split_bert,
    "roberta": _split_roberta,
    "xlm-roberta": _split_roberta,
}
"""How to part each model type into its body and its head, which takes [pairs, 1, hidden]."""


def _split(model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    return _HEADS[model.config.model_type](model)


def _read_config(files: ModelFiles) -> Any:
    path = files.folder / "config.json"
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        if model_type not in _HEADS:  # asked first: transformers knows no types but its own
            msg = (
                f"{files.name} has the architecture {model_type!r}; this engine scores with "
                f"sequence classifiers of the types {', '.join(sorted(_HEADS))}"
            )
            raise UnsupportedModelError(msg)
        return AutoConfig.from_pretrained(
            files.folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, AttributeError) as exc:
        msg = f"config.json of {files.name} in {files.folder} could not be read: {exc}"
        raise ModelLoadError(msg) from exc


def check_num_labels(config: Any) -> int:
    """Return the number of labels, 1 or 2.

    Raises:
        UnsupportedModelError: More labels: there is no one number to order by.
    """
    num_labels: int = config.num_labels
    if num_labels not in {1, _NUM_TWO_LABEL}:
        msg = (
            f"the model has {num_labels} labels ({', '.join(config.id2label.values())}); a "
            "reranker has one score, or two labels of which the second means relevant"
        )
        raise UnsupportedModelError(msg)
    return num_labels


def read_max_length(config: Any, folder: Path) -> int:
    """Return the most tokens of a pair: what the tokenizer says and the positions allow."""
    positions: int = config.max_position_embeddings
    if config.model_type in {"roberta", "xlm-roberta"}:
        positions -= config.pad_token_id + 1  # their positions start behind the padding's
    named = read_tokenizer_config(folder).get("model_max_length", _UNSET_MODEL_MAX_LENGTH)
    return int(min(positions, named))


def read_score_space(config: Any, folder: Path) -> ScoreSpace:
    """Resolve what a model's scores are, in the order that sentence-transformers does.

    First `config_sentence_transformers.json`, then `config.json` (`sentence_transformers`, then
    the older `sbert_ce_default_activation_function`); where none says, a sigmoid. Two labels are
    always a probability unless the configuration says otherwise.

    Raises:
        UnsupportedModelError: The configuration names an activation other than these two.
    """
    path = folder / "config_sentence_transformers.json"
    named = (
        json.loads(path.read_text(encoding="utf-8")).get("activation_fn") if path.exists() else None
    )
    named = (
        named
        or (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
        or getattr(config, "sbert_ce_default_activation_function", None)
    )
    if named is None:
        return "probability"
    if named not in _ACTIVATIONS:
        msg = (
            f"the model's configuration asks for the activation {named!r}; supported are "
            f"{', '.join(_ACTIVATIONS)}"
        )
        raise UnsupportedModelError(msg)
    return _ACTIVATIONS[named]
