# SPDX-License-Identifier: Apache-2.0
"""Validation patients that steered a training: chosen alike in every run, left out of the final audit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from monai_memorization.auditing import audit
from monai_memorization.errors import InputError
from monai_memorization.generation.draws import SamplerDraw
from monai_memorization.images.monitored import (
    choose_monitored,
    leave_out_monitored,
    warn_of_forgotten,
    write_monitored,
)
from monai_memorization.images.sets import ImageSet, read_image_set
from monai_memorization.releasing import release


def image_set(n: int, per_patient: int = 2, role: str = "validation") -> ImageSet:
    names = tuple(f"{i:03}.png" for i in range(n))
    patients = tuple(f"p{i // per_patient}" for i in range(n))
    return ImageSet(role, names, tuple(map(Path, names)), patients, None, True)


@pytest.mark.parametrize(("share", "n"), [(0.5, 20), (0.25, 10), (1, 40)])
def test_share_is_of_patients_and_the_choice_is_the_seeds(share, n):
    chosen = [choose_monitored(image_set(80), share, seed) for seed in (0, 0, 1)]
    assert [images.n_patients for images in chosen] == [n] * 3
    assert [len(images) for images in chosen] == [2 * n] * 3
    assert chosen[0] == chosen[1]
    assert (chosen[0] == chosen[2]) is (share == 1)


def test_all_images_of_a_monitored_patient_are_left_out(tmp_path):
    validation = image_set(80)
    monitored = choose_monitored(validation, 0.5, 0)
    write_monitored(monitored, tmp_path)
    others = {role: image_set(3, role=role) for role in ("training", "synthetic")}
    # one file of each patient is enough to know the patient by
    lines = (tmp_path / "monitoring.csv").read_text().splitlines()
    (tmp_path / "monitoring.csv").write_text("\n".join([lines[0], *lines[1::2]]))

    reconstructed = replace(validation, role="reconstructed_validation", image_ids=tuple(f"r{i}" for i in range(80)))
    sets = {"validation": validation, "reconstructed_validation": reconstructed, **others}
    kept = leave_out_monitored(sets, tmp_path / "monitoring.csv")

    assert set(kept["validation"].patient_ids) == set(validation.patient_ids) - set(monitored.patient_ids)
    assert kept["reconstructed_validation"].patient_ids == kept["validation"].patient_ids
    assert {role: kept[role] for role in others} == others


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", ["audit", "release"])
def test_who_forgets_the_file_beside_the_encoder_is_told(
    training_folder, validation_folder, tmp_path, caplog, name, given
):
    (watch := tmp_path / "watch").mkdir()
    write_monitored(choose_monitored(read_image_set(validation_folder, "validation"), 0.5, 0), watch)
    run = {"audit": partial(audit, synthetic=training_folder), "release": partial(release, SamplerDraw(print), 1)}[name]

    with pytest.raises(InputError, match=r"model\.pt does not exist"):  # the first thing that is missing after it
        run(
            training=training_folder,
            validation=validation_folder,
            output_dir=tmp_path / "out",
            encoder=watch / "encoder" / "model.pt",
            monitoring=watch / "monitoring.csv" if given else None,
        )

    told = [message for message in caplog.messages if message.startswith("monitoring: none given")]
    assert len(told) == (not given)
    assert given or str(watch / "monitoring.csv") in told[0]


@pytest.mark.parametrize("content", ["image_id\nof_another_set.png\n", "image_id\n039.png\n", "no table of ours", None])
def test_file_beside_the_encoder_is_told_of_only_if_it_names_images_that_judge(tmp_path, caplog, content):
    if content is not None:
        (tmp_path / "monitoring.csv").write_text(content)

    warn_of_forgotten(tmp_path / "encoder" / "model.pt", image_set(40))

    assert len(caplog.messages) == (content is not None and "039" in content)


def test_bad_file_is_named(tmp_path):
    validation = image_set(40)
    file = tmp_path / "monitoring.csv"
    sets = {"validation": validation}
    with pytest.raises(InputError, match=r"monitoring: .*monitoring.csv cannot be read .* one column, image_id"):
        leave_out_monitored(sets, file)
    file.write_text("image\n000.png\n")
    with pytest.raises(InputError, match=r"cannot be read as the monitoring.csv of a training"):
        leave_out_monitored(sets, file)
    file.write_text("image_id\n000.png\nother.png\n")
    with pytest.raises(InputError, match=r"1 images of .* not in the validation set, such as other.png; give"):
        leave_out_monitored(sets, file)
    write_monitored(validation, tmp_path)
    with pytest.raises(InputError, match="names every patient of the validation set"):
        leave_out_monitored(sets, file)
