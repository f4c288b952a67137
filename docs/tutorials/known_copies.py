# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # An audit whose answer is known
#
# Before you trust an audit, give it a set in which you know the copies. This tutorial makes one from virtual brains:
# honest images of new subjects, and altered images of training subjects among them. It runs in about a minute on one
# CPU core, and needs `pip install 'monai-memorization[demo]'`.

# %%
import csv
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from PIL import Image

from monai_memorization import audit, read_image_set, save_encoder, train_encoder
from monai_memorization.detector.degradations import blur, shift, turn
from monai_memorization.images.cohort import write_cohort
from monai_memorization.images.prepared import prepared_images

folder = Path(mkdtemp())

# %% [markdown]
# ## The sets
#
# `write_cohort` makes subjects with brains of their own. 60 images are the training set and 200 of other subjects the
# validation set. 75 of yet others play the honest part of the synthetic set, as a generator would draw them that has
# learned the anatomy and copies nobody: another seed makes other subjects.

# %%
size = (48, 48)
training, validation = write_cohort(folder / "cohort", 60, 200, size, seed=0)
_, strangers = write_cohort(folder / "strangers", 2, 75, size, seed=1)
honest = prepared_images(strangers, size).pixels.float()
images = prepared_images(training, size)
print(
    len(images),
    "training images,",
    len(read_image_set(validation, "validation")),
    "for validation,",
    len(honest),
    "honest",
)

# %% [markdown]
# ## The copies
#
# 25 training images, blurred, shifted and turned a little. No pixel is the same, but the subject is.

# %%
copies = turn(shift(blur(images.pixels[:25].float(), 0.01), 0.02), 2.0)
synthetic = folder / "synthetic"
synthetic.mkdir()
for name, group in (("honest", honest), ("copy", copies)):
    for i, image in enumerate(group):
        pixels = (image[0].numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(synthetic / f"{name}_{i:03}.png")

# %% [markdown]
# ## The detector
#
# It is trained on the training set only: an altered view of an image is to be like that image, and unlike all others.
# The default is 3,000 steps; 200 are enough for these images.

# %%
encoder = train_encoder(images, n_steps=200, batch_size=60)
save_encoder(encoder, folder / "encoder" / "model.pt")

# %% [markdown]
# ## The audit

# %%
report = audit(training, validation, synthetic, folder / "audit", encoder=folder / "encoder" / "model.pt")
calibrated = report["calibrated"]
print("verdict:", report["verdict"]["status"])
print(f"copy candidates: {calibrated['n_copies']}, of which {calibrated['expected_false_copies']:.0f} by chance")
print(f"copy rate: {calibrated['copy_rate']:.2f}, 95 % interval {calibrated['copy_rate_ci']}; true: {25 / 100}")

# %% [markdown]
# ## Was it right?
#
# `pairs.csv` names each synthetic image with its nearest training image. Here we know the truth.

# %%
with (folder / "audit" / "pairs.csv").open(newline="", encoding="utf-8") as file:
    pairs = list(csv.DictReader(file))
listed = [pair for pair in pairs if pair["in_fdr_list"] == "True"]
found = [pair for pair in listed if pair["synthetic_id"].startswith("copy")]
whose = {pair["synthetic_id"]: images.images.patient_ids[int(pair["synthetic_id"][5:8])] for pair in found}
right = sum(pair["training_patient_id"] == whose[pair["synthetic_id"]] for pair in found)
print(f"the list has {len(listed)} images; {len(found)} of the 25 copies are on it, {right} beside their own subject")

# %% [markdown]
# ## What to take from it
#
# The interval of the copy rate holds the truth. The list finds most copies beside their own subject, and has a few
# honest images on it: its level, 5 %, holds on average over audits, so one list may have more errors and another none.
# Nothing was tuned to this set. Alter the copies more, take fewer validation images, or plant no copy at all, and see
# what the report says then.
