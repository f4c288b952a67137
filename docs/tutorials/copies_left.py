# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Your audit found copies. What does a filter leave?
#
# The quickest remedy is to leave the suspects out. This tutorial shows what that is worth, on a set in which every copy
# is known: a filter takes out what its own audit sees, that audit finds nothing afterwards, and copies are left all the
# same. Another detector with other validation patients sees hardly more of them, so that no audit of what a filter left
# concludes. It goes on from
# [An audit whose answer is known](known_copies.ipynb), runs in about three minutes on one CPU core, and needs
# `pip install 'monai-memorization[demo]'`.

# %%
import json
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from PIL import Image

from monai_memorization import audit, filter_synthetic, gate, read_image_set, save_encoder, train_encoder
from monai_memorization.detector.degradations import blur, elastic, noise, shift, turn
from monai_memorization.images.cohort import write_cohort
from monai_memorization.images.division import split
from monai_memorization.images.prepared import prepared_images
from monai_memorization.images.sets import write_image_set

folder = Path(mkdtemp())

# %% [markdown]
# ## The sets
#
# 60 virtual brains are the training set. 400 of other subjects are divided, by patient, into the validation set of the
# filter and that of the judge: a judge that looks at the images that chose the filter's threshold knows no more than it
# does.

# %%
size = (48, 48)
training, others = write_cohort(folder / "cohort", 60, 400, size, seed=0)
halves = split(read_image_set(others, "validation"), share=0.5)
for name, half in zip(("filter", "judge"), halves, strict=True):
    write_image_set(half, folder / f"{name}.csv")
images = prepared_images(training, size)
print(len(images), "training images;", *(f"{len(half)} validation images" for half in halves))

# %% [markdown]
# ## A synthetic set with easy and hard copies
#
# 120 honest images, 30 copies that are blurred, shifted and turned a little, and 30 that are bent and noisy besides: a
# copy as a generator with a rough autoencoder makes it.

# %%
_, strangers = write_cohort(folder / "strangers", 2, 120, size, seed=1)
random = torch.Generator().manual_seed(0)


def alter(training_images: torch.Tensor) -> torch.Tensor:
    """Bend, blur, shift and turn images, and add noise."""
    moved = turn(shift(blur(training_images, 0.025), 0.04), 5.0)
    return noise(elastic(moved, 0.025, random), 0.06, random).clamp(0, 1)


def write(group: torch.Tensor, names: list[str], output: Path) -> None:
    """Write images as PNG."""
    output.mkdir(exist_ok=True)
    for image, name in zip(group, names, strict=True):
        Image.fromarray((image[0].numpy() * 255).round().astype(np.uint8)).save(output / name)


easy = turn(shift(blur(images.pixels[:30].float(), 0.01), 0.02), 2.0)
hard = alter(images.pixels[30:].float())
honest = prepared_images(strangers, size).pixels.float()
synthetic = folder / "synthetic"
for name, group in (("honest", honest), ("easy", easy), ("hard", hard)):
    write(group, [f"{name}_{i:03}.png" for i in range(len(group))], synthetic)


# %% [markdown]
# ## The audit, and the gate
#
# The gate holds the report against a policy, here the default one, and says what stops the set.


# %%
def detector(name: str, seed: int) -> Path:
    """Train a detector on the training set, in few steps."""
    path = folder / name / "model.pt"
    save_encoder(train_encoder(images, n_steps=200, batch_size=60, seed=seed), path)
    return path


def tell(report: dict) -> None:
    """Print what an audit says."""
    calibrated = report["calibrated"]
    low, high = calibrated["copy_rate_ci"]
    verdict = report["verdict"]
    print(f"verdict: {verdict['status']} ({', '.join(verdict['reasons'])}), copy candidates: {calibrated['n_copies']}")
    print(f"copy rate: {calibrated['copy_rate']:.2f}, 95 % interval {low:.2f} to {high:.2f}")


first = detector("filter_encoder", seed=0)
tell(audit(training, folder / "filter.csv", synthetic, folder / "audit", encoder=first))
print("gate:", gate(folder / "audit").status, "because of", ", ".join(gate(folder / "audit").decided_by))

# %% [markdown]
# ## The filter
#
# `monai-memorization filter` does the same from the command line. Honest images go with the copies: one in twenty, at
# the level of 5 %.

# %%
filtered = filter_synthetic(folder / "audit", synthetic, folder / "clean")
kept = [Path(item["image"]).name for item in json.loads(filtered.data_list.read_text())["synthetic"]]
left = {name: sum(file.startswith(name) for file in kept) for name in ("easy", "hard")}
n_copies_left = left["easy"] + left["hard"]
print(f"kept {filtered.n_kept} images, left {filtered.n_dropped} out")
print(f"copies left: {left['easy']} easy, {left['hard']} hard, {n_copies_left / len(kept):.0%} of the set")

# %% [markdown]
# ## The filter's own audit finds nothing
#
# It has to: what it sees was taken out. This is no evidence of anything. The filter's data list says that it is one, so
# the audit does not conclude.

# %%
again = audit(training, folder / "filter.csv", filtered.data_list, folder / "again", encoder=first)
tell(again)

# %% [markdown]
# ## Another detector, other patients
#
# The judge has weights of its own and validation patients that the filter never saw.

# %%
second = detector("judge_encoder", seed=1)
tell(audit(training, folder / "judge.csv", filtered.data_list, folder / "judged", encoder=second))
print("gate:", gate(folder / "judged").status)

# %% [markdown]
# It flags hardly more images than chance would: the interval ends below what is left, and begins at nothing. It knows
# that it was given what a filter left, and does not conclude either. The reason is in the power test. An audit plants
# copies as generators usually alter them, and found most of those. What passes a filter is altered more.
#
# ## Show the audit what copies of your generator look like
#
# A generator with an autoencoder copies through it. Give the audit training images that went through it, here bent and
# noisy ones, and it plants them too.

# %%
write(alter(images.pixels.float()), [path.name for path in images.images.paths], folder / "reconstructed")
shown = audit(
    training,
    folder / "judge.csv",
    filtered.data_list,
    folder / "shown",
    encoder=second,
    reconstructed_training=folder / "reconstructed",
)
tell(shown)
(recall,) = {power["recall"] for power in shown["power"] if power["family"] == "autoencoder"}
print(f"of the copies that went through the autoencoder it finds {recall:.0%}")

# %% [markdown]
# Now there is a second reason, `low_power`. A verdict rests on the kind of copies that the audit finds least, and of
# those that this generator makes half and more go unseen: "no copies found" would be no answer for them, of a set that
# no filter has seen either.
#
# ## What to take from it
#
# - A filtered set that its own filter finds clean is no evidence, and another detector's audit alone is little more.
# - `monai-memorization release` draws, filters, and has a judge with half of the validation patients state what may be
#   left, in one command: by how many of the planted copies that pass the filter the judge finds. That concludes.
# - Show every audit what copies of your generator look like.
# - A model that copies most of the time is better trained anew: "Your audit found copies: what now?" of the
#   documentation has the remedies in the order of what they cost.
