"""The transformer blocks that SSAST and ATST share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from upstreams.seeds.transformer import TransformerBlock, block_outputs, plain_start

DIM = 128


def random_block(**options: float) -> TransformerBlock:
    torch.manual_seed(0)
    block = TransformerBlock(DIM, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return block.eval()


def torchs_own(block: TransformerBlock) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(DIM, 2, 4 * DIM, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
    }
    state = block.state_dict()
    for theirs in layer.state_dict():
        ours = next((theirs.replace(old, new) for old, new in names.items() if theirs.startswith(old)), theirs)
        layer.state_dict()[theirs].copy_(state[ours])
    return layer.eval()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 7, DIM), torch.arange(7)[None] < torch.tensor([[7], [4], [1]])


@torch.no_grad()
def test_a_block_is_a_pre_norm_layer_of_torch_with_heads_of_64_channels() -> None:
    block, (tokens, valid) = random_block(), batch()
    layer = torchs_own(block)
    torch.testing.assert_close(block(tokens), layer(tokens), rtol=1e-5, atol=1e-5)
    given, wanted = block(tokens, valid), layer(tokens, src_key_padding_mask=~valid)
    torch.testing.assert_close(given[valid], wanted[valid], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_tokens_that_are_not_valid_change_no_others() -> None:
    block, (tokens, valid) = random_block(), batch()
    other = torch.where(valid[:, :, None], tokens, torch.randn_like(tokens))
    torch.testing.assert_close(block(tokens, valid)[valid], block(other, valid)[valid], rtol=0, atol=1e-6)
    assert not torch.allclose(block(tokens)[valid], block(other)[valid], atol=1e-3)


@torch.no_grad()
def test_every_gives_what_each_block_gives() -> None:
    blocks = nn.ModuleList([random_block(), TransformerBlock(DIM), TransformerBlock(DIM, bias=False)]).eval()
    tokens, valid = batch()
    first, second, third = block_outputs(blocks, tokens, valid)
    assert torch.equal(first, blocks[0](tokens, valid))
    assert torch.equal(third, blocks[2](second, valid))


def test_blocks_without_bias_lack_that_of_queries_keys_and_values_only() -> None:
    lacking = TransformerBlock(DIM).state_dict().keys() - TransformerBlock(DIM, bias=False).state_dict().keys()
    assert lacking == {"attn.qkv.bias"}


@torch.no_grad()
def test_in_training_a_clip_skips_a_branch_or_has_it_made_up_for() -> None:
    block = random_block(drop=0.25)
    tokens = torch.randn(1, 5, DIM).expand(2000, -1, -1)
    plain = block(tokens)[0]
    assert torch.equal(block(tokens)[1], plain)
    first = block.attn(block.norm1(tokens), None)[0]
    block.train()
    torch.manual_seed(2)
    kept = block.drop_path(first.expand(2000, -1, -1))
    skipped = (kept == 0).flatten(1).all(1)
    assert 0.2 < float(skipped.float().mean()) < 0.3
    torch.testing.assert_close(kept[~skipped][0], first / 0.75)
    torch.testing.assert_close(kept.mean(0), first, rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_start_small_and_without_bias(bias: bool) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(DIM, bias=bias).apply(plain_start)
    for module in block.modules():
        if isinstance(module, nn.Linear):
            assert 0.019 < float(module.weight.detach().std()) < 0.021
            assert module.bias is None or not bool(module.bias.any())
        if isinstance(module, nn.LayerNorm):
            assert bool((module.weight == 1).all())
