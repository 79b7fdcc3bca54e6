# `make` alone lists the targets. Each sets up .venv by itself where it is missing or older than what it is made from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml constraints.txt

OUT ?= shards

TORCHRUN = $(if $(HEAD)$(GPUS),torch.distributed.run --nproc-per-node '$(or $(GPUS),1)' $(if $(HEAD),--nnodes '$(or $(NODES),1)' \
  --rdzv-backend c10d --rdzv-endpoint '$(HEAD)' --rdzv-id '$(or $(SLURM_JOB_ID),$(RUN),run)',--standalone) -m)

.DEFAULT_GOAL := help
.PHONY: help shards plan verify forget fuzz audit query interchange peek pretrain distill recipe curves evaluate export embed fit-stain bench test check samples clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

shards: $(VENV)/.shards ## slides to tile stores: SLIDES= OUT= MANIFEST= MASKS= MAGS= MAX_TILES= FILTER="focus@40x>=0.2 pen<=0.02" WORKERS= SCHEDULER= TLS_CA= TLS_CERT= TLS_KEY= CLUSTER=slurm CLUSTER_CONFIG= LOG= REDO=1 ASSUME_MPP= PATIENT_KEY= ID_ROOT= TIME_LIMIT= PRIVATE=1 ID_KEY= NAMES= INSTITUTION_PATTERN= CACHE= CACHE_GB= TAKE_OVER=1 ARGS=
ifndef SLIDES
	@$(BIN)/python -m sample_slides.make
endif
	@$(BIN)/python -m pipelines.shards --slides '$(or $(SLIDES),sample_slides)' --out '$(OUT)' \
	  $(if $(or $(MANIFEST),$(if $(SLIDES),,samples)),--manifest '$(or $(MANIFEST),sample_slides/manifest.csv)') \
	  $(if $(MASKS),--masks '$(MASKS)') $(if $(MAGS),--mags '$(MAGS)') $(if $(MAX_TILES),--max-tiles '$(MAX_TILES)') \
	  $(if $(FILTER),--filter '$(FILTER)') \
	  $(if $(WORKERS),--workers '$(WORKERS)') $(if $(SCHEDULER),--scheduler '$(SCHEDULER)') \
	  $(if $(TLS_CA),--tls-ca '$(TLS_CA)') $(if $(TLS_CERT),--tls-cert '$(TLS_CERT)') $(if $(TLS_KEY),--tls-key '$(TLS_KEY)') \
	  $(if $(CLUSTER),--cluster '$(CLUSTER)') $(if $(CLUSTER_CONFIG),--cluster-config '$(CLUSTER_CONFIG)') \
	  $(if $(LOG),--log '$(LOG)') $(if $(REDO),--redo) $(if $(ASSUME_MPP),--assume-mpp '$(ASSUME_MPP)') \
	  $(if $(PATIENT_KEY),--patient-key '$(PATIENT_KEY)') $(if $(ID_ROOT),--id-root '$(ID_ROOT)') \
	  $(if $(PRIVATE),--private) $(if $(ID_KEY),--id-key '$(ID_KEY)') $(if $(NAMES),--names '$(NAMES)') \
	  $(if $(value INSTITUTION_PATTERN),--institution-pattern '$(value INSTITUTION_PATTERN)') \
	  $(if $(CACHE),--cache '$(CACHE)') $(if $(CACHE_GB),--cache-gb '$(CACHE_GB)') $(if $(TAKE_OVER),--take-over) \
	  $(if $(TIME_LIMIT),--time-limit '$(TIME_LIMIT)') $(ARGS)

plan: $(VENV)/.shards ## what a cohort's shards will take: SLIDES=number SAMPLE=folder WORKERS= TO=plan.json ARGS="--slide-gb 1.2 --core-hour 0.05 ..."
	@$(BIN)/python -m pipelines.plan --slides '$(SLIDES)' --sample '$(or $(SAMPLE),$(OUT))' \
	  $(if $(WORKERS),--workers '$(WORKERS)') $(if $(TO),--to '$(TO)') $(ARGS)

verify: $(VENV)/.shards ## every row, file and tile of shards: SHARDS="folder ..." REPAIR=1 WORKERS= TAKE_OVER=1
	@$(BIN)/python -m pipelines.verify --shards $(or $(SHARDS),$(OUT)) $(if $(REPAIR),--repair) \
	  $(if $(WORKERS),--workers '$(WORKERS)') $(if $(TAKE_OVER),--take-over) $(ARGS)

forget: $(VENV)/.shards ## delete a patient's slides for good: PATIENT=id PATIENT_KEY=file SHARDS="folder ..." SLIDE="slide_id ..." NAMES= DRY=1 TAKE_OVER=1
	@$(BIN)/python -m pipelines.forget --shards $(or $(SHARDS),$(OUT)) $(if $(PATIENT),--patient "$$PATIENT") \
	  $(if $(PATIENT_KEY),--patient-key '$(PATIENT_KEY)') $(if $(SLIDE),--slide $(SLIDE)) $(if $(NAMES),--names '$(NAMES)') \
	  $(if $(DRY),--dry) $(if $(TAKE_OVER),--take-over) $(ARGS)

audit: $(VENV)/.shards ## what shards hold, as one HTML page: SHARDS="folder ..." TO=audit.html ARGS="--gallery 60 --tiles 4"
	@$(BIN)/python -m pipelines.audit --shards $(or $(SHARDS),$(OUT)) --to '$(or $(TO),audit.html)' $(ARGS)
query: $(VENV)/.shards ## a question to the catalog: SQL="SELECT ... FROM slides, tiles" SHARDS="folder ..." TO=file.csv|file.parquet ARGS=
	@$(BIN)/python -m pipelines.query --shards $(or $(SHARDS),$(OUT)) --sql "$$SQL" $(if $(TO),--to '$(TO)') $(ARGS)

interchange: $(VENV)/.shards ## for other tools: KIND=qupath|trident|clam|webdataset SHARDS=folder TO=folder WHERE="stain = 'HE'" ARGS=
	@$(BIN)/python -m pipelines.interchange --kind '$(KIND)' --shards '$(or $(SHARDS),$(OUT))' --to '$(TO)' \
	  $(if $(WHERE),--where "$$WHERE") $(ARGS)

peek: $(VENV)/.train ## a picture of what the trainer sees: SHARDS="folder or URL ..." WHERE="stain = 'HE'" PNG= ARGS=
	@$(BIN)/python -m pipelines.peek --shards $(or $(SHARDS),$(OUT)) --out '$(or $(PNG),peek.png)' \
	  $(if $(WHERE),--where "$(WHERE)") $(ARGS)

pretrain: $(VENV)/.train ## train, and go on where RUN stands: SHARDS= RECIPE= RUN=folder GPUS= NODES= HEAD=host:port STOP_AT= WHERE= PROBE="tiles.parquet ..." SET="schedule.rate=0.002 ..." ARGS=
ifndef SHARDS
	@test -e '$(OUT)/run.json' || $(MAKE) --no-print-directory shards
endif
	@$(BIN)/python -m $(TORCHRUN) pipelines.train \
	  --shards $(or $(SHARDS),$(OUT)) --folder '$(or $(RUN),runs/$(or $(RECIPE),debug))' \
	  $(if $(RECIPE),--recipe '$(RECIPE)') $(if $(STOP_AT),--stop-at '$(STOP_AT)') $(if $(WHERE),--where "$(WHERE)") \
	  $(if $(PROBE),--probe $(PROBE)) $(if $(SET),--set $(SET)) $(ARGS)

distill: ## train a small ViT from a frozen one: TEACHER="run, or folder of weights" and all of pretrain's
	@$(MAKE) --no-print-directory pretrain RECIPE='$(or $(RECIPE),virchow2g_mini)' SET="teacher='$(TEACHER)' $(SET)"

recipe: $(VENV)/.train ## show a recipe with every setting's name: RECIPE=debug SET="schedule.rate=0.002 ..."
	@$(BIN)/python -m pipelines.recipe --recipe '$(or $(RECIPE),debug)' $(if $(SET),--set $(SET))

curves: $(VENV)/.train ## the curves of runs as one picture: MODEL="run ..." PNG=
	@$(BIN)/python -m pipelines.curves --runs $(MODEL) --out '$(or $(PNG),curves.png)'

evaluate: $(VENV)/.train ## judge on labelled tiles: MODEL="run, folder of weights, or timm's name ..." TASKS="pcam:/data/pcam tiles.parquet:labels ..." LIKE=model TO=folder ARGS=
	@$(BIN)/python -m pipelines.evaluate --models $(MODEL) --tasks $(TASKS) $(if $(LIKE),--like '$(LIKE)') $(if $(TO),--to '$(TO)') $(ARGS)

export: $(VENV)/.train ## a run as a folder that timm loads: RUN= TO=folder LICENCE= ARGS=
	@$(BIN)/python -m pipelines.export --folder '$(RUN)' --to '$(TO)' $(if $(LICENCE),--licence '$(LICENCE)') $(ARGS)

embed: $(VENV)/.train ## features of every tile, as Parquet and h5: MODEL="run, or exported folder" SHARDS= TO=folder WHERE="magnification = '20x'" ARGS=
	@$(BIN)/python -m pipelines.embed --model '$(MODEL)' --shards $(or $(SHARDS),$(OUT)) --to '$(TO)' \
	  $(if $(WHERE),--where "$(WHERE)") $(ARGS)

fit-stain: $(VENV)/.test ## fit the stain classifier anew: TILES="tiles.parquet ..." SLIDES=folder TO=file ARGS=
	@$(BIN)/python -m pipelines.fit_stain $(if $(TILES),--tiles $(TILES)) $(if $(SLIDES),--slides '$(SLIDES)') \
	  $(if $(TO),--to '$(TO)') $(ARGS)

bench: $(VENV)/.bench ## speed, against limits measured in the same run: BENCH=feed ARGS="--quick | --only 'local scale'"
	@test -e '$(OUT)' || $(MAKE) --no-print-directory shards
	@$(BIN)/python -m tests.benchmarks.$(or $(BENCH),feed) --shards '$(OUT)' $(ARGS)

fuzz: $(VENV)/.test ## slides broken in every way, for SECONDS=600: ARGS="--class honest --seed 0 --limit-mb 1500 --keep folder"
	@$(BIN)/python -m tests.fuzz --seconds '$(or $(SECONDS),600)' $(ARGS)

test: $(VENV)/.test check ## every test, after ruff and mypy
	@$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(VENV)/.test ## ruff and mypy alone
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

samples: $(VENV)/.shards ## make the sample slides
	@$(BIN)/python -m sample_slides.make

clean: ## remove the environment, the sample slides' pictures and the default output
	rm -rf $(VENV) $(OUT) sample_slides/*.svs sample_slides/*.tiff sample_slides/*.png

$(VENV)/.shards: $(PINS)
	@$(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) for the slide stage"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[shards]'
	@touch $@

$(VENV)/.train: $(PINS)
	@$(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) for training"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/.test: $(PINS)
	@$(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) for the tests"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[shards,train,dev]'
	@touch $@ $(VENV)/.shards $(VENV)/.train

$(VENV)/.bench: $(VENV)/.test
	@echo "setting up $(VENV) for the benchmarks"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[shards,train,dev,bench]'
	@touch $@
