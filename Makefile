# What can be done here; `make help` lists it.

.DEFAULT_GOAL := help
.PHONY: help run test test-versions e2e model soak fuzz bench bench-check generate api-docs image book fmt clean-cache require

# What is built or fetched for development stays here, outside the repository: the control plane, tools of cargo's.
export SWITCHBOARD_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/switchboard

TARGET := $(or $(CARGO_TARGET_DIR),target)

# $(call stage,name,command): announces it, runs it, and says how long it took.
define stage
@echo "=== $(1): $(2)"; start=$$(date +%s); \
if $(2); then echo "=== $(1): done in $$(($$(date +%s) - start)) s"; \
else echo "=== $(1): FAILED after $$(($$(date +%s) - start)) s" >&2; exit 1; fi
endef

help: ## List what can be done
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: require ## A real control plane with the operator, a tour of it, then yours until Ctrl-C (ONCE=1, API_SERVERS=2, REPLICAS=2; OPERATOR=none to run the operator by cargo run)
	@echo "$(if $(OPERATOR),Builds a control plane from source and installs the chart; you run the operator.,$\
		Compiles the operator, builds a control plane from source, installs the chart and leads through a tour.)"
	@echo "The first time takes about 10 minutes on two cores, later ones 15 seconds."
	cargo build --release --locked $(if $(OPERATOR),,--package switchboard) --package control-plane --bins
	@"$(TARGET)/release/playground"

test: require ## Everything that must hold: format, spelling, lints, docs, tests, licences (about forty minutes on a fresh machine of two cores, then a quarter of an hour)
	$(call stage,format,cargo fmt --all --check)
	$(call stage,spelling,.ci/cargo-tool typos)
	$(call stage,lints,cargo clippy --locked --workspace --all-targets -- -D warnings)
	$(call stage,docs,RUSTDOCFLAGS=-Dwarnings cargo doc --quiet --locked --no-deps --workspace --document-private-items)
	$(call stage,book,docs/build)
	$(call stage,compile,cargo test --locked --workspace --no-run)
	$(call stage,control plane,"$(TARGET)/debug/build-control-plane")
	$(call stage,tests,cargo test --locked --workspace --no-fail-fast)
	$(call stage,licences,.ci/cargo-tool deny --locked check licenses bans sources)

e2e: require ## The same product as pods on two nodes: root, Linux (half an hour on two cores; QUICK=1 for 6 minutes, ONLY=name, KEEP=1)
	@echo "Compiles the operator, builds the parts of two nodes from source, installs the chart on them and tries what users meet there."
	@echo "The first time takes about 28 minutes more on two cores."
	$(call stage,compile,cargo build --locked --package nodes --package control-plane --bins)
	@"$(TARGET)/debug/e2e"
	$(call stage,nodes,"$(TARGET)/debug/build-control-plane" nodes)
	$(if $(QUICK)$(ONLY),,$(call stage,cert-manager,"$(TARGET)/debug/build-control-plane" cert-manager))
	$(if $(QUICK)$(ONLY),,$(call stage,flux,"$(TARGET)/debug/build-control-plane" flux))
	$(call stage,image,image/program > "$(TARGET)/program")
	@"$(TARGET)/debug/e2e" "$$(cat "$(TARGET)/program")"

test-versions: require ## What depends on the API server, against older versions of it too (eight minutes each, and seven to build one; VERSIONS="1.31 1.35")
	cargo build --locked --package switchboard --package control-plane --bins
	@"$(TARGET)/debug/test-versions"

bench: require ## What it costs, against the same API server without it (three quarters of an hour on two cores; QUICK=1, ONLY=1,8)
	cargo build --release --locked --workspace --bins
	@"$(TARGET)/release/bench"
	$(if $(QUICK),,cargo bench --locked --package bench)

bench-check: require ## That each scenario of the benchmark works, with numbers too small to say anything (four minutes on two cores)
	cargo test --locked --package bench --test quick -- --ignored

model: require ## The exhaustive check of the protocol and of messages, in its large configurations (ten minutes on two cores, once compiled)
	@echo "Visits every order in which things can happen, within bounds, and prints how many states that were."
	cargo test --locked --package model -- --ignored --nocapture

soak: require ## Races on a real control plane for long: ROUNDS=10000 rounds of 50 creates (an hour for 10,000 on two cores)
	@echo "Two API servers, two replicas; each round prints nothing, each hundred a line; nothing but the last line matters."
	SWITCHBOARD_SOAK_ROUNDS=$(or $(ROUNDS),10000) cargo test --release --locked --test integration -- --ignored --nocapture --exact processes::races::soak

fuzz: require ## Random input for what strangers can send: reviews, addresses, durations, webhooks of providers (SECONDS=60 for each; needs a C++ compiler)
	@echo "Compiles a fuzzer, then tries inputs until one makes a parser panic or answer wrongly, or until the time is over."
	@for target in review address duration twilio meta cloud_event; do \
		corpus="$(TARGET)/fuzz-corpus/$$target"; mkdir -p "$$corpus"; \
		RUSTC_BOOTSTRAP=1 .ci/cargo-tool fuzz run --fuzz-dir tests/fuzz --target-dir "$(TARGET)/fuzz" --sanitizer none $$target \
			"$$corpus" tests/fuzz/seeds/$$target -- -max_total_time=$(or $(SECONDS),60) -print_final_stats=1 -artifact_prefix="$(abspath $(TARGET))/fuzz-corpus/" || exit 1; \
	done

generate: require api-docs ## Write the generated files: crds/ and docs/api.md from the Rust types, the chart's documentation and renderings
	cargo run --locked -- crds --directory crds
	UPDATE=1 cargo test --locked --quiet --test integration -- chart_readme_is schema_describes each_case_matches

api-docs: require ## Write docs/api.md, the reference of the API, from the Rust types
	UPDATE=1 cargo test --locked --quiet --test integration -- pure::api_reference

image: ## The container image, with buildah or podman: static, from scratch, reproducible, with its SBOM (IMAGE=registry.example/switchboard)
	@image/build

book: ## The documentation as a book, in the directory `book` of cargo's target directory (open index.html there)
	@docs/build

fmt: ## Format the code
	cargo fmt --all

clean-cache: ## Remove what was built and fetched into the cache directory
	rm -rf "$(SWITCHBOARD_CACHE)"/tools-* "$(SWITCHBOARD_CACHE)"/cargo-* "$(SWITCHBOARD_CACHE)"/typos-* "$(SWITCHBOARD_CACHE)"/mdbook-* "$(SWITCHBOARD_CACHE)"/target-* "$(SWITCHBOARD_CACHE)"/bench-* "$(SWITCHBOARD_CACHE)"/ports

# Before anything is compiled, so that nobody waits for minutes to read what is missing.
require:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 1; }
	@tests/control-plane/require-go.sh
	@tests/interop/require-python.sh
