"""A web page on this machine: a prompt in, a turntable and a textured model out.

    python -m sampling.app --set prior=RUN/prior encoder=RUN/encoder clip=RUN/clip [--port 7860]

It listens on localhost alone, makes one shape at a time and sends nothing elsewhere.
"""

import argparse
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sampling.__main__ import SamplingConfig, load_pipeline
from sampling.pictures import gif
from sampling.pipeline import ShapePipeline, check_prompt
from shapeloom.config import UserError, load_config, run_main
from shapeloom.log import get_logger, start_logging
from shapeloom.storage import write_atomic

log = get_logger("app")

MAX_PAGE_PROMPT = 300
MAX_PAGE_STEPS = 128
# Larger seeds aren't exact in a browser's numbers.
MAX_PAGE_SEED = 2**53 - 1


def generate(
    pipeline: ShapePipeline, config: SamplingConfig, folder: Path,
    prompt: str, seed: int | float, steps: int | float, guidance: int | float,
) -> tuple[str, str | None, list[str]]:  # fmt: skip
    """Makes one shape. Returns the paths of its GIF, its GLB (None if it has no surface) and all its files.

    Raises UserError for input that the page's own limits should have stopped: requests can come from scripts.
    """
    text = check_prompt(prompt)
    if len(text) > MAX_PAGE_PROMPT:
        raise UserError(f"Prompts on this page have at most {MAX_PAGE_PROMPT} characters.")
    in_range = 0 <= seed <= MAX_PAGE_SEED and 1 <= steps <= MAX_PAGE_STEPS and 0 <= guidance <= 20
    if not in_range:
        raise UserError(
            f"Seeds go from 0 to {MAX_PAGE_SEED}, steps from 1 to {MAX_PAGE_STEPS}, guidance from 0 to 20."
        )
    shape = pipeline(
        [text], seeds=[int(seed)], steps=int(steps), guidance_scale=guidance,
        sampler=config.sampler, negative_prompt=config.negative_prompt,
    )[0]  # fmt: skip
    key = hashlib.sha256(repr((text, int(seed), int(steps), guidance)).encode()).hexdigest()[:16]
    table = config.turntable
    turntable = folder / f"{key}.gif"
    write_atomic(turntable, gif(shape.turntable(table.frames, table.size, samples=table.samples)))
    mesh = shape.mesh(config.mesh)
    models = [folder / f"{key}.{suffix}" for suffix in ("glb", "ply")] if mesh.num_faces else []
    for path in models:
        mesh.save(path)
    files = [str(path) for path in [*models, turntable]]
    return str(turntable), str(models[0]) if models else None, files


def build_page(pipeline: ShapePipeline, config: SamplingConfig, folder: Path) -> Any:
    """Returns the Gradio page; raises UserError if Gradio isn't installed."""
    # Gradio reports its use to its makers unless told not to before it is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            "The web page needs Gradio, which isn't installed. Run `make serve`, which installs it, or "
            '`pip install -c constraints.txt -e ".[serve]"`.'
        ) from error

    def respond(prompt: str, seed: float, steps: float, guidance: float) -> tuple[str, str | None, list[str]]:
        try:
            return generate(pipeline, config, folder, prompt, seed, steps, guidance)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    example = config.prompts[0] if config.prompts else "a red chair"
    with gradio.Blocks(title="Shapeloom", analytics_enabled=False) as page:
        gradio.Markdown("# Shapeloom\nSay what to make; a textured model comes back in some seconds.")
        with gradio.Row():
            with gradio.Column(scale=1):
                prompt = gradio.Textbox(example, label="Prompt", max_length=MAX_PAGE_PROMPT)
                seed = gradio.Number(config.seed, label="Seed", precision=0, minimum=0, maximum=MAX_PAGE_SEED)
                steps = gradio.Slider(1, MAX_PAGE_STEPS, config.steps, step=1, label="Steps")
                guidance = gradio.Slider(0, 20, config.guidance_scale, step=0.5, label="Guidance")
                button = gradio.Button("Make it", variant="primary")
                files = gradio.Files(label="Download")
            with gradio.Column(scale=2):
                model = gradio.Model3D(label="Textured mesh", clear_color=(1, 1, 1, 1), height=420)
                turntable = gradio.Image(label="Volume render", type="filepath", format="gif")
        inputs, outputs = [prompt, seed, steps, guidance], [turntable, model, files]
        gradio.on([button.click, prompt.submit], respond, inputs, outputs, concurrency_limit=1)
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the page until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m sampling.app", description=__doc__)
    parser.add_argument("--config", type=Path, help="YAML preset, e.g. configs/sampling/tiny.yaml")
    parser.add_argument("--set", action="append", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--port", type=int, default=7860)
    arguments = parser.parse_args(argv)
    overrides = [item for group in arguments.set for item in group]
    config = load_config(SamplingConfig, arguments.config, overrides)
    if not 0 < arguments.port < 65536:
        raise UserError(f"--port is a number from 1 to 65535, got {arguments.port}.")
    start_logging()
    with tempfile.TemporaryDirectory(prefix="shapeloom-") as folder:
        page = build_page(load_pipeline(config), config, Path(folder))
        log.info("open http://127.0.0.1:%d in a browser; Ctrl-C ends it", arguments.port)
        try:
            page.launch(
                server_name="127.0.0.1", server_port=arguments.port, share=False, quiet=True,
                allowed_paths=[folder],
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"Port {arguments.port} is taken; choose another with --port.") from error


if __name__ == "__main__":
    run_main(main)
