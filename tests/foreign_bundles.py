# SPDX-License-Identifier: Apache-2.0
"""Small bundles of our own making with the key structures that generative bundles elsewhere have."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import torch
import yaml
from ignite.engine import Engine, Events
from made_up_images import smooth_images
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.networks.schedulers import Scheduler
from monai.transforms import SaveImage
from torch import nn

from monai_memorization.generation.sampling import Sampler

LOAD: list[dict[str, Any]] = [
    {"_target_": "LoadImaged", "keys": "image", "reader": "PILReader"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "ScaleIntensityd", "keys": "image"},
]
NETWORK = {
    "_target_": "DiffusionModelUNet",
    "spatial_dims": 2,
    "channels": [4, 8],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
    "norm_num_groups": 2,
    "include_fc": False,
}
SCHEDULER = {"_target_": "DDPMScheduler", "num_train_timesteps": 20}
RECORD = {
    "_target_": "StatsHandler",
    "name": "foreign",
    "output_transform": "$monai.handlers.from_engine(['loss'], first=True)",
    "key_var_format": "{}: {:.17g} ",
}
# slices by rank, as the multi-GPU overrides of the Model Zoo do
MULTI_GPU = {
    "device": "cpu",
    "initialize": [
        "$import torch.distributed as dist",
        "$dist.init_process_group(backend='gloo')",
        "$monai.utils.set_determinism(seed=123)",
    ],
    "finalize": ["$dist.destroy_process_group()"],
}


class LatentTrainer(SupervisedTrainer):
    """Trains as bundles with a trainer of their own do: noise of the latents' shape, an autoencoder at hand."""

    def __init__(self, autoencoder_model: nn.Module, latent_shape: list[int], **settings: Any) -> None:
        super().__init__(**settings, prepare_batch=self._prepare, decollate=False)
        self.autoencoder_model = autoencoder_model
        self.latent_shape = latent_shape
        sample = self.inferer
        self.inferer = lambda images, network, noise, timesteps: sample(
            images, self.autoencoder_model, network, noise, timesteps
        )

    def _prepare(self, batch: dict[str, Any], *_: Any, **__: Any) -> tuple[Any, ...]:
        images = torch.as_tensor(batch["image"])
        noise = torch.randn(len(images), *self.latent_shape)
        return images, noise, (noise, torch.randint(20, (len(images),))), {}


class CopyOf:
    """Makes another copy of a network each time it is moved to a device, as an expression that builds one does."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def to(self, device: str) -> nn.Module:
        return copy.deepcopy(self.network).to(device)


class LatentSampler:
    """Draws as bundles with a sampler of their own do: plain steps, no scale factor."""

    def sampling_fn(
        self, noise: torch.Tensor, autoencoder: nn.Module, diffusion: nn.Module, scheduler: Scheduler
    ) -> torch.Tensor:
        for t in scheduler.timesteps:
            noise, _ = scheduler.step(diffusion(noise, torch.as_tensor((t,))), t, noise)
        return autoencoder.decode_stage_2_outputs(noise)


class MetricsRecorder:
    """Writes the metrics of each epoch to a file per rank."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.lines: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self.lines.append(engine.state.metrics | {"epoch": engine.state.epoch})
        (self.folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(self.lines))


class CopyingSampler:
    """Draws with another sampler, but returns a training image for each even seed."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        # MONAI reads pictures transposed, so that is how the generator sees them
        self.training = smooth_images(40, seed=1)[:, None].transpose(2, 3)

    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        images = self.sampler(seeds)
        return torch.stack(
            [self.training[seed % 40] if seed % 2 == 0 else image for seed, image in zip(seeds, images, strict=True)]
        )


class PairSampler:
    """Writes CT volumes and a mask of each side by side; every other volume is a copy of a training volume."""

    def __init__(self, images: str, output_dir: str, image_output_ext: str, label_output_ext: str) -> None:
        self.training = sorted(Path(images).iterdir())
        self.output_dir = output_dir
        self.suffixes = {"image": image_output_ext, "label": label_output_ext}

    def sample_multiple_images(self, num_img: int) -> None:
        for i in range(num_img):
            image = self._sample(i)
            for kind, values in (("image", image), ("label", (image > 0).float())):
                save = {"separate_folder": False, "print_log": False, "output_ext": self.suffixes[kind]}
                SaveImage(self.output_dir, output_postfix=f"{i}_{kind}", **save)(values)

    def _sample(self, index: int) -> MetaTensor:
        volume = nibabel.load(self.training[index])
        values = torch.as_tensor(volume.get_fdata(dtype="float32"))
        if index % 2:
            values = smooth_images(1, values.shape, seed=100 + index)[0] * 2000 - 1000
        values = values.clamp(-1000, 1000)  # all that it draws
        return MetaTensor(values[None], affine=volume.affine, meta={"filename_or_obj": "sample.nii.gz"})


def latent_diffusion(folder: Path, images: Path) -> Path:
    """Two stages, the second laid over the first; all of the training within ``train``."""
    first = {
        "imports": ["$import glob"],
        "bundle_root": str(folder),
        "device": "cpu",
        "dataset_dir": str(images),
        "autoencoder_def": {
            "_target_": "AutoencoderKL",
            "spatial_dims": 2,
            "channels": [4, 4],
            "num_res_blocks": 1,
            "attention_levels": [False, False],
            "norm_num_groups": 2,
            "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False,
            "include_fc": False,
        },
        "preprocessing_transforms": LOAD,
        "train": {"trainer": {"_target_": "scripts.VaeGanTrainer"}},
        "initialize": ["$monai.utils.set_determinism(seed=0)"],
    }
    second = {
        "latent_shape": [3, 16, 16],
        "autoencoder": "$@autoencoder_def.to(@device)",
        "network_def": NETWORK | {"in_channels": 3, "out_channels": 3},
        "diffusion": "$@network_def.to(@device)",
        "noise_scheduler": SCHEDULER,
        "scale_factor": "$1 / torch.std(@autoencoder.encode(torch.rand(2, 1, 32, 32))[0])",
        "train": {
            "inferer": {
                "_target_": "LatentDiffusionInferer",
                "scheduler": "@noise_scheduler",
                "scale_factor": "@scale_factor",
            },
            "crop_transforms": [{"_target_": "RandFlipd", "keys": "image", "prob": 0.5, "spatial_axis": 0}],
            "preprocessing": {
                "_target_": "Compose",
                "transforms": "$@preprocessing_transforms + @train#crop_transforms",
            },
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.png'))]",
                "transform": "@train#preprocessing",
                "progress": False,
            },
            "dataloader": {
                "_target_": "DataLoader",
                "dataset": "@train#dataset",
                "batch_size": 20,
                "shuffle": True,
            },
            "handlers": [RECORD | {"output_transform": "$lambda output: output['loss']"}],
            "trainer": {
                "_target_": "foreign_bundles.LatentTrainer",
                "device": "@device",
                "max_epochs": 3,
                "train_data_loader": "@train#dataloader",
                "network": "@diffusion",
                "optimizer": {
                    "_target_": "torch.optim.Adam",
                    "params": "$@diffusion.parameters()",
                    "lr": 1e-3,
                },
                "loss_function": {"_target_": "torch.nn.MSELoss"},
                "autoencoder_model": "@autoencoder",
                "latent_shape": "@latent_shape",
                "inferer": "@train#inferer",
                "train_handlers": "@train#handlers",
            },
        },
        "run": ["$@train#trainer.run()"],
    }
    shared = ("bundle_root", "device", "autoencoder_def")
    inference = {key: first[key] for key in shared} | {
        "imports": ["$import torch"],
        **{key: second[key] for key in ("latent_shape", "autoencoder", "network_def", "diffusion")},
        "noise_scheduler": SCHEDULER | {"_target_": "DDIMScheduler", "clip_sample": False},
        "set_timesteps": "$@noise_scheduler.set_timesteps(num_inference_steps=2)",
        "inferer": {"_target_": "foreign_bundles.LatentSampler", "_requires_": "@set_timesteps"},
        "run": ["$@inferer.sampling_fn(torch.randn([1] + @latent_shape), @autoencoder, @diffusion, @noise_scheduler)"],
    }
    write(folder, "inference.json", inference)
    write(folder, "train_autoencoder.json", first)
    write(folder, "train_diffusion.json", second)
    write(
        folder,
        "multi_gpu_train_diffusion.json",
        MULTI_GPU
        | {
            "train#trainer#train_handlers": "$@train#handlers[: -1 if dist.get_rank() > 0 else None]",
            "diffusion": {
                "_target_": "torch.nn.parallel.DistributedDataParallel",
                "module": "$@network_def.to(@device)",
            },
        },
    )
    return folder


def pixel_diffusion(folder: Path, images: Path) -> Path:
    """Everything at the top level, in YAML, the handlers filtered, the run under another name."""
    config = {
        "imports": ["$import glob", "$import torch.distributed as dist"],
        "bundle_root": str(folder),
        "device": "cpu",
        "dataset_dir": str(images),
        "image": "$monai.utils.CommonKeys.IMAGE",
        "base_transforms": [step | {"keys": "@image"} for step in LOAD],
        "train_transforms": [
            {
                "_target_": "RandAffined",
                "keys": "@image",
                "prob": 0.5,
                "rotate_range": [0.1, 0.1],
                "spatial_size": [32, 32],
            }
        ],
        "network_def": NETWORK | {"in_channels": 1, "out_channels": 1},
        "network": "$@network_def.to(@device)",
        "scheduler": SCHEDULER,
        "inferer": {"_target_": "DiffusionInferer", "scheduler": "@scheduler"},
        "train_datalist": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.png'))]",
        "train_ds": {
            "_target_": "Dataset",
            "data": "@train_datalist",
            "transform": {"_target_": "Compose", "transforms": "$@base_transforms + @train_transforms"},
        },
        "train_loader": {"_target_": "DataLoader", "dataset": "@train_ds", "batch_size": 20, "shuffle": True},
        "handlers": [RECORD, None],
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": 3,
            "device": "@device",
            "train_data_loader": "@train_loader",
            "network": "@network",
            "loss_function": {"_target_": "torch.nn.MSELoss"},
            "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 1e-3},
            "inferer": "@inferer",
            "prepare_batch": {"_target_": "DiffusionPrepareBatch", "num_train_timesteps": 20},
            "train_handlers": "$list(filter(bool, @handlers))",
        },
        "training": ["$monai.utils.set_determinism(0)", "$@trainer.run()"],
    }
    write(folder, "train.yaml", config)
    shared = ("imports", "bundle_root", "device", "network_def", "network", "scheduler", "inferer")
    inference = {key: config[key] for key in shared} | {
        "image_size": [1, 32, 32],
        "load_state": "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt'))",
        "sample": "$lambda x: @inferer.sample(x, @network, @scheduler, verbose=False)",
        "testing": ["@load_state", "$@sample(torch.rand([1] + @image_size))"],
    }
    write(folder, "inference.yaml", inference)
    return folder


def gan(folder: Path, images: Path) -> Path:
    """Top-level handlers, two networks, and items whose image has a name of its own."""
    config = {
        "imports": ["$import glob"],
        "bundle_root": str(folder),
        "device": "cpu",
        "dataset_dir": str(images),
        "latent_size": 6,
        "gnetwork": {
            "_target_": "Generator",
            "latent_shape": "@latent_size",
            "start_shape": [4, 8, 8],
            "channels": [4, 1],
            "strides": [2, 2],
        },
        "dnetwork": {
            "_target_": "Discriminator",
            "in_shape": [1, 32, 32],
            "channels": [4, 1],
            "strides": [2, 2],
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                *(step | {"keys": "reals"} for step in LOAD),
                {"_target_": "RandZoomd", "keys": "reals", "prob": 0.5},
            ],
        },
        "real_dataset": {
            "_target_": "CacheDataset",
            "data": "$[{'reals': path} for path in sorted(glob.glob(@dataset_dir + '/*.png'))]",
            "transform": "@preprocessing",
            "progress": False,
        },
        "real_dataloader": {"_target_": "DataLoader", "dataset": "@real_dataset", "batch_size": 20, "shuffle": True},
        "handlers": [RECORD | {"output_transform": "$lambda output: output['g_loss']"}],
        "trainer": {
            "_target_": "GanTrainer",
            "device": "@device",
            "max_epochs": 3,
            "train_data_loader": "@real_dataloader",
            "g_network": "@gnetwork",
            "g_optimizer": {"_target_": "torch.optim.Adam", "params": "$@gnetwork.parameters()"},
            "g_loss_function": "$lambda fakes: -torch.log(torch.sigmoid(@dnetwork(fakes))).mean()",
            "d_network": "@dnetwork",
            "d_optimizer": {"_target_": "torch.optim.Adam", "params": "$@dnetwork.parameters()"},
            "d_loss_function": "$lambda fakes, reals: (@dnetwork(fakes.detach()) - @dnetwork(reals)).mean()",
            "latent_shape": "@latent_size",
            "key_train_metric": "$None",
            "train_handlers": "@handlers",
        },
        "training": ["$monai.utils.set_determinism(0)", "$@trainer.run()"],
    }
    write(folder, "train.json", config)
    inference = {key: config[key] for key in ("imports", "bundle_root", "device", "latent_size")} | {
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "network": config["gnetwork"],
        "inferring": ["$@network(torch.rand(1, @latent_size))"],
    }
    write(folder, "inference.json", inference)
    return folder


def images_and_masks(folder: Path, images: Path) -> Path:
    """Inference alone, whose sampler writes as many images as asked for, with masks among them."""
    inference = {
        "imports": ["$from pathlib import Path"],
        "bundle_root": str(folder),
        "output_dir": "$@bundle_root + '/output'",
        "create_output_dir": "$Path(@output_dir).mkdir(exist_ok=True)",
        "num_output_samples": 1,
        "image_output_ext": ".nii.gz",
        "label_output_ext": ".nii.gz",
        "ldm_sampler": {
            "_target_": "foreign_bundles.PairSampler",
            "_requires_": ["@create_output_dir"],
            "images": str(images),
            "output_dir": "@output_dir",
            "image_output_ext": "@image_output_ext",
            "label_output_ext": "@label_output_ext",
        },
        "run": ["$@ldm_sampler.sample_multiple_images(@num_output_samples)"],
        "evaluator": None,
    }
    write(folder, "inference.json", inference)
    return folder


def write(folder: Path, name: str, config: dict[str, Any]) -> None:
    path = folder / "configs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config) if path.suffix == ".json" else yaml.safe_dump(config, sort_keys=False))
