"""Attention in two parts, merged, against one softmax over everything."""

from __future__ import annotations

import pytest
import torch

from service.decoding.prefix_attention import add_suffix, attend_prompt, padding_bias


@pytest.mark.parametrize("lengths", [[20, 20], [20, 7]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_parts_merge_to_attention_over_both(dtype: torch.dtype, lengths: list[int]) -> None:
    num_beams, num_heads, groups, head_dim, num_prompt, num_suffix = 5, 6, 3, 16, 20, 2
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    query = random(2, num_beams, num_heads, head_dim)
    keys, values = random(2, 2, groups, num_prompt, head_dim)
    own_keys, own_values = random(2, 2 * num_beams, num_suffix, groups, head_dim)
    bias = padding_bias(torch.tensor(lengths), num_prompt, dtype)
    assert (bias is None) == (lengths == [20, 20])
    prompt = attend_prompt(query, keys, values, bias)
    merged = add_suffix(query.flatten(0, 1), own_keys, own_values, *prompt)

    for request, length in enumerate(lengths):
        for beam in range(num_beams):
            row = request * num_beams + beam
            all_keys = torch.cat([keys[request, :, :length], own_keys[row].transpose(0, 1)], dim=1)
            all_values = torch.cat([values[request, :, :length], own_values[row].transpose(0, 1)], dim=1)
            rows = query[request, beam].view(groups, -1, head_dim).float()
            weights = (rows @ all_keys.float().transpose(1, 2) * head_dim**-0.5).softmax(-1)
            expected = (weights @ all_values.float()).flatten(0, 1)
            tolerance = 1e-5 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(merged[row].float(), expected, atol=tolerance, rtol=tolerance)


def test_keys_whose_channels_do_not_lie_side_by_side_are_refused() -> None:
    query, keys = torch.randn(1, 2, 2, 8), torch.randn(1, 2, 8, 5).transpose(2, 3)
    with pytest.raises(AssertionError, match="contiguous"):
        attend_prompt(query, keys, keys, None)
