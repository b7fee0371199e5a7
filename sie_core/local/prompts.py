"""`Prompt`: how each family of causal-LM rerankers is asked, and where its answer is read.

The text of a prompt is tokenised in parts, as the authors' code does::

    opening | query | joint            the head: the same for all documents of a query
    document                           what gives way where there is too much
    closing                            kept whole

A part with fields (`{query}`, `{document}`, `{instruction}`) has them filled in before it is
tokenised. Sources: FlagEmbedding 1.4.2 (`FlagLLMReranker`) for Gemma, mxbai-rerank 0.1.6
(`MxbaiRerankV2`) for Qwen2, and the transformers example on the Qwen3-Reranker model cards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from sie_core.types import ScoreSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A family's prompt.

    Attributes:
        begins_with_bos: Whether the beginning-of-sequence token stands first.
        opening: Before the query.
        instruction: Before the query in the same part, where there is an instruction.
        query: The query's part.
        joint: Between query and document.
        document: The document's part.
        closing: Parts behind the document.
        default_instruction: What stands for the instruction where the caller gives none.
        positive: The answer whose logit is the score.
        negative: The answer whose logit is taken off it, if any.
        score_space: What the authors' code returns unless told otherwise.
        query_share: How much of the room a query may take.
        room: Tokens that a text may have, of the longest sequence's, the opening's (with the
            beginning-of-sequence token) and the closing's.
    """

    begins_with_bos: bool = False
    opening: str = ""
    instruction: str = ""
    query: str
    joint: str = ""
    document: str
    closing: tuple[str, ...]
    default_instruction: str = ""
    positive: str
    negative: str | None
    score_space: ScoreSpace
    query_share: Fraction = Fraction(1)
    room: Callable[[int, int, int], int] = lambda length, opening, closing: (
        length - opening - closing
    )

    def head(self, query: str, instruction: str | None) -> str:
        """Return the query's part, with the instruction where the family puts it there."""
        instruction = instruction or self.default_instruction
        before = self.instruction.format(instruction=instruction) if instruction else ""
        return before + self.query.format(query=query)

    def closings(self, instruction: str | None) -> list[str]:
        """Return the parts behind the document."""
        instruction = instruction or self.default_instruction
        return [part.format(instruction=instruction) for part in self.closing]


_CHAT_END = "<|im_end|>\n<|im_start|>assistant\n"

_BGE_GEMMA = Prompt(
    begins_with_bos=True,
    query="A: {query}",
    joint="\n",
    document="B: {document}",
    closing=("\n", "{instruction}"),
    default_instruction=(
        "Given a query A and a passage B, determine whether the passage contains an answer to the "
        "query by providing a prediction of either 'Yes' or 'No'."
    ),
    positive="Yes",
    negative=None,
    score_space="raw",
    query_share=Fraction(3, 4),
    # FlagEmbedding's max_length bounds a passage, and query and passage together may have as much
    # more as the closing has.
    room=lambda length, opening, closing: length - 2 * closing,  # noqa: ARG005  one signature
)

_MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. "
    "For each query-document pair, carefully analyze the semantic relationship between them, "
    "then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
    "Relevance:"
)

_MXBAI = Prompt(
    opening=(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n"
    ),
    instruction="instruction: {instruction}\n",
    query="query: {query}",
    joint="\n",
    document="document: {document}",
    closing=(
        "\n",
        _MXBAI_TASK,
        _CHAT_END,
    ),
    positive="1",
    negative="0",
    score_space="raw",
    query_share=Fraction(3, 4),
)

_QWEN3 = Prompt(
    opening=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    ),
    instruction="<Instruct>: {instruction}\n",
    # The authors tokenise query and document as one text. The tokenizer never joins a colon and
    # the space behind it, so that cutting there gives the same ids.
    query="<Query>: {query}\n<Document>:",
    document=" {document}",
    closing=(_CHAT_END + "<think>\n\n</think>\n\n",),
    default_instruction=(
        "Given a web search query, retrieve relevant passages that answer the query"
    ),
    positive="yes",
    negative="no",
    score_space="probability",
)

PROMPTS: dict[str, Prompt] = {"gemma": _BGE_GEMMA, "qwen2": _MXBAI, "qwen3": _QWEN3}
"""The prompt for each `model_type`."""
