"""A model divided among processes: FSDP2 (Zhao et al. 2023) along the data, Megatron's tensor parallelism (Shoeybi et al.
2019) within the blocks."""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from jielong.config import ModelConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT, Block, Linear, for_gpu, reading
from jielong.train.distributed import Team
from jielong.train.layout import local


class Whole(Protocol):
    """Gathers a model again: a call, by all processes together, gives the whole model to the first one, None to the others;
    to each of them if `everyone` asks for it. Where nothing is divided it is the model itself, else a copy."""

    def __call__(self, everyone: bool = False) -> GPT | None: ...


def share(model: GPT, team: Team, dtype: torch.dtype, seed: int | None = None) -> Whole:
    """Move the model to the team's device and divide it as the team wants, in place; returns what gathers it again. Raises
    UserError for shapes that cannot be divided.

    With `seed` the model has shapes but no memory (it was built on "meta"), and gets random weights, as `init_weights` gives
    them, when it is divided: no process ever holds more of it than its parts and one parameter.
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        block.recompute = team.parallel.recompute
        if team.device.type == "cuda":
            for_gpu(block)
        if team.parallel.compile:
            block.compiled = torch.compile(block.outside, fullgraph=True)  # alike: one is compiled for all
    if not team.sharded:
        _place(model, team, seed)
        return lambda everyone=False: model if team.first or everyone else None
    twin = _empty_twin(model)
    if team.tensor > 1:
        _split_blocks(model, team)
    if team.fsdp:
        _shard(model, team, dtype)  # moves one block after the other, so that no GPU ever holds them all
    if seed is not None or not team.fsdp:
        _place(model, team, seed)

    def whole(everyone: bool = False) -> GPT | None:
        state: dict[str, Tensor] = {}
        for name, p in model.state_dict().items():
            gather = getattr(p, "full_tensor", None)  # a DTensor's
            full = p if gather is None else gather()
            if team.first or everyone:
                state[name] = full.clone()
        if not state:
            return None
        found = copy.deepcopy(twin)
        found.load_state_dict(state, assign=True)
        return found.eval()

    return whole


def check_division(shape: ModelConfig, team: Team, lora: bool) -> None:
    """Raises UserError for a model that the team's tensor groups cannot share."""
    for name in ("heads", "kv_heads", "mlp_width"):
        if (size := getattr(shape, name)) % team.tensor:
            raise UserError(f"--parallel.tensor ({team.tensor}) must divide {name.replace('_', '-')} ({size}).")
    if team.tensor > 1 and lora:
        raise UserError("--parallel.tensor does not go with --lora-rank; leave one of them out.")


def release(model: nn.Module) -> None:
    """Forget the weights that FSDP has gathered for a forward pass that no backward pass followed."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def _place(model: GPT, team: Team, seed: int | None) -> None:
    """Move the process's parts to its device, or give them memory and their first weights there."""
    if seed is None:
        model.to(team.device)
        return
    model.to_empty(device=team.device)
    for name, p in model.named_parameters():
        start, size = team.layout(p).box(p.shape)
        part = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        local(p).copy_(model.first_weights(seed, name, p.shape)[part])


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
    check_division(model.config, team, any(m.lora is not None for m in model.modules() if isinstance(m, Linear)))
    size = team.tensor
    whole = (Replicate(), None, None)  # x, rope, mask
    plan = {
        "attention": PrepareModuleInput(input_layouts=whole, desired_input_layouts=whole),
        "mlp": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate()),
        "attention.o": RowwiseParallel(),
        "mlp.down": RowwiseParallel(),
    }
    apart = reading(model.blocks[0])
    plan |= {name: ColwiseParallel() for name in apart}
    for block in model.blocks:
        assert isinstance(block, Block)
        parallelize_module(block, team.mesh["tensor"], plan, src_data_rank=None)  # all drew the same weights
        block.attention.heads //= size
        block.attention.kv_heads //= size
        for layer in reading(block).values():
            layer.apart = True
