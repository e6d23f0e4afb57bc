"""A model divided among processes: FSDP2 (Zhao et al. 2023) along the data, Megatron's tensor parallelism (Shoeybi et al.
2019) within the blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from jielong.config import ParallelConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT, Block, Linear, for_gpu
from jielong.train.distributed import Team


def share(model: GPT, team: Team, config: ParallelConfig, dtype: torch.dtype) -> Callable[[], GPT | None]:
    """Move the model to the team's device and divide it, in place.

    Returns what gathers it again: a call, by all processes together, gives the whole model to the first one, None to
    the others. Where nothing is divided that is the model itself. Raises UserError for shapes that cannot be divided.
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        block.recompute = config.recompute
        if team.device.type == "cuda":
            for_gpu(block)
    if not team.sharded:
        model.to(team.device)
        return lambda: model if team.first else None
    twin = _empty_twin(model)
    if team.tensor > 1:
        _split_blocks(model, team)
    if team.fsdp:
        _shard(model, team, dtype)  # moves one block after the other, so that no GPU ever holds them all
    else:
        model.to(team.device)

    def whole() -> GPT | None:
        state: dict[str, Tensor] = {}
        for name, p in model.state_dict().items():
            gather = getattr(p, "full_tensor", None)  # a DTensor's
            full = p if gather is None else gather()
            if team.first:
                state[name] = full.clone()
        if not team.first:
            return None
        found = copy.deepcopy(twin)
        found.load_state_dict(state, assign=True)
        return found.eval()

    return whole


def _empty_twin(model: GPT) -> GPT:
    """The same modules, whose parameters have shapes but no memory."""
    parameters = {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, parameters)


def _shard(model: GPT, team: Team, dtype: torch.dtype) -> None:
    """Divide every parameter by its first dimension. A block is gathered before it is used, and forgotten after."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    assert team.mesh is not None
    low = dtype != torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if low else MixedPrecisionPolicy()
    for block in model.blocks:
        fully_shard(block, mesh=team.mesh["data"], mp_policy=policy)
    # the loss reads the head after the forward pass, so that the root must stay gathered until the backward pass
    fully_shard(model, mesh=team.mesh["data"], mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # losses are shares of one sum: gradients are added up, not averaged
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _split_blocks(model: GPT, team: Team) -> None:
    """Give each process of a tensor group some heads and some of the feed-forward network's inner features."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        parallelize_module,
    )

    assert team.mesh is not None
    size, c = team.tensor, model.config
    for name in ("heads", "kv_heads", "mlp_width"):
        if getattr(c, name) % size:
            raise UserError(f"--parallel.tensor ({size}) must divide {name.replace('_', '-')} ({getattr(c, name)}).")
    if any(m.lora is not None for m in model.modules() if isinstance(m, Linear)):
        raise UserError("--parallel.tensor does not go with --lora-rank; leave one of them out.")
    whole = (Replicate(), None, None)  # x, rope, mask
    plan = {
        "attention": PrepareModuleInput(input_layouts=whole, desired_input_layouts=whole),
        "mlp": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate()),
        "attention.o": RowwiseParallel(),
        "mlp.down": RowwiseParallel(),
    }
    apart = ["attention.q", "attention.k", "attention.v", "mlp.up", *(["mlp.gate"] if c.mlp == "swiglu" else [])]
    plan |= {name: ColwiseParallel() for name in apart}
    for block in model.blocks:
        assert isinstance(block, Block)
        parallelize_module(block, team.mesh["tensor"], plan, src_data_rank=None)  # all drew the same weights
        block.attention.heads //= size
        block.attention.kv_heads //= size
        for name in apart:
            layer = block.get_submodule(name)
            assert isinstance(layer, Linear)
            layer.apart = True
