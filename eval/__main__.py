"""Measures a finished run and shows it.

    python -m eval --config configs/eval/tiny.yaml --out RUN/eval --set run=RUN

Writes RUN/metrics.json and RUN/report.html; its own folder keeps the judge, the samples and single scores.
`python -m eval judge` judges folders of any system's outputs, `python -m eval compare` sets such runs side by
side.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from encoder.model import AnyAutoencoder, load_encoder
from eval import compare, judging
from eval.generation import evaluate_generation
from eval.judge import JudgeConfig, NoJudge, make_judge
from eval.reconstruction import ReconstructionConfig, evaluate_reconstruction
from eval.report import Folders, ReportConfig, build_report
from eval.samples import GenerationConfig, Sampler, pipeline_sampler
from sampling.pipeline import Parts, ShapePipeline
from shapeloom import distributed
from shapeloom.clip import load_clip
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.executors import Executor
from shapeloom.log import get_logger, start_logging
from shapeloom.runs import Run, read_meta
from shapeloom.shards import AssetShards
from shapeloom.storage import AnyPath, Location, parse_path, read_json, write_atomic
from shapeloom.weights import checked_digest

log = get_logger("eval")


class EvalConfig(Config):
    """What is measured. A folder that isn't named is looked for in `run` under its usual name."""

    run: Path = Field(description="folder of the run; metrics.json and report.html go there")
    data: Location | None = Field(None, description="a data_prep run: a folder or a URL")
    clip: Path | None = Field(None, description="folder of prior.train_clip")
    encoder: Path | None = Field(None, description="folder of encoder.train")
    latents: Location | None = Field(None, description="an encoder.encode run: a folder or a URL")
    prior: Path | None = Field(None, description="folder of prior.train")
    samples: Path | None = Field(None, description="folder of sampling")
    setup_seconds_file: Path | None = Field(None, description="text file with the seconds that setup took")
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    judge: JudgeConfig = JudgeConfig()
    generation: GenerationConfig = GenerationConfig()
    report: ReportConfig = ReportConfig()

    def folder(self, stage: str) -> Path:
        """Returns a stage's folder, such as that of "prior"; of models and samples, which are local."""
        named = {
            "clip": self.clip, "encoder": self.encoder, "prior": self.prior, "samples": self.samples,
        }  # fmt: skip
        return named[stage] or self.run / stage

    def shards(self, stage: str) -> AnyPath:
        """Returns where the shards of "data" or "latents" lie."""
        named = {"data": self.data, "latents": self.latents}[stage]
        return self.run / stage if named is None else parse_path(named)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates, or goes on, or says that it is done."""
    config, out, arguments = parse_stage(EvalConfig, stage="eval", description=__doc__ or "", argv=argv)
    world = distributed.start()
    start_logging(quiet=not world.is_main)
    if world.size > 1:
        raise UserError("The evaluation runs in one process: start it without torchrun or the like.")
    device = world.device
    data = config.shards("data")
    model = load_encoder(config.folder("encoder"), device)
    conditioner = load_clip(config.folder("clip"), device)
    prior = config.folder("prior")
    expected = read_meta(prior, stage="prior")["weights_digest"]
    inputs = {
        "data": AssetShards(data).digest, "encoder": model.decoder.digest, "clip": conditioner.digest,
        "prior": checked_digest(prior / "weights.safetensors", expected),
    }  # fmt: skip
    places = ("run", "latents", "samples", "setup_seconds_file")
    with Run.open(out, config, stage="eval", inputs=inputs, places=places) as run:
        if run.done and all((config.run / name).is_file() for name in ("metrics.json", "report.html")):
            log.info("the evaluation in %s is already done; see %s", out, config.run / "report.html")
            return
        if run.done:
            log.warning("%s was done, but its report or numbers are gone, which are made again", out)
            run.reopen(config)
        measure(config, run, model, conditioner.digest, world, arguments.executor)


def measure(
    config: EvalConfig,
    run: Run,
    model: AnyAutoencoder,
    conditioner: str,
    world: distributed.World,
    executor: Executor,
) -> None:
    """Runs the parts one after the other; each keeps what it has made."""
    out, data = run.folder, config.shards("data")
    encoder, on_ray = config.folder("encoder"), executor == "ray"
    reconstruction, reconstructed = evaluate_reconstruction(
        data, model, config.reconstruction, out / "reconstruction", on_ray=encoder if on_ray else None
    )
    log.info(
        "reconstruction: PSNR %.2f dB, IoU %.3f; surfaces: F@0.02 %.3f, normals off %.3f, slope %.2f",
        *(reconstruction[name] for name in ("psnr", "iou", "fscore_0.02", "normals_off", "slope")),
    )
    run.save_progress()
    generation, generated, compared = _generation(
        config, run, model, conditioner, world, _parts(config) if on_ray else None
    )
    run.save_progress()
    metrics = {
        "reconstruction": reconstruction,
        "generation": generation,
        **stage_costs(config, run),
    }
    log.info("writing the report")
    folders = Folders(
        data=data, clip=config.folder("clip"), encoder=config.folder("encoder"), prior=config.folder("prior"),
        samples=config.folder("samples"), evaluation=out,
    )  # fmt: skip
    html = build_report(
        config.run.resolve().name, folders, metrics, reconstructed, generated, compared, config.report
    )
    write_atomic(config.run / "report.html", html)
    run.save_progress()
    metrics |= stage_costs(config, run)
    write_atomic(config.run / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    run.finish()
    log.info("numbers are in %s, the page is %s", config.run / "metrics.json", config.run / "report.html")


def _generation(
    config: EvalConfig,
    run: Run,
    model: AnyAutoencoder,
    conditioner: str,
    world: distributed.World,
    on_ray: Parts | None,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        judge = make_judge(
            config.shards("data"), config.judge, run.folder / "judge", conditioner=conditioner, world=world
        )
    except NoJudge as error:
        log.warning("samples are not judged: %s", error)
        return {"skipped": str(error)}, [], []
    run.save_progress()
    summary, records, compared = evaluate_generation(
        config.shards("data"), model.decoder, lambda: make_sampler(config, world.device), judge,
        config.generation, run.folder / "generation", on_ray,
    )  # fmt: skip
    if "skipped" not in summary:
        log.info(
            "samples: R@1 %.3f (chance %.3f, ceiling %s), CLIP score %.3f",
            summary["r_at_1"], summary["chance"], summary["ceiling_r_at_1"], summary["clip_score"],
        )  # fmt: skip
    return summary, records, compared


def _parts(config: EvalConfig) -> Parts:
    """The pipeline that is judged, for workers that were started in other folders."""
    prior, encoder, clip = (config.folder(name).absolute() for name in ("prior", "encoder", "clip"))
    return Parts(prior, encoder, str(clip))


def make_sampler(config: EvalConfig, device: torch.device) -> Sampler:
    """Returns what turns prompts into latents: the run's prior, with the evaluation's settings."""
    pipeline = ShapePipeline.load(
        prior=config.folder("prior"),
        encoder=config.folder("encoder"),
        clip=config.folder("clip"),
        device=device,
    )
    return pipeline_sampler(pipeline, config.generation)


def stage_costs(config: EvalConfig, run: Run) -> dict[str, dict[str, float | None]]:
    """Returns `seconds` (over all restarts) and `peak_memory_gb` (of one process) of each stage.

    None for a stage that isn't there.
    """
    setup = config.setup_seconds_file
    seconds: dict[str, float | None] = {"setup": None}
    if setup is not None and setup.is_file():
        seconds["setup"] = float(setup.read_text())
    memory: dict[str, float | None] = {}
    folders = {
        "data_prep": "data", "clip": "clip", "encoder": "encoder", "encode": "latents", "prior": "prior",
        "sample": "samples",
    }  # fmt: skip
    for stage, folder in folders.items():
        where = config.shards(folder) if folder in ("data", "latents") else config.folder(folder)
        path = where / "meta.json"
        meta = read_json(path, advice="Copy it again.") if path.is_file() else {}
        seconds[stage] = round(meta["seconds"], 2) if meta else None
        memory[stage] = meta.get("peak_memory_gb")
    seconds["eval"] = round(run.meta["seconds"], 2)
    memory["eval"] = run.meta.get("peak_memory_gb")
    return {"seconds": seconds, "peak_memory_gb": memory}


def command() -> None:
    """The command line: `judge`, `compare`, or a run's evaluation."""
    match sys.argv[1:]:
        case ["judge", *rest]:
            run_main(lambda: judging.main(rest))
        case ["compare", *rest]:
            run_main(lambda: compare.main(rest))
        case _:
            run_main(main)


if __name__ == "__main__":
    command()
