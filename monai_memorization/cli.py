# SPDX-License-Identifier: Apache-2.0
"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from monai_memorization.errors import InputError, one_line
from monai_memorization.version import __version__

# each command imports what it needs: torch and MONAI take seconds to load, which --help and `gate` can save


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0, or 2 for bad input or usage, or 130 where Ctrl-C stopped it, both with one line on standard error. `gate` returns
    1 where the policy is broken and 3 where that is not known. Python itself exits with 1 after a crash.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # what it calls an error is raised too
    options = vars(parser().parse_args(arguments))

    from monai_memorization.ranks import speaks

    command, verbose = options.pop("command"), options.pop("verbose")
    level = (logging.DEBUG if verbose else logging.INFO) if speaks() else logging.WARNING
    logging.getLogger("monai_memorization").setLevel(level)
    try:
        status: int | None = command(**options)
    except InputError as error:
        print(one_line(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if speaks():
            # the others start anew: `release` draws again, `demo` trains again
            goes_on = "; the same command goes on where it stopped" if command is _audit else ""
            print(f"monai-memorization: stopped{goes_on}", file=sys.stderr)
        return 130
    return status or 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the options of `audit` are the arguments of `auditing.audit`."""
    main_parser = _Parser("monai-memorization", description="Audit synthetic medical images for copies of patients.")
    main_parser.add_argument("--version", action="version", version=__version__)
    main_parser.add_argument("--verbose", action="store_true", help="say how long each stage takes, and more")
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train, sample and audit on a virtual brain-MR cohort, about 10 minutes")
    demo.add_argument("--output-dir", type=Path, default=Path("demo_output"), help="folder for the results")
    demo.add_argument("--3d", dest="volumes", action="store_true", help="with volumes, about 15 minutes")
    demo.set_defaults(command=_demo)

    divide = commands.add_parser("split", help="divide images by patient into a training and a validation set")
    divide.add_argument("images", type=Path, help="folder, CSV or MONAI data list")
    divide.add_argument("--output-dir", type=Path, required=True, help="folder for training.csv and validation.csv")
    divide.add_argument("--share", type=float, default=0.2, help="share of the patients for validation (default: 0.2)")
    divide.add_argument("--seed", type=int, default=0, help="of the random order (default: 0)")
    divide.set_defaults(command=_split)

    auditor = commands.add_parser("audit", help="find copies of training images among synthetic images")
    for role, text in _ROLES.items():
        auditor.add_argument(f"--{role}", type=Path, required=role != "validation", help=text)
    auditor.add_argument("--output-dir", type=Path, required=True, help="folder for the report")
    auditor.add_argument("--encoder", type=Path, help="weights (.pt); without it an encoder is trained first and kept")
    auditor.add_argument(
        "--reconstructed-validation", type=Path, help="the validation images through the generator's autoencoder"
    )
    auditor.add_argument(
        "--reconstructed-training",
        type=Path,
        help="training images, all or some, through the generator's autoencoder: copies that the audit has to find",
    )
    auditor.add_argument(
        "--monitoring", type=Path, help="monitoring.csv of a watched training; its validation patients are left out"
    )
    auditor.add_argument("--alpha", type=float, default=0.05, help="level of the copy candidates (default: 0.05)")
    auditor.add_argument("--q", type=float, default=0.05, help="level of the FDR list (default: 0.05)")
    auditor.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    auditor.add_argument("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    auditor.add_argument("--gallery", action="store_true", help="write gallery.html, which shows patient images")
    auditor.add_argument("--skip-unreadable", action="store_true", help="go on without images that cannot be read")
    auditor.add_argument("--n-plants", type=int, default=16, help="images copied in the power test (default: 16)")
    auditor.add_argument(
        "--cache-dir",
        type=Path,
        help="where encoder and embeddings are kept, for audits of one training set (default: the output folder)",
    )
    auditor.add_argument(
        "--fidelity", action="store_true", help="measure how like the real images the set is as a whole"
    )
    _add_clip(auditor)
    auditor.set_defaults(command=_audit)

    sieve = commands.add_parser("filter", help="write an audited set without the images that the audit suspects")
    sieve.add_argument("audit_dir", type=Path, help="folder of the finished audit")
    sieve.add_argument("--synthetic", type=Path, required=True, help="the set that was audited, as it was given then")
    sieve.add_argument("--output-dir", type=Path, required=True, help="new folder for synthetic.json and the images")
    sieve.add_argument(
        "--list",
        dest="suspicion",
        choices=("candidates", "fdr"),
        default="candidates",
        help="leave out candidates and the FDR list (default), or that list alone; near-identical images always go",
    )
    sieve.set_defaults(command=_filter)

    releaser = commands.add_parser("release", help="draw until enough images pass, then judge them by another detector")
    releaser.add_argument("configs", type=Path, nargs="+", help="inference config of a MONAI bundle, and overrides")
    releaser.add_argument("--n", type=int, required=True, help="images wanted")
    for role in ("training", "validation"):
        releaser.add_argument(f"--{role}", type=Path, required=True, help=_ROLES[role])
    releaser.add_argument("--output-dir", type=Path, required=True, help="new folder for what may be handed out")
    releaser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        type=_override,
        help="keys of the config, such as model_dir=models",
    )
    releaser.add_argument("--work-dir", type=Path, help="folder for what stays inside (default: OUTPUT_DIR_work)")
    releaser.add_argument("--limit", type=int, help="most images drawn (default: ten times those wanted)")
    releaser.add_argument("--policy", type=Path, help="of the gate; YAML file")
    releaser.add_argument("--encoder", type=Path, help="weights of the encoder that filters; without it one is trained")
    releaser.add_argument("--judge", type=Path, help="weights of the encoder that judges; without it one is trained")
    for option in ("--reconstructed-validation", "--reconstructed-training", "--monitoring"):
        releaser.add_argument(option, type=Path, help="as for audit")
    releaser.add_argument("--alpha", type=float, default=0.05, help="level of both audits (default: 0.05)")
    releaser.add_argument("--q", type=float, default=0.05, help="level of their FDR lists (default: 0.05)")
    releaser.add_argument("--seed", type=int, default=0, help="of everything but the images (default: 0)")
    releaser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    releaser.add_argument("--skip-unreadable", action="store_true", help="go on without images that cannot be read")
    _add_clip(releaser)
    releaser.set_defaults(command=_release)

    gatekeeper = commands.add_parser("gate", help="hold a report against a policy; exit 0 pass, 1 fail, 3 inconclusive")
    gatekeeper.add_argument("report", type=Path, help="report.json, or the folder of the audit")
    gatekeeper.add_argument("--policy", type=Path, help="YAML file; what it leaves out keeps the default")
    gatekeeper.add_argument("--print-policy", action=_PrintPolicy, nargs=0, help="print the default policy and stop")
    gatekeeper.set_defaults(command=_gate)

    comparer = commands.add_parser("compare", help="put two reports on one page, before and after a change")
    comparer.add_argument("before", type=Path, help="report.json of one audit, or its folder")
    comparer.add_argument("after", type=Path, help="report.json of the other, or its folder")
    comparer.add_argument("--output-dir", type=Path, required=True, help="folder for compare.html")
    comparer.set_defaults(command=_compare)
    injector = commands.add_parser("inject", help="write the config that watches the training of a MONAI bundle")
    injector.add_argument("bundle_dir", type=Path, help="folder of the bundle; nothing in it is changed or run")
    injector.add_argument("--output", type=Path, required=True, help="YAML file to write")
    injector.add_argument("--config", help="file of the training in configs (default: train_diffusion or train)")
    injector.set_defaults(command=_inject)
    return main_parser


def _add_clip(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--clip",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="cut all images off at these intensities first: the range in Hounsfield units of a generator of CT",
    )


_ROLES = {
    "training": "images that the generator was trained on: folder, CSV or MONAI data list",
    "validation": "images of other patients from the same source, seen by neither generator nor encoder",
    "synthetic": "images drawn from the generator",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong on one line, without the usage text."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help shows the options\n")


class _PrintPolicy(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print the default policy and leave, whatever else is missing, as --version does."""
        from monai_memorization.gating import default_policy

        print(default_policy(), end="")
        parser.exit()


def _demo(output_dir: Path, volumes: bool) -> None:
    from monai_memorization.demo import VOLUMES, run_demo  # needs the extra `demo`, as no other command does

    run_demo(output_dir, VOLUMES if volumes else None)


def _split(images: Path, output_dir: Path, share: float, seed: int) -> None:
    from monai_memorization.images.division import split, write_division
    from monai_memorization.images.sets import read_image_set
    from monai_memorization.statistics.conformal import n_patients_needed

    sides = split(read_image_set(images, "images"), share, seed)
    lists = write_division(sides, output_dir, images)
    for path, side in zip(lists, sides, strict=True):
        print(f"{path}: {len(side)} images of {side.n_patients} patients")
    if not sides[0].has_patients:
        print("Patients are not known, so images of one patient may be on both sides; list them in a CSV if you can.")
    if sides[1].n_patients < (needed := n_patients_needed(0.05)):  # the default of an audit
        print(
            f"validation: {sides[1].n_patients} patients, but alpha 0.05 needs at least {needed}: an audit cannot flag "
            "any image. Give a larger --share, or more patients."
        )


def _audit(output_dir: Path, **options: Any) -> None:
    from monai_memorization.auditing import audit
    from monai_memorization.ranks import say
    from monai_memorization.reporting.sentences import verdict_line

    report = audit(output_dir=output_dir, **options)
    say(verdict_line(report))
    say(f"Report: {output_dir / 'report.html'}")


def _filter(**options: Any) -> None:
    from monai_memorization.filtering import filter_synthetic

    done = filter_synthetic(**options)
    unread = f", {done.n_unread} that could not be read" if done.n_unread else ""
    print(f"{done.data_list}: {done.n_kept} images kept, {done.n_dropped} left out{unread}")
    print("Copies that the audit overlooked are still among them; `release` judges what is left.")


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"found {text!r}; give KEY=VALUE")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"found {text!r}, whose value is not YAML; give KEY=VALUE") from None


def _release(configs: list[Path], overrides: list[tuple[str, Any]], output_dir: Path, n: int, **options: Any) -> int:
    from monai_memorization.gating import EXIT_STATUS
    from monai_memorization.generation.draws import BundleDraw
    from monai_memorization.releasing import release

    done = release(BundleDraw(configs, dict(overrides)), n, output_dir=output_dir, **options)
    if done.decision is None:
        print(f"Gave up after {done.n_drawn} images: {done.n_passed} passed, {n} were wanted. Nothing was released.")
        return EXIT_STATUS["fail"]
    print(f"{done.decision}\n{n} images wanted, {done.n_drawn} drawn; {done.n_passed} passed the filter.")
    print(f"Released: {output_dir}" if done.written else "Not released, as the gate does not let the images pass.")
    print(f"Report: {output_dir / 'report.html'}")
    return EXIT_STATUS[done.decision.status]


def _gate(report: Path, policy: Path | None, print_policy: None) -> int:
    from monai_memorization.gating import EXIT_STATUS, gate

    decision = gate(report, policy)
    print(decision)
    return EXIT_STATUS[decision.status]


def _compare(before: Path, after: Path, output_dir: Path) -> None:
    from monai_memorization.reporting.pages import write_comparison_page
    from monai_memorization.reporting.reading import read_report

    write_comparison_page(read_report(before), read_report(after), output_dir / "compare.html")
    print(f"Comparison: {output_dir / 'compare.html'}")


def _inject(bundle_dir: Path, output: Path, config: str | None) -> None:
    from monai_memorization.injection import inject

    found = inject(bundle_dir, output, config)
    print(f"{bundle_dir}: {found.family}, trained by {' and '.join(found.configs)}")
    for line in found.missing:
        print(f"Not found: {line}")
    for path in found.files:
        print(f"{path}: lay it over the configs of the bundle as the comment in it shows")
    print("Configs are code: MONAI executes them. Do so only with a bundle that you trust.")


if __name__ == "__main__":
    sys.exit(main())
