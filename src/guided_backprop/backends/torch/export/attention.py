"""Attention in one operation as the matrix products that it is, and the derivative of that."""

import math
from collections.abc import Callable
from typing import Any, Final

import torch

aten = torch.ops.aten


def _scores(
    query: torch.Tensor, key: torch.Tensor, is_causal: bool, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        ahead = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(ahead, -math.inf)
    return scores if mask is None else scores + mask


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> Any:
    """Return what is attended to, and the logarithms of what weights are divided by."""
    if dropout:
        return NotImplemented
    scores = _scores(query, key, is_causal, attn_mask, scale or query.shape[-1] ** -0.5)
    y = scores.softmax(-1) @ value
    # It lies in memory as the operation leaves it: as the query.
    return torch.empty_like(query).copy_(y), scores.logsumexp(-1)


def _attention_backward(  # noqa: PLR0917 - as torch has them
    g: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    y: torch.Tensor,
    divisors: torch.Tensor,
    dropout: float,
    is_causal: bool,
    *,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    by = scale or query.shape[-1] ** -0.5
    weights = (_scores(query, key, is_causal, attn_mask, by) - divisors.unsqueeze(-1)).exp()
    of_weights = g @ value.transpose(-2, -1)
    of_scores = weights * (of_weights - (g * y).sum(-1, keepdim=True)) * by
    return of_scores @ key, of_scores.transpose(-2, -1) @ query, weights.transpose(-2, -1) @ g


#: The rows of attention.
ATTENTION: Final[dict[Any, Callable[..., Any]]] = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}
