# SPDX-License-Identifier: Apache-2.0
"""Load the weights of generative networks, those of monai-generative included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_memorization.errors import InputError

# in every file of monai-generative with attention; MONAI has neither name
_OLD_MARKS = (".proj_attn.weight", ".to_out.0.weight")


def load_weights(
    network: nn.Module, path: str | Path, device: str | torch.device = "cpu", scale_factor: float | None = None
) -> nn.Module:
    """Fill a network with the weights of a file, every one of them, and return it on the device in evaluation mode.

    Args:
        network: network of the right structure; changed.
        path: plain state dict, as the bundles' trainings write it, or one that monai-generative 0.2.3 wrote.
        device: where the network shall be.
        scale_factor: what the latents of a latent diffusion model were multiplied by, for files that lack it.

    Returns:
        The same network.

    Raises:
        InputError: if the file is missing, is no state dict, or belongs to a network of another structure.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights; train the network first, or name the file")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        network.load_state_dict(_complete(core_state_dict(state, network), network, path, scale_factor))
    except InputError:
        raise
    except Exception as error:  # unpickling fails in many ways
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: does not hold the weights of this {type(network).__name__} ({reason})") from error
    return network.to(device).eval()


def core_state_dict(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename the weights that monai-generative 0.2.3 wrote to those of MONAI's networks.

    MONAI's own `load_old_state_dict` empties the dict it is given, and fills a network that was built with the wrong
    `include_fc` without a word: outputs then differ by as much as they are large. The attention over space of
    monai-generative never used its last layer, `proj_attn`, whose weights must not be used now; that over a context
    used its last layer, `to_out`.

    Args:
        state: a state dict, old or new; not changed.
        network: MONAI's AutoencoderKL, DiffusionModelUNet or VQVAE, of the same structure; not changed.

    Returns:
        A state dict for the network; a copy of `state` where nothing in it is old.

    Raises:
        ValueError: if the network was built with the wrong `include_fc`, or an old weight has no place in it.
    """
    own = network.state_dict().keys()
    old_names = {name: _old_name(name) for name in own if name not in state and _old_name(name) in state}
    if not old_names and not any(name.endswith(_OLD_MARKS) for name in state):
        return dict(state)
    spatial = [name for name in own if name.endswith(".attn.out_proj.weight")]
    cross = [name for name in state if name.endswith(".to_out.0.weight")]
    if not cross and spatial:
        raise ValueError("weights of monai-generative without conditioning need a network with include_fc=False")
    if any(name.replace(".to_out.0.", ".out_proj.") not in own for name in cross):
        raise ValueError("weights of monai-generative with conditioning need a network with include_fc=True")
    used = set(old_names.values())
    renamed = {new: state[old] for new, old in old_names.items()}
    kept = {name: value for name, value in state.items() if name not in used and ".proj_attn." not in name}
    return kept | renamed


def _old_name(name: str) -> str:
    """Return what monai-generative called a weight of MONAI."""
    if ".transformer_blocks." in name:
        return name.replace(".out_proj.", ".to_out.0.")
    return name.replace(".attn.to_", ".to_").replace(".postconv.", ".conv.")


def _complete(
    state: dict[str, Tensor], network: nn.Module, path: Path, scale_factor: float | None
) -> dict[str, Tensor]:
    if "scale_factor" not in network.state_dict() or "scale_factor" in state:
        return state
    if not any(name in state for name in network.state_dict()):  # weights of something else: torch says of what
        return state
    if scale_factor is None:
        raise InputError(
            f"{path}: holds no scale factor of the latents; give as scale_factor what the training multiplied latents "
            "by, 1.0 if nothing"
        )
    return state | {"scale_factor": torch.as_tensor(float(scale_factor))}
