# SPDX-License-Identifier: Apache-2.0
"""A virtual brain-MR cohort: data for the demo and the tests that belong to no patient.

Each subject is the ICBM 152 template, deformed, recoloured and scanned at random; nothing is downloaded. The template
is the ICBM 152 2009a nonlinear symmetric average with its grey- and white-matter maps, copyright McConnell Brain
Imaging Centre, Montreal Neurological Institute, McGill University, as shipped inside nilearn. Whoever shows an image
of the cohort cites, as nilearn's documentation of the template asks:

- Fonov et al. 2011, "Unbiased average age-appropriate atlases for pediatric studies", NeuroImage 54(1):313-327.
- Fonov et al. 2009, "Unbiased nonlinear average age-appropriate brain templates from birth to adulthood", NeuroImage
  47, supplement 1:S102.
- Collins et al. 1999, "ANIMAL+INSECT: improved cortical structure segmentation", IPMI 1999, 210-223.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path

import nibabel
import numpy as np
import torch
from nibabel.affines import apply_affine
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor

from monai_memorization.errors import InputError
from monai_memorization.files import write_text
from monai_memorization.progress import progress

FIELD_OF_VIEW = 205.0  # mm along the longest side of an image
CENTRE = np.array([0.0, -17.0, 5.0])  # mm, the middle of the brain in template space
SLICE_RANGE = (-5.0, 40.0)  # mm above the anterior commissure: from the basal ganglia to above the ventricles

Array = NDArray[np.float64]


def virtual_subject(seed: int, image_size: Sequence[int], scan: int = 0) -> Tensor:
    """Draw one scan of one virtual subject.

    Args:
        seed: the subject: shape of the brain, tissue contrast and, in 2D, height of the axial slice.
        image_size: (H, W) for an axial slice, front up, or (X, Y, Z) for a volume in RAS order, in voxels.
        scan: number of the scan of this subject: noise, bias field, slight rotation and shift differ between scans.

    Returns:
        Image of shape (1, *image_size), float32 in [0, 1].

    Raises:
        InputError: ``image_size`` has not two or three sides, or nilearn is not installed.
    """
    if len(image_size) not in (2, 3):
        raise InputError(
            f"image_size: found {tuple(image_size)}, but the cohort has images of two or three dimensions."
        )
    voxel = FIELD_OF_VIEW / max(image_size)
    anatomy, acquisition = np.random.default_rng((1, seed)), np.random.default_rng((2, seed, scan))
    points = _deformed(_moved(_grid(image_size, voxel, anatomy), acquisition), anatomy)
    image = _contrast(_tissues(points, voxel), anatomy)
    return torch.from_numpy(_scanned(image, points, acquisition).reshape(1, *image_size).astype(np.float32))


def write_cohort(
    folder: Path,
    n_training: int,
    n_validation: int,
    image_size: Sequence[int] = (64, 64),
    seed: int = 0,
    rescanned_share: float = 0.125,
) -> tuple[Path, Path]:
    """Write a cohort: PNG files (2D) or NIfTI files (3D), training.csv and validation.csv.

    The CSVs have the columns ``image`` (relative to the folder) and ``patient_id``. No subject is in both.

    Args:
        folder: where to write; created if missing.
        n_training: number of training images.
        n_validation: number of validation images.
        image_size: as in `virtual_subject`.
        seed: cohorts of different seeds share no subject.
        rescanned_share: share of the subjects of each set that have two scans.

    Returns:
        Paths of training.csv and validation.csv.

    Raises:
        InputError: as `virtual_subject`.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    subjects = count()
    tables = folder / "training.csv", folder / "validation.csv"
    for table, n_images in zip(tables, (n_training, n_validation), strict=True):
        scans_of = {next(subjects): n_scans for n_scans in _scans_per_subject(n_images, rescanned_share)}
        rows = _write_images(folder, scans_of, image_size, seed)
        write_text(table, "\n".join(["image,patient_id", *rows, ""]))
    return tables


def _scans_per_subject(n_images: int, rescanned_share: float) -> list[int]:
    """Twos, then ones, that add up to the number of images."""
    n_rescanned = int(n_images * rescanned_share / (1 + rescanned_share))
    return [2] * n_rescanned + [1] * (n_images - 2 * n_rescanned)


def _write_images(folder: Path, scans_of: dict[int, int], image_size: Sequence[int], seed: int) -> list[str]:
    """Write so many scans of each subject; return the rows of the table."""
    ending = "png" if len(image_size) == 2 else "nii.gz"
    rows = []
    with progress(sum(scans_of.values()), "Virtual subjects") as bar:
        for subject, scan in ((subject, scan) for subject, n_scans in scans_of.items() for scan in range(n_scans)):
            file = f"images/subject{subject:05d}_scan{scan}.{ending}"
            _write_image(virtual_subject(seed * 1_000_000 + subject, image_size, scan), folder / file)
            rows.append(f"{file},subject{subject:05d}")
            bar.update()
    return rows


def _write_image(image: Tensor, path: Path) -> None:
    values = image[0].mul(255).round().byte().numpy()
    if values.ndim == 2:
        Image.fromarray(values).save(path)
    else:
        voxel = FIELD_OF_VIEW / max(values.shape)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([voxel, voxel, voxel, 1.0])), path)


def _grid(image_size: Sequence[int], voxel: float, anatomy: Generator) -> Array:
    """Scanner coordinates in mm of all voxels, (N, 3); in 2D, those of a slice whose height belongs to the subject."""
    sides = [(np.arange(n) - (n - 1) / 2) * voxel for n in image_size]
    height = anatomy.uniform(*SLICE_RANGE)
    if len(image_size) == 2:
        sides = [sides[1], -sides[0], np.array([height - CENTRE[2]])]
        return np.stack(np.meshgrid(*sides, indexing="xy"), axis=-1).reshape(-1, 3)
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 3)


def _moved(points: Array, acquisition: Generator) -> Array:
    """The head lies a little differently in the scanner each time: degrees and mm, standard deviations."""
    rotation = Rotation.from_euler("xyz", acquisition.normal(scale=(0.7, 0.7, 1.5)), degrees=True)
    return rotation.apply(points) + acquisition.normal(scale=0.7, size=3)


def _deformed(points: Array, anatomy: Generator) -> Array:
    """Template coordinates in mm of scanner coordinates: size and proportions, shape of the brain, course of gyri."""
    points = points * anatomy.normal(1.0, 0.05, size=3)
    shape = np.stack([4.0 * _smooth_field(points, 50.0, anatomy) for _ in range(3)], axis=-1)
    gyri = np.stack([2.2 * _smooth_field(points, 14.0, anatomy) for _ in range(3)], axis=-1)
    return points + shape + gyri + CENTRE


def _smooth_field(points: Array, length: float, random: Generator, n_waves: int = 32) -> Array:
    """Gaussian random field of unit variance and correlation length ``length`` in mm, at any points (N, 3).

    Random Fourier features (Rahimi and Recht 2007, "Random features for large-scale kernel machines", section 3.1):
    sqrt(2 / n) times the sum of cos(w . x + b), w normal with deviation 1 / length, b uniform.
    """
    frequencies = random.normal(scale=1 / length, size=(3, n_waves))
    phases = random.uniform(0, 2 * np.pi, size=n_waves)
    return np.sqrt(2 / n_waves) * np.cos(points @ frequencies + phases).sum(axis=1)


@lru_cache(maxsize=2)
def _template(blur: float) -> tuple[tuple[NDArray[np.float32], ...], Array]:
    """T1, grey- and white-matter maps in [0, 1], blurred against aliasing (mm), and their affine."""
    try:
        from nilearn import datasets
    except ModuleNotFoundError as error:
        raise InputError(
            "nilearn: not installed, but the virtual cohort is made from the template that it ships. "
            "Install it with: pip install 'monai-memorization[demo]'"
        ) from error
    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    images = [load(resolution=1) for load in loaders]
    maps = tuple(gaussian_filter(image.get_fdata(dtype=np.float32), blur) for image in images)
    return maps, images[0].affine


def _tissues(points: Array, voxel: float) -> Array:
    """T1, grey- and white-matter maps at template coordinates (N, 3) in mm, as (3, N)."""
    maps, affine = _template(0.4 * voxel)
    indices = apply_affine(np.linalg.inv(affine), points).T
    return np.stack([map_coordinates(values, indices, order=1) for values in maps]).astype(np.float64)


def _contrast(tissues: Array, anatomy: Generator) -> Array:
    """T1-like image in about [0, 1]: the template's own intensities mixed with a random brightness per tissue."""
    t1, grey, white = tissues
    fluid = np.clip(t1 / 0.2, 0, 1) * np.clip(1 - grey - white, 0, 1)
    painted = fluid * anatomy.uniform(0.05, 0.3) + grey * anatomy.uniform(0.4, 0.65) + white * anatomy.uniform(0.7, 0.9)
    share = anatomy.uniform(0.3, 0.8)
    return (share * painted + (1 - share) * t1) ** anatomy.uniform(0.8, 1.25)


def _scanned(image: Array, points: Array, acquisition: Generator) -> Array:
    """Bias field and Rician noise, as the magnitude of a complex MR signal has it."""
    image = image * np.exp(0.1 * _smooth_field(points, 70.0, acquisition))
    noise = acquisition.normal(scale=acquisition.uniform(0.01, 0.03), size=(2, image.size))
    return np.clip(np.hypot(image + noise[0], noise[1]), 0, 1)
