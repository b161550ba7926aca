"""Pre-norm blocks of vision transformers, used by SSAST and ATST.

Weights have the names of timm (Wightman, 2019), as in both authors' checkpoints: norm1, attn.qkv, attn.proj, norm2,
mlp.fc1, mlp.fc2.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

HEAD = 64  # channels of an attention head, in every size of both systems
EPSILON = 1e-6  # of layer norms


class Attention(nn.Module):
    """Multi-head self-attention; keys that are not valid are masked."""

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.heads = dim // HEAD
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D). valid: (B, N) bool, or None if all tokens are valid."""
        batch, number, dim = tokens.shape
        query, key, value = self.qkv(tokens).view(batch, number, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mask = None if valid is None else valid[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(mixed.transpose(1, 2).reshape(batch, number, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them; the hidden layer is four times as wide as the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class TransformerBlock(nn.Module):
    """A pre-norm transformer block: attention and a perceptron, each with a residual (Dosovitskiy et al., 2021).

    drop: probability that a clip skips a branch in training (stochastic depth, Huang et al., 2016).
    """

    def __init__(self, dim: int, bias: bool = True, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.attn = Attention(dim, bias)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = Mlp(dim)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), valid))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))

    def drop_path(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop == 0.0:
            return branch
        keep = 1.0 - self.drop
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep) / keep


def block_outputs(blocks: nn.ModuleList, tokens: Tensor, valid: Tensor | None = None) -> list[Tensor]:
    """Return the output (B, N, D) of each block, in order."""
    states = []
    for block in blocks:
        tokens = block(tokens, valid)
        states.append(tokens)
    return states


def plain_start(module: nn.Module) -> None:
    """Initialise linear layers as DeiT (Touvron et al., 2021): weights from N(0, 0.02), biases zero.

    It is to be passed to `nn.Module.apply`.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
