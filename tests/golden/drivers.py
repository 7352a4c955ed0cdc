"""One driver a kind: run the package on the inputs of a golden case.

A driver returns what it computed; :mod:`tests.golden.test_golden` compares. Section numbers are
those of `data/README.md`.
"""

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magi_world.checkpoints.tensors import load_module
from magi_world.config import DiTConfig, VAEConfig
from magi_world.models.dit import VideoDiT
from magi_world.models.forward import LinearMemory, forward_clip
from magi_world.models.rope import rescale_factor, rotary_angles
from magi_world.models.vae import VitVAE
from tests.golden.cases import Case, Computed
from tests.golden.fp8_driver import install_stored_fp8, run_fp8
from tests.golden.prompt_driver import run_prompt, run_t5_weights
from tests.golden.sampling_driver import run_dispatch, run_e2e, run_sampling
from tests.golden.schedule_driver import run_schedule
from tests.golden.trace import traced
from tests.golden.vae_driver import run_vae


def run_weights(case: Case) -> Computed:
    """Strict loading: every name and shape; the values must arrive unchanged."""
    config = case.meta["config"]
    if "t5_config" in config:
        return run_t5_weights(case)
    module: nn.Module
    if "ddconfig" in config:
        module = VitVAE(VAEConfig.from_dict(config["ddconfig"]))
    else:
        module = VideoDiT(DiTConfig.from_dict(config["model_config"]))
        install_stored_fp8(module, case.folder / case.entry["file"])
    load_module(module, case.folder / case.entry["file"])
    stored = case.stored()
    loaded = module.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name].float(), stored[name]) for name in stored)
    return Computed(values={"number_of_parameters": sum(p.numel() for p in module.parameters())})


def run_rope(case: Case) -> Computed:
    """The rotary table (section 3.4)."""
    meta, inputs = case.meta, case.inputs()
    first = torch.tensor([meta["frame_offset"]])
    angles = rotary_angles(inputs["bands"], first, meta["T"], meta["H"], meta["W"])
    table = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return Computed(
        tensors={"embed": table[inputs["rows"]]},
        values={
            "total_rows": len(table),
            "rescale_factor": rescale_factor(meta["H"], meta["W"]),
        },
    )


def run_modules(case: Case) -> Computed:
    """Single parts of the DiT (sections 3.2, 3.3, 3.5); the inputs tell which part it is."""
    dit, inputs = _dit(case), case.inputs()
    if "x" in inputs:
        with traced(dit, num_clips=inputs["x"].shape[0]) as trace:
            velocity = _forward(dit, case.meta, inputs)
        return Computed(tensors={**trace, "velocity": velocity})
    part = dit.get_submodule(case.meta["prefix"].rstrip("."))
    if "t" in inputs:
        assert part is dit.t_embedder
        t = inputs["t"]
        return Computed(tensors={"freq": dit.t_embedder.features(t), "t_emb": dit.t_embedder(t)})
    if "caption" in inputs:
        embedder, caption = dit.y_embedder, inputs["caption"]
        assert part is embedder
        return Computed(
            tensors={
                "y_xattn": embedder.project(caption),
                "y_adaln": embedder.adaln(inputs["drop"].bool())[:, None],
                "y_adaln_without_mask_argument": embedder.y_proj_adaln(caption),
            }
        )
    seen: dict[str, Tensor] = {}
    hooks = [
        part.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: output})
        )
        for name in ("layer_norm", "linear_fc1")
    ]
    out = part(inputs["h"])
    for hook in hooks:
        hook.remove()
    return Computed(
        tensors={"ln_out": seen["layer_norm"], "fc1_out": seen["linear_fc1"], "mlp_out": out}
    )


def run_forward(case: Case) -> Computed:
    """The DiT without guidance, alone or in calls that share a cache (sections 3 and 9)."""
    dit, meta, inputs = _dit(case), case.meta, case.inputs()
    if "calls" in meta:
        return Computed(tensors=_calls(dit, case))
    if "velocity_bf16_recipe" in case.tolerance:
        recipe = copy.deepcopy(dit).to_recipe(torch.bfloat16)
        dtypes = {name: str(p.dtype).split(".")[1] for name, p in recipe.named_parameters()}
        assert dtypes == meta["runtime_dtypes"]
        return Computed(
            tensors={
                "velocity_fp32": _forward(dit, meta, inputs),
                "velocity_bf16_recipe": _forward(recipe, meta, inputs),
            }
        )
    return Computed(tensors={"velocity": _forward(dit, meta, inputs)})


def _calls(dit: VideoDiT, case: Case) -> dict[str, Tensor]:
    """Run consecutive calls on one cache; names get the prefix `callI.`."""
    meta, inputs, config = case.meta, case.inputs(), dit.config
    n = meta["tokens_per_chunk"]
    memory = LinearMemory(
        config.num_layers,
        n * max(call["range_num"] for call in meta["calls"]),
        config.num_query_groups,
        config.kv_channels,
    )
    computed: dict[str, Tensor] = {}
    shapes = {t["name"]: t["shape"] for t in case.entry["tensors"]}
    for index, call in enumerate(meta["calls"]):
        prefix = f"call{index}."
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in inputs.items()
            if name.startswith(prefix)
        }
        assert not call["near_clean"], "the near-clean pass belongs to guidance"
        uses_cache = (
            call["extract_prefix"] or call["fwd_extra_1st_chunk"] or call["slice_point"] > 0
        )
        computed[f"{prefix}velocity"] = _forward(
            dit,
            {**meta, **call},
            own,
            memory=memory if uses_cache else None,
            update_kv_cache=call["update_kv_cache"],
        )
        for layer in range(config.num_layers):
            name = f"{prefix}cache_layer{layer}"
            if name in shapes:
                k, v = memory.rows_L2RKD[layer][:, : shapes[name][0]]
                computed[name] = torch.cat([k, v], dim=-1)
    return computed


def _forward(
    dit: VideoDiT, arguments: dict[str, Any], inputs: dict[str, Tensor], **cache: Any
) -> Tensor:
    return forward_clip(
        dit,
        inputs["x"],
        inputs["t"],
        inputs["y"],
        inputs["mask"],
        arguments["kv_range"],
        chunk_width=arguments["chunk_width"],
        caption_dropout=arguments["caption_dropout"],
        slice_point=arguments["slice_point"],
        **cache,
    )


def _dit(case: Case) -> VideoDiT:
    config = json.dumps(case.meta["config"]["model_config"])
    return _load_dit(case.folder / case.meta["weights"], config)


@cache
def _load_dit(weights: Path, config: str) -> VideoDiT:
    dit = VideoDiT(DiTConfig.from_dict(json.loads(config)))
    install_stored_fp8(dit, weights)
    load_module(dit, weights)
    return dit.eval()


DRIVERS: dict[str, Callable[[Case], Computed]] = {
    "weights": run_weights,
    "schedule": run_schedule,
    "rope": run_rope,
    "modules": run_modules,
    "forward": run_forward,
    "dispatch": lambda case: run_dispatch(case, _dit),
    "sampling": lambda case: run_sampling(case, _dit),
    "e2e": lambda case: run_e2e(case, _dit),
    "vae": run_vae,
    "prompt": run_prompt,
    "fp8": lambda case: run_fp8(case, _forward, _dit),
}
