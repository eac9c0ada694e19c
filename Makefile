# One target a stage. Each is a thin line over a `python -m` command that also works alone.
#   make demo                          everything, on the embedded data set (2 CPU cores: 20 minutes)
#   make demo CONFIG=smoke             the same at toy size, in under 3 minutes
#   make demo ASSETS=DIR RUN=runs/mine everything, on your own folder of 3D files
#   make sample PROMPT="a red chair"   more objects from a finished run
CONFIG ?= tiny
RUN    ?= runs/demo-$(CONFIG)
ASSETS ?=
PROMPT ?=
NUM    ?= 1
FILES  ?=
SEED   ?= 0
NPROC  ?=
PAGE   ?= $(RUN)/headline/headline.md
VENV   ?= .venv
PYTHON ?= python3

# What people type reaches a command as it is, whatever quotes, blanks, $ or backticks are in it: as variables of
# the shell, never as text of its program. ASSETS is a value of YAML there, in its single quotes.
override PROMPT := $(value PROMPT)
override ASSETS := $(value ASSETS)
export PROMPT ASSETS
ASSETS_KEY = "assets='$$(printf %s "$$ASSETS" | sed "s/'/''/g")'"

PY     = $(VENV)/bin/python
STAMP  = $(VENV)/.stamp-$(shell cat pyproject.toml constraints.txt requirements-pytorch3d.txt scripts/setup.sh | sha256sum | cut -c1-16)
# One process a GPU, two on CPUs (one for the prior, which has many gradients to share), or NPROC.
LAUNCH = VENV=$(VENV) NPROC=$(NPROC) bash launch/torchrun.sh

.PHONY: help setup assets-sweethome3d data-prep train-clip train-encoder encode train-prior train-point-prior train-views eval-views distill classifier sample eval demo serve test lint bench headline mutants config-docs overfit drill-cluster clean

help:
	@sed -n '2,5s/^# *//p' Makefile
	@echo "targets: setup assets-sweethome3d data-prep train-clip train-encoder encode train-prior train-point-prior train-views eval-views distill classifier sample eval demo serve test lint bench headline mutants config-docs overfit drill-cluster clean"

setup: $(STAMP)

$(STAMP):
	bash scripts/setup.sh $(PYTHON) $(VENV) $(STAMP)

# 820 furniture models with names, CC-BY and CC0: then `make demo ASSETS=assets/sweethome3d`.
assets-sweethome3d:
	bash scripts/assets_sweethome3d.sh assets/sweethome3d

data-prep: $(STAMP)
	$(PY) -m data_prep --config configs/data_prep/$(CONFIG).yaml --out "$(RUN)/data" $${ASSETS:+--set $(ASSETS_KEY)}

train-clip: $(STAMP)
	$(PY) -m prior.train_clip --config configs/clip/$(CONFIG).yaml --out "$(RUN)/clip" --set "data=$(RUN)/data"

train-encoder: $(STAMP)
	$(LAUNCH) encoder.train --config configs/encoder/$(CONFIG).yaml --out "$(RUN)/encoder" --set "data=$(RUN)/data"

encode: $(STAMP)
	$(PY) -m encoder.encode --config configs/encode/$(CONFIG).yaml --out "$(RUN)/latents" \
	    --set "data=$(RUN)/data" "encoder=$(RUN)/encoder" "clip=$(RUN)/clip"

train-prior: $(STAMP)
	CPU_NPROC=1 $(LAUNCH) prior.train --config configs/prior/$(CONFIG).yaml --out "$(RUN)/prior" --set "latents=$(RUN)/latents"

# Point-E's way, for comparison: clouds of coloured points in the latents' place (docs/prior.md). Sample with
# --set prior=$(RUN)/point_prior encoder=$(RUN)/cloud_field.
train-point-prior: $(STAMP)
	CPU_NPROC=1 $(LAUNCH) encoder.train_cloud --config configs/encoder/cloud_$(CONFIG).yaml --out "$(RUN)/cloud_field" \
	    --set "data=$(RUN)/data"
	$(PY) -m encoder.encode --out "$(RUN)/clouds" --set "data=$(RUN)/data" "encoder=$(RUN)/cloud_field" \
	    "clip=$(RUN)/clip" "embeddings=$(RUN)/latents"
	CPU_NPROC=1 $(LAUNCH) prior.train --config configs/prior/points_$(CONFIG).yaml --out "$(RUN)/point_prior" \
	    --set "latents=$(RUN)/clouds"

# From a picture or a caption, and a camera, to what it shows (docs/views.md).
train-views: $(STAMP)
	CPU_NPROC=1 $(LAUNCH) prior.train_views --config configs/views/$(CONFIG).yaml --out "$(RUN)/views" \
	    --set "data=$(RUN)/data" "clip=$(RUN)/clip"

eval-views: $(STAMP)
	$(PY) -m eval.views --model "$(RUN)/views" --data "$(RUN)/data" --out "$(RUN)/views_eval"

# Latents against points on a finished run, written up in PAGE: docs/headline.md is such a page. A batch of 16 for both,
# since the presets' 64 are 16,384 points a step.
headline: $(STAMP)
	$(PY) -m benchmarks.experiments.headline --run "$(RUN)" --out "$(RUN)/headline" --page "$(PAGE)" \
	    --preset configs/prior/$(CONFIG).yaml --cloud-preset configs/encoder/cloud_$(CONFIG).yaml \
	    --settings train.batch_size=16

# The prior in a few steps, beside it: sample with --config configs/sampling/distilled.yaml --set prior=$(RUN)/few
distill: $(STAMP)
	CPU_NPROC=1 $(LAUNCH) prior.distill --config configs/prior/distill_$(CONFIG).yaml --out "$(RUN)/few" \
	    --set "teacher=$(RUN)/prior" "latents=$(RUN)/latents"

# Steers the prior by categories: sample with --set classifier=$(RUN)/classifier guidance.classifier_scale=2
classifier: $(STAMP)
	CPU_NPROC=1 $(LAUNCH) prior.classifier --config configs/prior/classifier_$(CONFIG).yaml --out "$(RUN)/classifier" \
	    --set "prior=$(RUN)/prior" "latents=$(RUN)/latents"

sample: $(STAMP)
	$(PY) -m sampling --config configs/sampling/$(CONFIG).yaml --out "$(RUN)/samples" \
	    --set "prior=$(RUN)/prior" "encoder=$(RUN)/encoder" "clip=$(RUN)/clip" \
	    $${PROMPT:+"--prompt=$$PROMPT"} --num $(NUM) --seed $(SEED)

eval: $(STAMP)
	$(PY) -m eval --config configs/eval/$(CONFIG).yaml --out "$(RUN)/eval" --set "run=$(RUN)" setup_seconds_file=$(VENV)/.setup_seconds

# One after another, whatever -j says: each stage reads what the one before it wrote.
demo: $(STAMP)
	@for stage in data-prep train-clip train-encoder encode train-prior sample eval; do \
	    $(MAKE) --no-print-directory $$stage || exit $$?; done
	@echo && echo "Done. Open $(RUN)/report.html; the meshes are in $(RUN)/samples/."

serve: $(STAMP)
	@$(PY) -c "import gradio" 2>/dev/null || $(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[serve]"
	$(PY) -m serving --config configs/sampling/$(CONFIG).yaml --set "prior=$(RUN)/prior" "encoder=$(RUN)/encoder" "clip=$(RUN)/clip"

test: $(STAMP)
	$(PY) -m pytest -n auto

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(STAMP)
	$(PY) -m benchmarks.speed

# Small changes of the code that figures rest on, which its tests should notice: NUM of them, resumable.
mutants: NUM = 60
mutants: $(STAMP)
	@$(PY) -c "import cosmic_ray" 2>/dev/null || $(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[mutants]"
	$(PY) -m scripts.mutants --num $(NUM) --seed $(SEED) $(FILES)

# Hosts as network namespaces: three train as one, a cable is pulled, a folder isn't shared, data in an emulation of S3,
# DeepSpeed over sshd, Slurm. Needs root and Debian's packages (docs/clusters.md).
drill-cluster: $(STAMP)
	$(PY) -m benchmarks.drills.cluster
	$(PY) -m benchmarks.drills.storage
	$(PY) -m benchmarks.drills.launchers

# docs/config.md, every key of every stage, from the configs themselves.
config-docs: $(STAMP)
	$(PY) -m scripts.config_docs

# Eight assets by heart in five minutes of two cores: the gate before any longer training.
overfit: RUN = runs/overfit
overfit: $(STAMP)
	@for stage in data-prep train-encoder; do \
	    $(MAKE) --no-print-directory $$stage CONFIG=overfit "RUN=$(RUN)" || exit $$?; done
	$(PY) -m benchmarks.experiments.overfit "$(RUN)"

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
